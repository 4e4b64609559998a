"""Try every hostile input and write what came of it: docs/reliability/hostile.json.

The rows are those of tests/hostile, through the same command line, each in a process of its own
with an audit hook. About ten minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.hostile.place import Nursery, Place, trained, try_row  # noqa: E402
from tests.hostile.table import TABLE  # noqa: E402


def main() -> None:
    """Run all rows, or those of some items; exit 1 if one is not as expected."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "reliability" / "hostile.json")
    parser.add_argument("--item", action="append", help="only rows of this item, such as 31 or +")
    options = parser.parse_args()
    chosen = [row for row in TABLE if not options.item or row.item in options.item]
    found = []
    with tempfile.TemporaryDirectory() as folder:
        nursery = Nursery()
        try:
            model = trained(nursery, Path(folder) / "model").root
            for number, row in enumerate(chosen):
                place = Place(Path(folder) / str(number), model)
                facts, _ = try_row(row, place, nursery)
                shutil.rmtree(place.root)
                found.append(facts)
                print("ok " if facts["ok"] else "NOT", row.item, row.input, flush=True)
        finally:
            nursery.close()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    wrong = sum(not facts["ok"] for facts in found)
    print(f"{len(found) - wrong} of {len(found)} as expected; wrote {options.out}")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()

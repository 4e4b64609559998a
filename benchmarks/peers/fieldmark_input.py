"""What the input of a second epoch costs: its time alone, in percent of the epoch's steps."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

from benchmarks.peers import fieldmark_fit
from fieldmark.fit.loop import StepMark

EPOCH = 1


def main(data: str, recipe: str, size: int) -> float:
    """Train two epochs; the second's batches are made once more, with nothing beside them."""
    seconds = {"input": 0.0, "steps": 0.0}

    def around(fit: fieldmark_fit.Loop) -> fieldmark_fit.Loop:
        def watched(state: Any, source: Any, *words: Any, **rest: Any) -> Iterator[Any]:
            rest["pause"] = lambda step: True
            marks, epoch = fit(state, source, *words, **rest), 0
            while True:
                start = time.perf_counter()
                mark = next(marks, None)
                if mark is None:
                    break
                if isinstance(mark, StepMark):
                    seconds["steps"] += (time.perf_counter() - start) * (epoch == EPOCH)
                else:
                    epoch += 1
                    yield mark
            start = time.perf_counter()
            deque(source.epoch(EPOCH), maxlen=0)
            seconds["input"] = time.perf_counter() - start

        return watched

    settings: dict[str, Any] = {"epochs": EPOCH + 1, "size": size}
    fieldmark_fit.train(data, recipe=recipe, settings=settings, around=around)
    return 100 * seconds["input"] / seconds["steps"]


if __name__ == "__main__":
    print(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))

"""FLOP a training picture of a recipe, mean over a whole training on few pictures."""

from __future__ import annotations

import json
import sys

from benchmarks.peers.fieldmark_step import watch

if __name__ == "__main__":
    words = [int(word) for word in sys.argv[3:]]
    given = dict(zip(("epochs", "batch_size"), words, strict=True)) if words else {}
    seen, config = watch(sys.argv[1], recipe=sys.argv[2], settings=given, count_every=1)
    print(json.dumps({"flop": seen.flop_per_picture, "epochs": config.epochs}))

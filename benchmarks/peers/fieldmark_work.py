"""FLOP a training picture of a recipe, mean over a whole training on few pictures; and how often
it trains on each picture, on average.
"""

from __future__ import annotations

import json
import sys

from benchmarks.peers.fieldmark_step import watch
from fieldmark.settings.resolved import hardest as read_hardest

if __name__ == "__main__":
    words = [int(word) for word in sys.argv[3:]]
    given = dict(zip(("epochs", "batch_size"), words, strict=True)) if words else {}
    seen, config = watch(sys.argv[1], recipe=sys.argv[2], settings=given, count_every=1)
    hardest, many = read_hardest(config.hardest), 10**6
    epochs = sum(hardest.count(many, epoch) for epoch in range(config.epochs)) / many
    print(json.dumps({"flop": seen.flop_per_picture, "epochs": epochs}))

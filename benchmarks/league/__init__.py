"""`fieldmark train FOLDER` without flags beside every method one might choose, on many sets.

Each set is drawn three times (subsets with pictures of their own as far as there are enough). For
each subset the methods run one after the other, each in a process of its own, and all see the same
training and test pictures: Fieldmark without flags, each of its single recipes by name, and peers.
Seconds are wall time from the command to the saved and scored model. Accuracy is the mean over the
subsets, of the test split, which no method may choose anything by; n is the number of different
test pictures, and the interval is Wilson's for that mean and that n.

Peers, each as a user who knows it would run it on this machine: *fastai* `fine_tune` and a plain
*timm* loop, both of `tf_efficientnet_lite0` from the same ImageNet weights as Fieldmark's, at 224
px (128 px for pictures of up to 96 px), 10 epochs (4 from 4,000 training pictures on), mirrored and
cropped freely for photographs, gently and unmirrored for characters; scikit-learn's *logistic
regression* on pixels of at most 32 px, standardised, C chosen by cross-validation; tutorial 003's
*Keras* script (ResNet-20, batch 32, Adam, its 100 epochs and its fall of the rate after 81 %; 40
from 4,000 pictures on) on pictures of up to 96 px, resized to its 32.

The old default is the rule of before: `tiny` for pictures of up to 96 px, above it `probe` for
fewer than 2,000 training pictures and `finetune` for more. It is one of the recipes, so its figures
are that recipe's, as the recipe is today.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def main(argv: Sequence[str]) -> int:
    """Run the league; returns the exit code."""
    from benchmarks.league import run

    return run.main(argv)


def section(values: Sequence[Mapping[str, Any]]) -> str:
    """The league's part of the page."""
    from benchmarks.league import table

    return table.section(values)

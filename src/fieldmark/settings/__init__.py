"""What decides a run: ``TrainConfig``, spec strings, recipes.

Only names and numbers: what a name stands for (a network, an augmentation, a schedule) is in the
table of its own room.
"""

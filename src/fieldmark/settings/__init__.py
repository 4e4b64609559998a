"""What decides a run: ``TrainConfig``, spec strings, recipes.

Only names and numbers live here. What a name stands for (a network, an augmentation, a schedule) is
in the table of its own package.
"""

"""Training: the loop, its state, optimizers, schedules, callbacks, losses, the probe.

Nothing here touches the disk or knows a run: ``fit()`` yields records, and ``jobs/train.py`` keeps
them. What a trained network is worth is measured in ``scoring``.
"""

"""Training: the loop, its state, optimizers, schedules, callbacks, losses, the probe.

Nothing here touches the disk or knows a run: ``fit()`` yields records, and ``jobs/running.py``
stores them. How good a trained network is is measured in ``scoring``.
"""

"""The jobs a user can ask for, one file each: train, evaluate, predict, compare, tune ...

A job connects the rooms below: it makes a plan, works and writes into a run directory. How a step,
a score or a page is made is not here; flags and printing are in ``cli`` and ``console``.
"""

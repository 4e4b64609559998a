"""What a user can ask for, one file each: train, evaluate, predict, explain, compare, import.

A job joins the rooms below: it reads a plan, works and writes into a run directory. How a thing is
done (a step, a score, a page) is not here; flags and printing are in ``cli`` and ``console``.
"""

"""The run directory: its layout, checkpoints, the model inside, and every file as a typed value.

Each file of a run has one type with one reader and one writer, here. What produces the values is in
``fit`` and ``jobs``; pages made from them are in ``pages``.
"""

"""Architectures in plain torch, one family a file, and the layers that they share.

No weights, names or settings: the table of networks and how one is built are in ``models``.
"""

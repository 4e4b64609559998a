"""From the bytes of a file to pixels, and from pixels to a network's input; usable by itself.

One decoder for training, scoring, serving and export. Where files lie, which class they have and
how they are divided is in ``data``.
"""

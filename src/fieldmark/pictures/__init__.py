"""From the bytes of a file to pixels, and from pixels to a network's input; usable by itself.

Training, scoring, serving and export share this one decoder. Where files lie, which class they have
and how they are divided into splits is in ``data``.
"""

"""Programs that are measured, each in a process of its own; the last line they print is JSON.

Those whose name begins with ``fieldmark`` measure parts of our own; the others are peers or bounds.
"""

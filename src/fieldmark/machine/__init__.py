"""This machine: cores, memory and its limits, device, number type, the process and its signals.

What is decided here changes how fast something is computed and what fits, never what is learnt.
Training and pictures are not known here.
"""

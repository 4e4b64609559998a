"""This machine: cores, memory and its limits, device, number type, the process and its signals.

What is decided here changes how fast something is computed and how much fits into memory, never
what is learnt. Code here does not know training or pictures.
"""

"""Files as the rest needs them: whole or not there, locked, checked, fetched, found in the cache.

Here lives what knows paths, bytes and formats of text. What a run, a picture or a network is does
not: their own rooms write and read them through this one.
"""

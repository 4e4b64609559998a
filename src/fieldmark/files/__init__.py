"""Files as the rest needs them: whole or not there, locked, checked, fetched, found in the cache.

Code here knows paths, bytes and text formats. It does not know what a run, a picture or a network
is: their own rooms write and read those through this one.
"""

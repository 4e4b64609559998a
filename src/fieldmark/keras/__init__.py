"""Keras's files: HDF5 and its dangers, descriptions of models, their layers and tensors.

Nothing here needs Keras or runs code from a file. Networks that have a twin in Keras are in
``networks``; making a run of a file is ``jobs/import_keras.py``, the way back ``export``.
"""

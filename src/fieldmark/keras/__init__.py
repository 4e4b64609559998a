"""Keras's files: HDF5 and its dangers, descriptions of models, their layers and tensors.

Nothing here needs Keras or runs code from a file. Networks that have a twin in Keras are in
``networks``; ``jobs/import_keras.py`` makes a run from a file, and ``export`` a file from a run.
"""

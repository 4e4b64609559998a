"""Measurements of Fieldmark against other tools and against the machine: ``python -m benchmarks``.

Not installed with the package. Every benchmark is a module of its own with a ``prepare`` function;
its docstring is its description in ``docs/benchmarks.md``. What it runs are programs in ``peers``.
For Linux and macOS, from the repository's root.
"""

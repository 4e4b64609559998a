"""Doors for other people's code: what a plugin is, which are installed, what a run needs of them.

A plugin is an installed package with an entry point in the group ``fieldmark.plugins`` that names a
:class:`Plugin`. Its names stand beside those of the built-in tables, which stay where they are.
Entry points are found without importing them; a name that is built in never imports a plugin.
"""

from __future__ import annotations

from fieldmark.plugins.handed import handing, is_handed
from fieldmark.plugins.installed import (
    GROUP,
    Installed,
    Loaded,
    any_loaded,
    entries,
    find,
    forget,
    installed,
    load_all,
    names,
    troubles,
)
from fieldmark.plugins.needs import Need, check_needs, needs_of, read_needs
from fieldmark.plugins.plugin import KINDS, Plugin, kind_of

__all__ = [
    "GROUP",
    "KINDS",
    "Installed",
    "Loaded",
    "Need",
    "Plugin",
    "any_loaded",
    "check_needs",
    "entries",
    "find",
    "forget",
    "handing",
    "installed",
    "is_handed",
    "kind_of",
    "load_all",
    "names",
    "needs_of",
    "read_needs",
    "troubles",
]

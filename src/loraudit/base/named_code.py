"""Code that a table of data names as "module:name", and that is imported when it is needed."""

from importlib import import_module
from typing import Any


def resolve(dotted: str) -> Any:
    """Import the class or function that "module:name" names."""
    return getattr(import_module(module_of(dotted)), dotted.partition(":")[2])


def module_of(dotted: str) -> str:
    """Return the module of "module:name"; a rule's digest must be told of it."""
    return dotted.partition(":")[0]

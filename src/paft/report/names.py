"""Names of merge methods and objectives, from their registries; a type that is in none has its own.

Stores hold type names, the command line and results.csv hold names, tables and pictures titles.
"""

from paft.merge.methods import METHODS
from paft.objectives import OBJECTIVES

TAKEN = "taken"
"""In place of an objective: a preference branch that was trained elsewhere."""


def merge_name(kind: str) -> str:
    """Of the merge config type `kind`, as on the command line."""
    return next((name for name, method in METHODS.items() if method.__name__ == kind), kind)


def merge_title(name: str) -> str:
    return METHODS[name].title if name in METHODS else name


def merge_place(name: str) -> int:
    """Where a method stands in tables: that of the registry, others behind."""
    return list(METHODS).index(name) if name in METHODS else len(METHODS)


def objective_name(kind: str) -> str:
    """Of the preference config type `kind`, as on the command line."""
    return next((name for name, objective in OBJECTIVES.items() if objective.__name__ == kind), kind)


def objective_title(name: str) -> str:
    return OBJECTIVES[name].title if name in OBJECTIVES else name


def objective_place(name: str) -> int:
    return list(OBJECTIVES).index(name) if name in OBJECTIVES else len(OBJECTIVES)

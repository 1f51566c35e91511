"""Every merge there is, from the registry: each method at its defaults, in each space that it allows."""

from collections.abc import Iterator

from paft.config import MergeConfig
from paft.merge.methods import METHODS


def merges() -> Iterator[MergeConfig]:
    return (method(space=space) for method in METHODS.values() for space in method.spaces)


def named(method: MergeConfig) -> str:
    """As a test of it is called."""
    return f"{method.name}-{method.space.value}"

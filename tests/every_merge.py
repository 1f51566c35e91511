"""Every merge there is, from the registry: each method at its defaults, in each space that it allows."""

from collections.abc import Iterator

from paft.config import MergeConfig
from paft.merge.method import Method
from paft.merge.methods import METHODS


def merges() -> Iterator[MergeConfig]:
    return (method(space=space) for method in METHODS.values() for space in method.spaces)


def may_refuse(method: MergeConfig) -> bool:
    """Whether it measures deltas before it merges them, and says what of; see test_useless_merges_are_refused."""
    return type(method).refuse is not Method.refuse


def named(method: MergeConfig) -> str:
    """As a test of it is called."""
    return f"{method.name}-{method.space.value}"

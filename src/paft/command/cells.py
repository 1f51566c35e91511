"""The typed configs of a grid's cells, each as Hydra composes it alone, with what cells share done once.

Composing a cell takes Hydra a sixth of a second, and typing it a third of that; most cells differ from others in a few
plain values. Hydra merges the chosen files first and sets the values of the command line last, in order. So cells with
the same files share one composed config, in which the values of each are set in turn; and a root key with a content
met before has the typed value it had then. Whatever is no plain value is left to Hydra, and so is the wording of every
mistake.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from omegaconf import MISSING, DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from paft.command.compose import UNTYPED, check_lambda, checked, root_values, to_config
from paft.config import RunConfig

Words = tuple[str, ...]
Scalar = bool | int | float | str | None
KEY = re.compile(r"\w+(\.\w+)*")
MISTAKES = (LookupError, ValueError, HydraException, OmegaConfBaseException)


def compose_alone(number: int, words: Words) -> RunConfig:
    return to_config(hydra.compose("train", overrides=list(words)))


def compose_cells(
    cells: Iterable[Sequence[str]], alone: Callable[[int, Words], RunConfig] = compose_alone
) -> list[RunConfig]:
    """`alone` of every cell's number and words, where Hydra is initialised.

    Raises what that raises for the first cell that is wrong. Cells may hold parts in common: change none in place.
    """
    composer = _Composer(alone)
    return [composer(number, tuple(words)) for number, words in enumerate(cells)]


class _Composer:
    """Composes one cell after the other and remembers what they share."""

    def __init__(self, alone: Callable[[int, Words], RunConfig]) -> None:
        self.alone = alone
        self.composed: dict[Words, _Composed] = {}
        self.groups: dict[str, bool] = {}
        """Key -> whether it chooses files."""
        self.typed: dict[tuple[str, str, str], Any] = {}
        """(root key, dataclasses, resolved content) -> the typed value."""

    def __call__(self, number: int, words: Words) -> RunConfig:
        chosen, values = self.split(words)
        try:
            if chosen not in self.composed:
                self.composed[chosen] = _Composed.of(chosen)
            composed = self.composed[chosen]
            with composed.holding(values):
                return self.config(composed, {key.partition(".")[0] for key in values})
        except MISTAKES:
            self.composed.pop(chosen, None)  # its values may not have been put back
            return self.alone(number, words)

    def config(self, composed: "_Composed", changed: set[str]) -> RunConfig:
        """`to_config`, each of whose checks is of one root key, or of the typed whole.

        Raises `LookupError` for a value that is missing, which is left to the whole of `to_config`.
        """
        check_lambda(composed.config)
        contents = {name: (name, *composed.content_of(name, changed)) for name in composed.names}
        new = [name for name, content in contents.items() if content not in self.typed]
        needed = {f.name for f in fields(RunConfig) if f.default == MISSING}
        if needed - contents.keys() or any(f"'{MISSING}'" in content for _, _, content in contents.values()):
            raise LookupError(MISSING)
        if new:
            typed = root_values(composed.config, new)
            self.typed |= {contents[name]: typed[name] for name in new}
        values = {name: self.typed[content] for name, content in contents.items()}
        return checked(values) if new else RunConfig(**values)

    def split(self, words: Words) -> tuple[Words, dict[str, Scalar]]:
        """The words that choose files or change what keys there are, and the plain values of the others by key.

        A plain value may be set in any order: no other word is about its key, what is above it, or in it.
        """
        parsed = {word: _parsed(word) for word in words}
        if any(o.key_or_group == "hydra.searchpath" for o in parsed.values()):  # brings files and groups
            return words, {}
        values = [(word, o) for word, o in parsed.items() if not self.is_group(o.key_or_group)]
        plain = {
            word: o
            for word, o in values
            if _is_plain(o) and not any(_overlap(o, other) for w, other in values if w != word)
        }
        return tuple(w for w in words if w not in plain), {o.key_or_group: _scalar(o) for o in plain.values()}

    def is_group(self, key: str) -> bool:
        if key not in self.groups:
            options = GlobalHydra.instance().config_loader().get_group_options(key)
            self.groups[key] = bool(options)
        return self.groups[key]


@dataclass(frozen=True)
class _Composed:
    """What Hydra composes of the words that are no plain values."""

    config: DictConfig
    unresolved: dict[str, Any]
    """Its content, to put back what a cell has changed."""
    schemas: dict[str, str]
    """Root key -> the dataclasses of all that is in it."""
    fixed: dict[str, str]
    """Root key -> its content, of those that refer to no other."""

    @classmethod
    def of(cls, words: Words) -> "_Composed":
        config = hydra.compose("train", overrides=list(words))
        content = OmegaConf.to_container(config, resolve=False)
        assert isinstance(content, dict)
        unresolved = {str(name): value for name, value in content.items()}
        schemas = {name: repr(list(_schemas(config, name))) for name in unresolved}
        fixed = {name: text for name, value in unresolved.items() if "${" not in (text := repr(value))}
        return cls(config, unresolved, schemas, fixed)

    @property
    def names(self) -> list[str]:
        return [name for name in self.schemas if name not in UNTYPED]

    def content_of(self, name: str, changed: set[str]) -> tuple[str, str]:
        """The dataclasses and the resolved content of a root key now, of which some were changed."""
        if name in self.fixed and name not in changed:
            return self.schemas[name], self.fixed[name]
        value = self.config[name]
        if isinstance(value, DictConfig | ListConfig):
            value = OmegaConf.to_container(value, resolve=True)
        return self.schemas[name], repr(value)

    @contextmanager
    def holding(self, values: dict[str, Scalar]) -> Iterator[None]:
        """With these values set as Hydra sets them. Raises `LookupError` for a key that holds no plain value."""
        before = {key: self.value(key) for key in values}
        for key, value in values.items():
            OmegaConf.update(self.config, key, value, merge=True)
        yield
        for key, value in before.items():
            OmegaConf.update(self.config, key, value, merge=True)

    def value(self, key: str) -> Any:
        node: Any = self.unresolved
        for name in key.split("."):
            node = node.get(name, {}) if isinstance(node, dict) else {}
        if isinstance(node, dict | list):
            raise LookupError(key)
        return node


def _schemas(node: DictConfig | ListConfig, key: Any, at: str = "") -> Iterator[str]:
    """The place and the dataclass of every mapping in what a config has at a key."""
    child = None if OmegaConf.is_missing(node, key) else node[key]
    if isinstance(child, DictConfig):
        yield f"{at} {OmegaConf.get_type(child)!r}"
    if isinstance(child, DictConfig | ListConfig):
        for name in child if isinstance(child, DictConfig) else range(len(child)):
            yield from _schemas(child, name, f"{at}.{name!r}")


@cache
def _parsed(word: str) -> Override:
    return OverridesParser.create().parse_override(word)


def _is_plain(override: Override) -> bool:
    """Whether it sets a key to text without interpolations, a number, true, false or null."""
    if (
        override.type is not OverrideType.CHANGE
        or override.package is not None
        or override.is_hydra_override()
    ):
        return False
    value = override.value()
    literal = "${" not in value if isinstance(value, str) else isinstance(value, Scalar)
    return literal and KEY.fullmatch(override.key_or_group) is not None


def _scalar(override: Override) -> Scalar:
    value = override.value()
    assert isinstance(value, Scalar)
    return value


def _overlap(one: Override, other: Override) -> bool:
    a, b = (o.key_or_group.split(".") for o in (one, other))
    return a[: len(b)] == b[: len(a)]

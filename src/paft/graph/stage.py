"""A stage and its key; importing this module loads no torch.

A stage is a pure function of (its own config, its input folders) into one folder. The key is the sha256 of
the canonical JSON of {stage, version, config with type names, keys of the inputs}, so two runs that would do
the same work name the same folder. `paft.store.store` keeps the finished ones.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from functools import cached_property
from typing import Any, Generic, TypeVar

from paft.config.checks import identifies
from paft.files.fingerprint import digest
from paft.graph.stages import Kind, kind_of


def canonical(value: Any, *, whole: bool = False) -> Any:
    """`value` as plain JSON data with type names.

    Fields that cannot change a result (`identity=False`), and those with a default that older keys do not know of
    (`identity="unless default"`), are left out, unless `whole`.
    """
    if isinstance(value, Enum):
        return value.value
    if is_dataclass(value) and not isinstance(value, type):
        names = [f.name for f in fields(value) if whole or identifies(f, getattr(value, f.name))]
        return {"type": type(value).__name__} | {k: canonical(getattr(value, k), whole=whole) for k in names}
    if isinstance(value, Mapping):
        return {str(k): canonical(v, whole=whole) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [canonical(v, whole=whole) for v in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a stage config holds only dataclasses, lists, dicts and primitives, got {value!r}")


Config = TypeVar("Config", covariant=True)


@dataclass(frozen=True)
class Stage(Generic[Config]):
    """One box of the graph: what to do (`config`, one of `paft.graph.configs`), on what (`inputs`)."""

    name: str
    version: int
    config: Config
    inputs: Mapping[str, "Stage[Any]"] = field(default_factory=dict)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Everything that determines the result, inputs included in full: the lineage in stage.json."""
        return self._describe({name: stage.identity for name, stage in self.inputs.items()})

    @cached_property
    def key(self) -> str:
        """16 hexadecimal digits of the sha256 of {stage, version, config, input keys}."""
        return digest(self._describe({name: stage.key for name, stage in self.inputs.items()}))

    def _describe(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {"stage": self.name, "version": self.version, "config": self._config, "inputs": inputs}

    @cached_property
    def _config(self) -> Any:
        return canonical(self.config)

    @property
    def kind(self) -> Kind:
        """What stages like this one have in common."""
        return kind_of(self.name, self.config)

    def walk(self) -> Iterator["Stage[Any]"]:
        """Every stage this one needs, inputs first, itself last; each once."""
        seen: dict[str, Stage[Any]] = {}
        for stage in self.inputs.values():
            seen |= {s.key: s for s in stage.walk()}
        yield from (seen | {self.key: self}).values()

    def __str__(self) -> str:
        return f"{self.name} {self.key}"

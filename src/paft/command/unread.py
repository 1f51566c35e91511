"""What the graph of a cell does not read need not be given: `paradigm=sft` asks for no preference rows, and a branch
that is taken (`sft.adapter`) for none of its own.

A part is the beginning of a key, as `data.preference`. `merge` is read by `paradigm=parallel` alone, but for the
settings that every stage of that name has (`merge.keep`, `merge.dtype`, ...), which have defaults.
"""

from collections.abc import Iterable, Sequence
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import Field, fields, is_dataclass
from enum import Enum
from typing import Any, get_args, get_type_hints

from omegaconf import MISSING, DictConfig, OmegaConf

from paft.config import Paradigm, Rows, RunConfig, TakenKind

BRANCHES = ("sft", "preference")


def unread_parts(cfg: DictConfig) -> list[str]:
    """The parts of a composed config that its cell does not read; none where the paradigm is not a known one."""
    value = OmegaConf.select(cfg, "paradigm")
    if not isinstance(value, Paradigm) and value not in {paradigm.value for paradigm in Paradigm}:
        return []
    trained = Paradigm(value).branches
    with_rows = {branch for branch in trained if not _is_taken(cfg, branch)} | _scored_rows(cfg)
    with_rows |= set(trained) if Paradigm(value) is Paradigm.parallel and _needs_rows(cfg) else set()
    parts = [branch for branch in BRANCHES if branch not in trained]
    parts += [f"data.{branch}" for branch in BRANCHES if branch not in with_rows]
    parts += [
        f"data.{branch}.path" for branch in with_rows if _has_mixture(OmegaConf.select(cfg, f"data.{branch}"))
    ]
    return parts if Paradigm(value) is Paradigm.parallel else [*parts, "merge"]


def _is_taken(cfg: DictConfig, branch: str) -> bool:
    """Whether a branch is taken from elsewhere, and trained on no rows."""
    places = (OmegaConf.select(cfg, f"{branch}.{kind.value}") for kind in TakenKind)
    return any(place is not None for place in places)


def _needs_rows(cfg: DictConfig) -> bool:
    """Whether the merge looks at training rows of the branches."""
    method = OmegaConf.get_type(cfg, "merge") if "merge" in cfg else None
    return isinstance(method, type) and getattr(method, "needs", None) is not None


def refuse_unused(words: Iterable[str], configs: Sequence[RunConfig]) -> None:
    """Raise `ValueError` for a word of a command that says how to train a branch which every cell takes as it is, or of
    an adapter where every cell trains all weights, or lambda where every cell has a soup of several."""
    for word in words:
        key = word.lstrip("+~").partition("=")[0]
        if key in ("lambda", "sft.l1.weight") and all(config.sft.soup.lambdas for config in configs):
            raise ValueError(
                f"{word} has no effect: the trainings have the lambdas of sft.soup.lambdas="
                f"{configs[0].sft.soup.lambdas}; leave one of them out"
            )
        branch = "sft" if key == "lambda" else key.partition(".")[0]
        if branch not in BRANCHES or key in {f"{branch}.{kind.value}" for kind in TakenKind}:
            continue
        if is_in(key, [f"{branch}.lora"]) and all(getattr(config, branch).is_full for config in configs):
            raise ValueError(
                f"{word} has no effect: {branch}.tuning=full trains every weight and no adapter; leave one of them out"
            )
        taken = [getattr(config, branch).taken for config in configs]
        if taken and all(taken):
            kind, place = taken[0]
            raise ValueError(
                f"{word} has no effect: the branch is taken as it is, from {branch}.{kind.value}={place}; leave one of "
                "them out"
            )


def _scored_rows(cfg: DictConfig) -> set[str]:
    """The branches whose held-out rows are the items of a task."""
    tasks = OmegaConf.select(cfg, "evaluate.tasks")
    rows = (task.get("rows") for task in (tasks or {}).values() if isinstance(task, DictConfig))
    return {str(getattr(name, "value", name)) for name in rows if name} & {branch.value for branch in Rows}


def _has_mixture(source: Any) -> bool:
    """Whether a source of files says `mix` in place of `path`."""
    return isinstance(source, DictConfig) and "mix" in source and bool(source["mix"])


def is_in(key: str, parts: list[str]) -> bool:
    """Whether a key is one of the parts or inside one."""
    return any(key == part or key.startswith(f"{part}.") for part in parts)


def fill(typed: DictConfig, key: str) -> None:
    """Give what is missing at `key`, and nothing will read, a value of its type."""
    at, _, name = key.rpartition(".")
    node = OmegaConf.select(typed, at) if at else typed
    schema: Any = OmegaConf.get_type(node)
    (option,) = (f for f in fields(schema) if f.name == name)
    node[name] = _placeholder(option, get_type_hints(schema)[name])


def _placeholder(option: "Field[Any]", hint: Any) -> Any:
    kind: Any = next((kind for kind in (hint, *get_args(hint)) if isinstance(kind, type)), hint)
    if is_dataclass(kind):
        made = OmegaConf.structured(kind)
        for inner in fields(kind):
            if OmegaConf.is_missing(made, inner.name):
                made[inner.name] = _placeholder(inner, get_type_hints(kind)[inner.name])
        return made
    if option.default not in (NO_DEFAULT, MISSING):
        return option.default
    if kind is Any:
        return ""
    return next(iter(kind)) if issubclass(kind, Enum) else kind()

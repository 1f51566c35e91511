"""Merge two adapter folders into a model: python -m paft.merge --method ties --base DIR --sft DIR ..."""

import argparse
from dataclasses import MISSING, Field, fields
from enum import Enum
from pathlib import Path
from typing import Any, get_args, get_type_hints

from paft.config import SCHEMAS, MergeConfig
from paft.data.standalone import brought_tokenizer, copy_tokenizer
from paft.merge.apply import merge_adapters
from paft.store.appearing import appearing

METHODS = {name: kind for name, kind in SCHEMAS.items() if issubclass(kind, MergeConfig)}


def main(arguments: list[str] | None = None) -> None:
    """Parse, merge, print what was done. The options are the fields of the chosen method's dataclass.

    The model has the tokenizer and generation_config that the adapters bring, else the base's. Raises `ValueError`
    for an `--out` in use.
    """
    parser = argparse.ArgumentParser(prog="python -m paft.merge", description=__doc__, add_help=False)
    parser.add_argument("--method", required=True, choices=METHODS)
    method = METHODS[parser.parse_known_args(arguments)[0].method]
    parser.add_argument("--help", action="help", help="the options of the chosen method")
    for name in ("base", "sft", "preference", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True, metavar="DIR")
    options = [f for f in fields(method) if f.metadata.get("identity", True)]
    for option in options:
        add_option(parser, option, get_type_hints(method)[option.name])
    given = parser.parse_args(arguments)
    chosen = method(**{option.name: getattr(given, option.name) for option in options})
    adapters = {"sft": given.sft, "preference": given.preference}
    brought = brought_tokenizer(adapters.values(), given.base)
    with appearing(given.out) as out:
        report = merge_adapters(given.base, adapters, chosen, out)
        if brought is not None:
            copy_tokenizer(brought, out)
    print(report["variant"])
    for key, value in report.items():
        if isinstance(value, int | float):
            print(f"{key:16} {value:.6g}")


def add_option(parser: argparse.ArgumentParser, option: "Field[Any]", kind: Any) -> None:
    """One field as `--name`: a choice for an enum, `--name/--no-name` for a bool, else numbers."""
    default = option.default_factory() if option.default_factory is not MISSING else option.default
    flag = f"--{option.name.replace('_', '-')}"
    kind = next((k for k in get_args(kind) if isinstance(k, type) and issubclass(k, Enum)), kind)
    if kind is bool:
        parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=default)
    elif isinstance(kind, type) and issubclass(kind, Enum):
        parser.add_argument(flag, type=kind, choices=list(kind), default=default, metavar=_either(kind))
    elif isinstance(default, list):
        parser.add_argument(flag, type=get_args(kind)[0], nargs=len(default), default=default)
    else:
        number = int if kind is int else float
        parser.add_argument(flag, type=number, default=default)


def _either(kind: type[Enum]) -> str:
    return "|".join(member.value for member in kind)


if __name__ == "__main__":
    main()

"""Merge two adapter folders into a model: python -m paft.merge --method ties --base DIR --sft DIR ...

With --method given, --help also lists the options of that method.
"""

import argparse
from dataclasses import MISSING, Field, fields
from enum import Enum
from pathlib import Path
from typing import Any, get_args, get_type_hints

from paft.chat.standalone import brought_tokenizer, copy_tokenizer
from paft.chat.vocabulary import refuse_other_vocabulary
from paft.config import MergeConfig, require
from paft.delta.adapter import NAMES_OF_BASE
from paft.files.appearing import appearing
from paft.merge.apply import merge_adapters
from paft.merge.methods import METHODS
from paft.merge.origin import refuse_other_base

ALIASES = {"dare_ties": "dare"}
"""mergekit's name of a method -> ours."""


def main(arguments: list[str] | None = None) -> None:
    """Parse, merge, print what was done; exits with code 2 and a message where it cannot be done.

    The options are the fields of the chosen method's dataclass. The model has the tokenizer and generation_config that
    the adapters bring, else the base's.
    """
    parser = argparse.ArgumentParser(prog="python -m paft.merge", description=__doc__, add_help=False)
    parser.add_argument("--method", required=True, type=_name, choices=METHODS)
    method = _method(arguments)
    parser.add_argument("-h", "--help", action="help", help="show this and exit")
    for name in ("base", "sft", "preference", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True, metavar="DIR")
    known = "the adapters were trained on this base, whatever name or path they give it"
    parser.add_argument("--same-base", action="store_true", help=known)
    options = [f for f in fields(method) if f.metadata.get("identity", True)] if method else []
    for option in options:
        assert method is not None
        add_option(parser, option, get_type_hints(method)[option.name])
    given = parser.parse_args(arguments)
    assert method is not None, "--method is required"
    adapters = {"sft": given.sft, "preference": given.preference}
    try:
        chosen = method(**{option.name: getattr(given, option.name) for option in options})
        for name, folder in {"base": given.base, **adapters}.items():
            require(folder.is_dir(), f"--{name}", str(folder), "a folder")
        if not given.same_base:
            refuse_other_base(given.base, adapters)
        refuse_other_vocabulary(given.base, adapters)
        # the first is compared with the base itself, the others with each other
        same = NAMES_OF_BASE if given.same_base else NAMES_OF_BASE[:1]
        brought = brought_tokenizer(adapters.values(), given.base)
        with appearing(given.out) as out:
            report = merge_adapters(given.base, adapters, chosen, out, same=same)
            if brought is not None:
                copy_tokenizer(brought, out)
    except (ValueError, OSError) as error:
        parser.exit(2, f"error: {error}\n")
    print(report["variant"])
    for key, value in report.items():
        if isinstance(value, int | float):
            print(f"{key:16} {value:.6g}")


def _name(word: str) -> str:
    return ALIASES.get(word, word)


def _method(arguments: list[str] | None) -> type[MergeConfig] | None:
    """The method of the command line, which says what other options there are; None where it has none."""
    first = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    first.add_argument("--method", type=_name, choices=METHODS)
    try:
        return METHODS.get(first.parse_known_args(arguments)[0].method)
    except argparse.ArgumentError:
        return None  # the whole parser says what is wrong


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

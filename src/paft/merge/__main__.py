"""Merge two branches into a model or an adapter: python -m paft.merge --method ties --base DIR --sft DIR ...

A branch is a PEFT adapter or a whole fine-tuned model. With --method given, --help also lists the options of that
method. A mergekit YAML runs as it is: python -m paft.merge config.yml --out DIR
"""

import argparse
import sys
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields
from enum import Enum
from pathlib import Path
from typing import Any, get_args, get_type_hints

from paft.chat.standalone import brought_tokenizer, copy_tokenizer
from paft.chat.vocabulary import refuse_other_vocabulary
from paft.config import MergeConfig, MergeOutput, require
from paft.delta.adapter import NAMES_OF_BASE
from paft.delta.checkpoint import is_checkpoint
from paft.files.appearing import appearing
from paft.merge.apply import plan_merge, variant, write_model
from paft.merge.as_adapter import write_adapter
from paft.merge.mergekit.command import merge_recipe, names_recipe
from paft.merge.mergekit.written import write_config
from paft.merge.methods import METHODS
from paft.merge.origin import refuse_other_base
from paft.merge.planned import PlannedMerge

ALIASES = {"dare_ties": "dare"}
"""mergekit's name of a method -> ours."""


def main(arguments: list[str] | None = None) -> None:
    """Parse, merge, print what was done; exits with code 2 and a message where it cannot be done.

    The options are the fields of the chosen method's dataclass. The model has the tokenizer and generation_config that
    the branches bring, else the base's.
    """
    words = sys.argv[1:] if arguments is None else arguments
    if names_recipe(words):
        return say(merge_recipe(words))
    method = _method(words)
    parser = _parser(method)
    given = parser.parse_args(words)
    assert method is not None, "--method is required"
    try:
        chosen = method(**{option.name: getattr(given, option.name) for option in _options(method)})
        for name in ("base", "sft", "preference", "tokenizer"):
            folder = getattr(given, name)
            require(folder is None or folder.is_dir(), f"--{name}", str(folder), "a folder")
        branches = {"sft": given.sft, "preference": given.preference}
        if given.write_config:
            write_config(given.write_config, given.base, branches, chosen)
            return print(f"{given.write_config}: {variant(chosen)}")
        say(_merge(given, branches, chosen))
    except (ValueError, OSError) as error:
        parser.exit(2, f"error: {error}\n")


def _parser(method: type[MergeConfig] | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m paft.merge", description=__doc__, add_help=False)
    parser.add_argument("--method", required=True, type=_name, choices=METHODS)
    parser.add_argument("-h", "--help", action="help", help="show this and exit")
    for name in ("base", "sft", "preference"):
        parser.add_argument(f"--{name}", type=Path, required=True, metavar="DIR")
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--out", type=Path, metavar="DIR", help="a new or empty folder for the result")
    as_yaml = "write the merge as a mergekit YAML in place of merging"
    target.add_argument("--write-config", type=Path, metavar="FILE", help=as_yaml)
    whose = "whose tokenizer and chat template the result gets; else that of the branches, else the base's"
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help=whose)
    known = "the adapters were trained on this base, whatever name or path they give it"
    parser.add_argument("--same-base", action="store_true", help=known)
    compared = "read the result back with transformers and compare its logits with base + delta"
    parser.add_argument("--prove", action=argparse.BooleanOptionalAction, default=True, help=compared)
    for option in _options(method):
        add_option(parser, option, get_type_hints(method)[option.name])
    return parser


def _options(method: type[MergeConfig] | None) -> list["Field[Any]"]:
    return [f for f in fields(method) if f.metadata.get("identity", True)] if method else []


def _merge(given: argparse.Namespace, branches: dict[str, Path], method: MergeConfig) -> dict[str, Any]:
    if not given.same_base:
        adapters = {name: folder for name, folder in branches.items() if not is_checkpoint(folder)}
        refuse_other_base(given.base, adapters)
    # the first is compared with the base itself, the others with each other
    same = NAMES_OF_BASE if given.same_base else NAMES_OF_BASE[:1]
    whose = branches if given.tokenizer is None else branches | {"given": given.tokenizer}
    refuse_other_vocabulary(given.base, whose)
    brought = given.tokenizer or brought_tokenizer(branches.values(), given.base)
    with appearing(given.out) as out:
        merge = plan_merge(given.base, branches, method, same=same)
        report = written(merge, method, out, prove=given.prove)
        if brought is not None:
            copy_tokenizer(brought, out)
    return report


def say(report: Mapping[str, Any]) -> None:
    """Print a report: what was merged, every number, what the proof says."""
    print(report["variant"])
    for key, value in report.items():
        if isinstance(value, int | float):
            print(f"{key:16} {value:.6g}")
    if "proof" in report:
        print(f"{'proof':16} {report['proof']}")


def written(merge: PlannedMerge, method: MergeConfig, out: Path, *, prove: bool) -> dict[str, Any]:
    """The report of what was written to `out`, with what its proof says in words."""
    as_adapter = method.output is MergeOutput.adapter
    report = write_adapter(merge, out, rank=method.rank) if as_adapter else write_model(merge, out)
    if prove:
        from paft.merge.proof import described, prove_adapter, prove_model  # torch, and seconds

        report["proof"] = described(
            prove_adapter(merge, out) if as_adapter else prove_model(merge, out, report)
        )
    return report


def _name(word: str) -> str:
    return ALIASES.get(word, word)


def _method(words: list[str]) -> type[MergeConfig] | None:
    """The method of the command line, which says what other options there are; None where it has none."""
    first = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    first.add_argument("--method", type=_name, choices=METHODS)
    try:
        return METHODS.get(first.parse_known_args(words)[0].method)
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
        number = int if int in (kind, *get_args(kind)) else float
        parser.add_argument(flag, type=number, default=default)


def _either(kind: type[Enum]) -> str:
    return "|".join(member.value for member in kind)


if __name__ == "__main__":
    main()

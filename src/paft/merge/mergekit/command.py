"""Run a mergekit YAML: python -m paft.merge config.yml --out DIR"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from paft.files.appearing import appearing
from paft.merge.mergekit.run import merge_recipe

SUFFIXES = (".yml", ".yaml")


def names_recipe(arguments: Sequence[str]) -> bool:
    """Whether a command line of `python -m paft.merge` gives a YAML file in place of a method."""
    return any(word.endswith(SUFFIXES) for word in arguments) and not any(
        word.startswith("--m") for word in arguments
    )


def run(arguments: Sequence[str]) -> dict[str, object]:
    """Parse and merge; returns the report. Exits with code 2 and a message where it cannot be done."""
    parser = argparse.ArgumentParser(prog="python -m paft.merge", description=__doc__)
    parser.add_argument("config", type=Path, help="a mergekit YAML of linear, slerp, nuslerp, task_arithmetic, ties, "
                        "dare_linear or dare_ties")  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--seed", type=int, default=42, help="of random masks")
    known = "the adapters were trained on the models that the file adds them to, whatever name they give them"
    parser.add_argument("--same-base", action="store_true", help=known)
    given = parser.parse_args(arguments)
    try:
        with appearing(given.out) as out:
            return merge_recipe(given.config, out, seed=given.seed, same_base=given.same_base)
    except (ValueError, OSError) as error:
        parser.exit(2, f"error: {error}\n")

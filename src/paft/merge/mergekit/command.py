"""Run a mergekit YAML: python -m paft.merge config.yml --out DIR

Its method is one of linear, slerp, nuslerp, task_arithmetic, ties, dare_linear and dare_ties. What mergekit would do
and this does not is refused by its name in the file.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from paft.files.appearing import appearing
from paft.merge.apply import write_model
from paft.merge.mergekit.run import plan_recipe

SUFFIXES = (".yml", ".yaml")


def names_recipe(words: Sequence[str]) -> bool:
    """Whether a command line of `python -m paft.merge` gives a YAML file in place of a method."""
    files = [word for word in words if word.endswith(SUFFIXES) and not word.startswith("-")]
    return bool(files) and not any(word.startswith("--m") for word in words)


def merge_recipe(words: Sequence[str]) -> dict[str, Any]:
    """Parse and merge; returns the report. Exits with code 2 and a message where it cannot be done."""
    parser = argparse.ArgumentParser(prog="python -m paft.merge", description=__doc__)
    parser.add_argument("config", type=Path, metavar="FILE")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--seed", type=int, default=42, help="of random masks")
    compared = "read the result back with transformers and compare its logits with what was merged"
    parser.add_argument("--prove", action=argparse.BooleanOptionalAction, default=True, help=compared)
    given = parser.parse_args(words)
    try:
        recipe = plan_recipe(given.config, seed=given.seed)
        with appearing(given.out) as out:
            report = write_model(recipe.merge, out)
            recipe.write_beside(out)
            if given.prove:
                from paft.merge.proof import described, prove_model  # torch, and seconds

                report["proof"] = described(prove_model(recipe.merge, out, report))
    except (ValueError, OSError) as error:
        parser.exit(2, f"error: {error}\n")
    return report

"""Files of answers and of judgements, in alpaca-eval's format: a JSON list of objects, or JSON lines.

An outputs file has `instruction` and `output`; an annotations file `instruction`, `output_1` (the reference's),
`output_2` (the model's) and `preference`: 1 where the first is better, 2 where the second is, anything between for a
probability, 1.5 (or 0) for a draw, null where the judge's answer could not be read.
"""

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paft.files.jsonfile import parse

Row = dict[str, Any]
DRAW = 1.5
"""The preference of two answers that are as good."""
TEXTS = ("instruction", "output")
JUDGED = ("instruction", "output_1", "output_2")


@dataclass(frozen=True)
class Pair:
    """An instruction with two answers to it."""

    instruction: str
    first: str
    """The reference's."""
    second: str
    """The model's."""

    @property
    def same(self) -> bool:
        """A draw that nobody needs to judge."""
        return self.first == self.second


def read_outputs(path: Path, at: str) -> dict[str, Row]:
    """Instruction -> row of a file of answers.

    Raises `ValueError` naming `at`, the file and the row for anything else, and an instruction that stands twice.
    """
    rows = read_rows(path, at, TEXTS)
    refuse_twice((row["instruction"] for row in rows), f"{at} {path}")
    return {row["instruction"]: row for row in rows}


def read_annotations(path: Path, at: str) -> list[Row]:
    """Judgements in the order of their file.

    Raises `ValueError` as `read_outputs`, and for a preference that is none.
    """
    rows = read_rows(path, at, JUDGED)
    for number, row in enumerate(rows, 1):
        value = row.get("preference", "absent")
        if not is_preference(value):
            raise ValueError(
                f"{at} {path}: row {number} has the preference {value!r:.40}; it must be a number from 1 (the "
                "reference's answer is better) to 2 (the model's is), 0 for a draw, or null"
            )
    return rows


def is_preference(value: object) -> bool:
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        return value is None or value == 0 or 1 <= value <= 2
    return False


def read_rows(path: Path, at: str, texts: Sequence[str]) -> list[Row]:
    """The objects of a JSON file, or of a .jsonl file with one in each line, that have these texts."""
    if not os.path.isfile(path):
        raise ValueError(f"{at} {path} is not a file")
    try:
        raw = path.read_bytes()
        rows = [parse(line) for line in raw.splitlines() if line.strip()] if _is_lines(path) else parse(raw)
    except ValueError as error:
        raise ValueError(f"{at} {path} cannot be read: {error}") from None
    if not isinstance(rows, list) or not rows:
        given = "an empty list" if rows == [] else f"{type(rows).__name__}"
        raise ValueError(f"{at} {path} must be a list of objects, one an instruction; it is {given}")
    for number, row in enumerate(rows, 1):
        _require_texts(row, texts, f"{at} {path}: row {number}")
    return rows


def _is_lines(path: Path) -> bool:
    return path.suffix in (".jsonl", ".ndjson")


def _require_texts(row: object, texts: Sequence[str], where: str) -> None:
    if not isinstance(row, Mapping):
        raise ValueError(f"{where} must be an object, got {row!r:.60}")
    for name in texts:
        if name not in row:
            raise ValueError(f"{where} has no {name!r}, it has {', '.join(map(repr, row)) or 'nothing'}")
        if not isinstance(row[name], str):
            raise ValueError(f"{where}: {name!r} must be text, got {row[name]!r:.60}")


def refuse_twice(instructions: Iterable[str], where: str) -> None:
    """Raise `ValueError` naming an instruction that stands more than once: which of its answers counts?"""
    twice = [text for text, times in Counter(instructions).items() if times > 1]
    if twice:
        raise ValueError(f"{where}: {_named(twice)} more than once; keep one row of each")


def pairs(outputs: Mapping[str, Row], reference: Mapping[str, Row]) -> list[Pair]:
    """The answers to one instruction each, in the reference's order.

    Instructions of the reference may be without an output. Raises `ValueError` naming one that is not the reference's.
    """
    if foreign := [text for text in outputs if text not in reference]:
        raise ValueError(f"the reference has no answer to {_named(foreign)}; both must answer the same ones")
    return [
        Pair(instruction, row["output"], outputs[instruction]["output"])
        for instruction, row in reference.items()
        if instruction in outputs
    ]


def refuse_other(annotations: Sequence[Row], answered: Sequence[Pair], where: str) -> None:
    """Raise `ValueError` unless each pair has one judgement, and each judgement is of a pair."""
    refuse_twice((row["instruction"] for row in annotations), where)
    known = {pair.instruction: pair for pair in answered}
    judged = {row["instruction"]: row for row in annotations}
    if foreign := [text for text in judged if text not in known]:
        raise ValueError(f"{where}: the outputs have no answer to {_named(foreign)}")
    for number, name in ((1, "first"), (2, "second")):
        key = f"output_{number}"
        if others := [text for text, row in judged.items() if row[key] != getattr(known[text], name)]:
            whose = "the reference's" if number == 1 else "the model's"
            raise ValueError(
                f"{where}: {key} is not {whose} answer in {_named(others)}; the file is of other outputs"
            )
    if missing := [text for text in known if text not in judged]:
        raise ValueError(
            f"{where} has no judgement of {_named(missing)}; `python -m paft.judge run` judges what is missing"
        )


def _named(instructions: Sequence[str]) -> str:
    first = f"the instruction {instructions[0]!r:.80}"
    return (
        first if len(instructions) == 1 else f"{len(instructions)} instructions, the first being {first[16:]}"
    )

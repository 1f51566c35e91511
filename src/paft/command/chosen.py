"""What is chosen by some rows must not be scored on them: greedy soups, whose trainings validation rows choose."""

from collections.abc import Iterator
from typing import Any

from paft.config import RunConfig, SoupKind
from paft.data.held_out import opening
from paft.data.sources import Split, conversations, holds_pairs, preference_pairs, unpaired_rows


def refuse_scored_by(config: RunConfig) -> None:
    """Raise `ValueError` for validation rows of a greedy soup whose question is an item of the evaluation.

    A row's question is the first thing its user says; an item has it if it is one of its texts, whatever the field.
    """
    greedy = [name for name in config.paradigm.branches if getattr(config, name).soup.kind is SoupKind.greedy]
    if not greedy:
        return
    from paft.evaluate.columns import manager_for, texts_of_items  # lm-eval

    items = texts_of_items(config.evaluate, manager_for(config.evaluate))
    for column, task in config.evaluate.tasks.items():
        if task.rows:
            items[column] = set(questions(task.rows.value, config, "held_out"))
    for name in greedy:
        asked = list(questions(name, config, "validation"))
        for column, texts in items.items():
            if both := [question for question in asked if question in texts]:
                raise ValueError(
                    f"{len(both)} of the {len(asked)} validation rows of data.{name} are items of "
                    f"evaluate.tasks.{column}, as {both[0][:80]!r}: trainings that {name}.soup.kind=greedy chooses by "
                    "them would be scored by them. Give other validation rows, or leave the column out"
                )


def questions(branch: str, config: RunConfig, split: Split) -> Iterator[str]:
    """The questions of a branch's rows, in order."""
    source = getattr(config.data, branch)
    read: Any = conversations
    if branch == "preference":
        single = config.preference.rows == "unpaired" and not holds_pairs(source)
        read = unpaired_rows if single else preference_pairs
    return (opening(row).strip() for _, row in read(source, split))

"""Unpaired rows: pairs split into two of them, and the mismatched answer that KTO's reference point asks about."""

import logging
from collections.abc import Iterable, Iterator

from paft.chat.tokens import EncodedAnswer, EncodedPair

log = logging.getLogger("paft")

APART = 2
"""How many pairs later than a chosen answer's own that of the rejected answer behind it is: with 1, the next row of a
rejected answer would be its own pair's chosen one."""


def split_pairs(pairs: Iterable[EncodedPair]) -> Iterator[EncodedAnswer]:
    """Two rows of each pair, as TRL's `unpair_preference_dataset` makes: good the chosen answer, bad the rejected one.

    They alternate, and a rejected answer comes two pairs early, the first two last, so that of three pairs or more no
    row is followed by one with its own prompt. TRL has all the good ones first.
    """
    chosen, rejected = list[EncodedAnswer](), list[EncodedAnswer]()
    for pair in pairs:
        chosen.append(EncodedAnswer(pair.prompt_ids, pair.chosen_ids, True, []))
        rejected.append(EncodedAnswer(pair.prompt_ids, pair.rejected_ids, False, []))
        if len(chosen) > APART:
            yield chosen.pop(0)
            yield rejected.pop()
    for good, bad in zip(chosen, rejected, strict=True):
        yield good
        yield bad


def mismatched(rows: Iterable[EncodedAnswer], max_length: int, name: str) -> Iterator[EncodedAnswer]:
    """Each row with the answer of the next one, the last with that of the first: x_i with y_(i+1 mod n).

    Ethayarajh et al. (2024) offset the rows of a batch so; here it is done once for all rows in stored order, so that
    it depends on neither seed nor batch, and every answer is mismatched once. Of a batch of all rows it is TRL's
    rotation, in the other direction. As in TRL, what is beyond `max_length` tokens is cut off the end. Rows followed by
    one with the same prompt are counted in the log, under the `name` of the rows.
    """
    first = last = None
    matched = 0
    for row in rows:
        if last is not None:
            matched += last.prompt_ids == row.prompt_ids
            yield _with_answer_of(row, last, max_length)
        first, last = first or row, row
    if first is not None and last is not None:
        yield _with_answer_of(first, last, max_length)
    if matched:
        log.warning(
            "%s: %d rows are followed by one with the same prompt, whose answer then counts as one to another prompt "
            "in KTO's reference point; shuffle the file",
            name, matched,
        )  # fmt: skip


def _with_answer_of(other: EncodedAnswer, row: EncodedAnswer, max_length: int) -> EncodedAnswer:
    return row._replace(mismatched_ids=other.answer_ids[: max_length - row.prompt_length])


def of_both_labels(rows: Iterable[EncodedAnswer], name: str) -> Iterator[EncodedAnswer]:
    """The rows, counted in the log. Raises `ValueError` after the last if all of them are good or all are bad."""
    good = bad = 0
    for row in rows:
        good, bad = good + row.label, bad + (not row.label)
        yield row
    if good and bad:
        log.info("%s: %d good and %d bad answers", name, good, bad)
    elif good:
        raise ValueError(
            f"{name}: label is true in all {good} rows, and single answers are learnt from good and bad ones; bring "
            "rows whose label is false, or train the SFT branch on these: paradigm=sft data.sft.path=..."
        )
    elif bad:
        raise ValueError(
            f"{name}: label is false in all {bad} rows, and single answers are learnt from good and bad ones; bring "
            "rows whose label is true"
        )

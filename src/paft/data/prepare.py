"""The data stage: a source, tokenised once, as Parquet files of token ids that training reads by index."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tqdm import tqdm

from paft.chat.batch import BatchEncoder
from paft.chat.conversation import Conversation, PreferencePair, UnpairedRow
from paft.chat.limits import within
from paft.chat.proof import proved_encoder
from paft.chat.tokens import Encoded, EncodedAnswer, EncodedPair
from paft.config import BadRows, Source, TooLong
from paft.data.ahead import ahead, batches, processes_for
from paft.data.faults import excess, fault, without_ends
from paft.data.held_out import write_held_out
from paft.data.sources import (
    PAIR,
    CheckedRows,
    Problems,
    Split,
    conversations,
    holds_pairs,
    preference_pairs,
    unpaired_rows,
)
from paft.data.tokens import write_rows
from paft.data.unpaired import mismatched, of_both_labels, split_pairs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Row = TypeVar("Row", Conversation, PreferencePair, UnpairedRow)
Tokens = TypeVar("Tokens", Encoded, EncodedPair, EncodedAnswer)
AnyTokens = Encoded | EncodedPair | EncodedAnswer
Encode = Callable[[Sequence[Row]], list[Tokens | ValueError]]

log = logging.getLogger("paft")

QUIET_SECONDS = 3
"""Work shorter than this shows no progress bar."""


@dataclass
class Counts:
    """What became of the rows of one split."""

    rows: int = 0
    """Written."""
    tokens: int = 0
    """Read in one epoch; a preference prompt counts twice, once with each answer."""
    label_tokens: int = 0
    """Learnt: all answers with their end-of-turn tokens."""
    bad_rows: int = 0
    """Left out because they do not parse, the template refuses them, or nothing can be learnt from their tokens
    (`bad_rows=drop`)."""
    dropped: int = 0
    """Left out because an answer is too long (`too_long=drop`)."""
    truncated_prompts: int = 0
    truncated_answers: int = 0
    longest: int = 0
    """Tokens of the longest sequence."""

    def add(self, whole: AnyTokens, kept: AnyTokens) -> None:
        lengths = kept.lengths
        self.tokens += sum(lengths)
        self.label_tokens += kept.num_labels
        self.longest = max(self.longest, *lengths)
        if kept is not whole:
            self.truncated_prompts += kept.prompt_length < whole.prompt_length
            self.truncated_answers += kept.answer_lengths != whole.answer_lengths


def prepare_sft(
    source: Source, tokenizer: "PreTrainedTokenizerBase", out: Path, positions: int | None = None
) -> dict[str, dict[str, Any]]:
    """Write `out/train.parquet`, and `validation.parquet` if the source has such a part; return their counts.

    Columns `input_ids` and `labels`, lists of int32. With `held_out` also those rows, as text. The result maps each
    split to the fields of `Counts`, `read_as`: what rows of files were taken for, and, where rows have fields that are
    not used, `ignored`: in how many rows each is; where pairs were split, `split_pairs`: how many.
    A model of `positions` reads no longer rows. Memory does not grow with the number of rows.
    Raises ValueError for a template that does not prove right, listing bad rows (before anything is tokenised) and,
    under `too_long=error`, rows whose answer does not fit; also if no row is left.
    """
    encoder = proved_encoder(tokenizer, source.special_tokens_in_text)
    return _prepare(within(source, positions), conversations, encoder.conversations, Encoded, encoder, out)


def prepare_preference(
    source: Source, tokenizer: "PreTrainedTokenizerBase", out: Path, positions: int | None = None
) -> dict[str, dict[str, Any]]:
    """As `prepare_sft`, with the columns `prompt_ids`, `chosen_ids` and `rejected_ids`."""
    encoder = proved_encoder(tokenizer, source.special_tokens_in_text)
    return _prepare(within(source, positions), preference_pairs, encoder.pairs, EncodedPair, encoder, out)


def prepare_unpaired(
    source: Source, tokenizer: "PreTrainedTokenizerBase", out: Path, positions: int | None = None
) -> dict[str, dict[str, Any]]:
    """As `prepare_sft`, with the columns `prompt_ids`, `answer_ids`, `label` and `mismatched_ids`.

    A source whose first row is a pair holds pairs, each of which becomes two rows; see `paft.data.unpaired`. Raises
    ValueError also if all rows have the same label, and for `held_out` of rows that are no pairs.
    """
    encoder = proved_encoder(tokenizer, source.special_tokens_in_text)
    source = within(source, positions)
    if holds_pairs(source):
        return _prepare(source, preference_pairs, encoder.pairs, EncodedAnswer, encoder, out)
    if source.held_out:
        raise ValueError(
            f"data.preference.held_out={source.held_out} keeps rows for tasks that compare two answers, and the source "
            "has one answer a row; set it to 0"
        )
    return _prepare(source, unpaired_rows, encoder.answers, EncodedAnswer, encoder, out)


def _prepare(
    source: Source,
    read: Callable[[Source, Split], CheckedRows[Row]],
    encode: Encode[Row, Tokens],
    kind: type[AnyTokens],
    encoder: BatchEncoder,
    out: Path,
) -> dict[str, dict[str, Any]]:
    if source.held_out:
        write_held_out(_unmarked(read(source, "held_out"), encode, encoder), out)
    return {
        split: _prepare_split(read(source, split), encode, out / f"{split}.parquet", kind, encoder)
        for split in _splits(source)
    }


def _splits(source: Source) -> list[Split]:
    return ["train", "validation"] if source.has_validation else ["train"]


def _prepare_split(
    rows: CheckedRows[Row],
    encode: Encode[Row, Tokens],
    path: Path,
    kind: type[AnyTokens],
    encoder: BatchEncoder,
) -> dict[str, Any]:
    counts, name = Counts(bad_rows=rows.num_bad), f"{rows.split} of {rows.label}"
    if rows.ignored:
        log.info("%s: ignored: %s", name, ", ".join(rows.ignored))
    counts.rows = write_rows(_stored(_encoded(rows, encode, encoder, counts), rows, kind), kind, path)
    if counts.bad_rows or counts.dropped:
        log.info("%s: left out: %d bad rows, %d too long", name, counts.bad_rows, counts.dropped)
    if not counts.rows:
        raise ValueError(f"no row is left for {path.name}: {_why_none(counts, rows.source)}")
    split = counts.rows // 2 if _splits_pairs(rows, kind) else 0
    said = {"read_as": rows.read_as, "ignored": rows.ignored, "split_pairs": split}
    return asdict(counts) | {name: what for name, what in said.items() if what}


def _stored(rows: Iterator[Any], source: CheckedRows[Any], kind: type[AnyTokens]) -> Iterator[Any]:
    """The rows as a training of this kind of row reads them."""
    if kind is not EncodedAnswer:
        return rows
    name = f"{source.split} of {source.label}"
    if _splits_pairs(source, kind):
        log.info("%s: each pair is split into a good and a bad answer", name)
        rows = split_pairs(rows)
    if source.split == "train":
        rows = of_both_labels(rows, name)
    return mismatched(rows, source.source.max_length, name)


def _splits_pairs(rows: CheckedRows[Any], kind: type[AnyTokens]) -> bool:
    return kind is EncodedAnswer and rows.kind is PAIR


def _why_none(counts: Counts, source: Source) -> str:
    if not counts.dropped:
        return f"all {counts.bad_rows} are bad; set bad_rows=error to see why"
    return (
        f"the answers of all {counts.dropped} rows exceed max_length={source.max_length} tokens; raise it or "
        "set too_long=truncate"
    )


def _encoded(
    rows: CheckedRows[Row],
    encode: Encode[Row, Tokens],
    encoder: BatchEncoder,
    counts: Counts,
) -> Iterator[Tokens]:
    """The rows within the limits of their source, counted."""
    too_long, bad, ends = Problems(), Problems(), encoder.texts.ends
    for location, row, whole in _tokenised(rows, encode, bad):
        too_much = excess(whole, rows.source, rows.format_at(location))
        if too_much and rows.source.too_long is TooLong.error:
            too_long.add(location, too_much)
        elif too_much and rows.source.too_long is TooLong.drop:
            counts.dropped += 1
        else:
            kept = whole.fitted(rows.source, encoder.tokenizer.bos_token_id)
            if found := fault(row, kept, ends):
                bad.add(location, found)
                continue
            counts.add(whole, kept)
            yield kept
    too_long.raise_if_any()
    if rows.source.bad_rows is BadRows.error:
        bad.raise_if_any()
    counts.bad_rows += bad.count


def _unmarked(rows: CheckedRows[Row], encode: Encode[Row, Tokens], encoder: BatchEncoder) -> list[Row]:
    """Rows as text, for tasks that score them: without the faulty ones, and without end markers of their own."""
    bad, ends, good = Problems(), encoder.texts.ends, []
    for location, row, whole in _tokenised(rows, encode, bad):
        if found := fault(row, whole, ends):
            bad.add(location, found)
        else:
            good.append(without_ends(row, ends))
    if rows.source.bad_rows is BadRows.error:
        bad.raise_if_any()
    return good


def _tokenised(
    rows: CheckedRows[Row], encode: Encode[Row, Tokens], bad: Problems
) -> Iterator[tuple[str, Row, Tokens]]:
    """The rows with their tokens; those that the template or tokenizer refuses are noted as bad instead."""
    with tqdm(desc=f"tokenising {rows.split}", total=len(rows), unit=" rows", delay=QUIET_SECONDS) as bar:
        work, processes = (lambda batch: encode([row for _, row in batch])), processes_for(len(rows))
        for batch, encoded in ahead(work, batches(rows), processes):
            for (location, row), tokens in zip(batch, encoded, strict=True):
                if isinstance(tokens, ValueError):
                    bad.add(location, tokens)
                else:
                    yield location, row, tokens
            bar.update(len(batch))

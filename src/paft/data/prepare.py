"""The data stage: a source, tokenised once, as Parquet files of token ids that training reads by index."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from paft.chat.conversation import Conversation, PreferencePair
from paft.chat.encode import ChatEncoder
from paft.chat.limits import within
from paft.chat.proof import prove_template
from paft.chat.template import end_tokens
from paft.chat.tokens import Encoded, EncodedPair
from paft.config import BadRows, Source, TooLong
from paft.data.faults import excess, fault, without_ends
from paft.data.held_out import write_held_out
from paft.data.sources import CheckedRows, Problems, Split, conversations, has_validation, preference_pairs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Row = TypeVar("Row", Conversation, PreferencePair)
Tokens = TypeVar("Tokens", Encoded, EncodedPair)

log = logging.getLogger("paft")

ROWS_PER_GROUP = 1024
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

    def add(self, whole: Encoded | EncodedPair, kept: Encoded | EncodedPair) -> None:
        self.rows += 1
        self.tokens += sum(kept.lengths)
        self.label_tokens += kept.num_labels
        self.truncated_prompts += kept.prompt_length < whole.prompt_length
        self.truncated_answers += kept.answer_lengths != whole.answer_lengths
        self.longest = max(self.longest, *kept.lengths)


def prepare_sft(
    source: Source, tokenizer: "PreTrainedTokenizerBase", out: Path, positions: int | None = None
) -> dict[str, dict[str, Any]]:
    """Write `out/train.parquet`, and `validation.parquet` if the source has such a part; return their counts.

    Columns `input_ids` and `labels`, lists of int32. With `held_out` also those rows, as text. The result maps each
    split to the fields of `Counts`, `read_as`: what rows of files were taken for, and, where rows have fields that are
    not used, `ignored`: in how many rows each is.
    A model of `positions` reads no longer rows.
    Raises ValueError for a template that does not prove right, listing bad rows (before anything is tokenised) and,
    under `too_long=error`, rows whose answer does not fit; also if no row is left.
    """
    encoder = _encoder(source, tokenizer)
    return _prepare(
        within(source, positions),
        conversations,
        lambda row: encoder.conversation(row.messages, row.tools),
        Encoded,
        tokenizer,
        out,
    )


def prepare_preference(
    source: Source, tokenizer: "PreTrainedTokenizerBase", out: Path, positions: int | None = None
) -> dict[str, dict[str, Any]]:
    """As `prepare_sft`, with the columns `prompt_ids`, `chosen_ids` and `rejected_ids`."""
    encoder = _encoder(source, tokenizer)
    return _prepare(within(source, positions), preference_pairs, encoder.pair, EncodedPair, tokenizer, out)


def _encoder(source: Source, tokenizer: "PreTrainedTokenizerBase") -> ChatEncoder:
    prove_template(tokenizer)
    return ChatEncoder(tokenizer, source.special_tokens_in_text)


def _prepare(
    source: Source,
    read: Callable[[Source, Split], CheckedRows[Row]],
    encode: Callable[[Row], Tokens],
    kind: type[Tokens],
    tokenizer: "PreTrainedTokenizerBase",
    out: Path,
) -> dict[str, dict[str, Any]]:
    if source.held_out:
        write_held_out(_unmarked(read(source, "held_out"), encode, tokenizer), out)
    return {
        split: _prepare_split(read(source, split), encode, out / f"{split}.parquet", kind, tokenizer)
        for split in _splits(source)
    }


def _splits(source: Source) -> list[Split]:
    return ["train", "validation"] if has_validation(source) else ["train"]


def _prepare_split(
    rows: CheckedRows[Row],
    encode: Callable[[Row], Tokens],
    path: Path,
    kind: type[Tokens],
    tokenizer: "PreTrainedTokenizerBase",
) -> dict[str, Any]:
    counts, name = Counts(bad_rows=rows.num_bad), f"{rows.split} of {rows.label}"
    if rows.ignored:
        log.info("%s: ignored: %s", name, ", ".join(rows.ignored))
    _write(_encoded(rows, encode, tokenizer, counts), kind, path)
    if counts.bad_rows or counts.dropped:
        log.info("%s: left out: %d bad rows, %d too long", name, counts.bad_rows, counts.dropped)
    if not counts.rows:
        raise ValueError(f"no row is left for {path.name}: {_why_none(counts, rows.source)}")
    read_as = {"read_as": rows.read_as} if rows.read_as else {}
    return asdict(counts) | read_as | ({"ignored": rows.ignored} if rows.ignored else {})


def _why_none(counts: Counts, source: Source) -> str:
    if not counts.dropped:
        return f"all {counts.bad_rows} are bad; set bad_rows=error to see why"
    return (
        f"the answers of all {counts.dropped} rows exceed max_length={source.max_length} tokens; raise it or "
        "set too_long=truncate"
    )


def _encoded(
    rows: CheckedRows[Row],
    encode: Callable[[Row], Tokens],
    tokenizer: "PreTrainedTokenizerBase",
    counts: Counts,
) -> Iterator[Tokens]:
    """The rows within the limits of their source, counted."""
    too_long, bad, ends = Problems(), Problems(), end_tokens(tokenizer)
    for location, row in tqdm(rows, f"tokenising {rows.split}", unit=" rows", delay=QUIET_SECONDS):
        whole = _encode_or_note(location, row, encode, bad)
        if whole is None:
            continue
        too_much = excess(whole, rows.source, rows.format_at(location))
        if too_much and rows.source.too_long is TooLong.error:
            too_long.add(location, too_much)
        elif too_much and rows.source.too_long is TooLong.drop:
            counts.dropped += 1
        else:
            kept = whole.fitted(rows.source, tokenizer.bos_token_id)
            if found := fault(row, kept, ends):
                bad.add(location, found)
                continue
            counts.add(whole, kept)
            yield kept
    too_long.raise_if_any()
    if rows.source.bad_rows is BadRows.error:
        bad.raise_if_any()
    counts.bad_rows += bad.count


def _unmarked(
    rows: CheckedRows[Row], encode: Callable[[Row], Tokens], tokenizer: "PreTrainedTokenizerBase"
) -> list[Row]:
    """Rows as text, for tasks that score them: without the faulty ones, and without end markers of their own."""
    bad, ends, good = Problems(), end_tokens(tokenizer), []
    for location, row in rows:
        whole = _encode_or_note(location, row, encode, bad)
        if whole is None:
            continue
        if found := fault(row, whole, ends):
            bad.add(location, found)
        else:
            good.append(without_ends(row, ends))
    if rows.source.bad_rows is BadRows.error:
        bad.raise_if_any()
    return good


def _encode_or_note(location: str, row: Row, encode: Callable[[Row], Tokens], bad: Problems) -> Tokens | None:
    """The row's tokens; None for one that the template or tokenizer refuses, which is then one of the bad."""
    try:
        return encode(row)
    except ValueError as error:
        bad.add(location, error)
        return None


def _write(rows: Iterator[Tokens], kind: type[Tokens], path: Path) -> None:
    schema = pa.schema([(name, pa.list_(pa.int32())) for name in kind._fields])
    path.parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(path, schema) as writer:
        while group := list(islice(rows, ROWS_PER_GROUP)):
            writer.write_table(pa.table([list(column) for column in zip(*group, strict=True)], schema=schema))

"""Answers in, judgements out, by whichever judge is chosen."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paft.config.judge import AnnotationsJudge, AskedJudge, JudgeConfig, LocalJudge, OpenAIJudge
from paft.files.fingerprint import folder_sha256
from paft.judge.answers import Answers, Judge, answer_all
from paft.judge.mt_bench import Data, rating
from paft.judge.outputs import DRAW, Pair, Row, read_annotations
from paft.judge.prompts import Annotator, Completion, Question, top_logprobs

log = logging.getLogger("paft")

ANSWERS = "judgements"
"""Folder of a store with every answer of a judge, by content."""
NOT_KEPT = ("usage",)
CHARACTERS_PER_TOKEN = 4
"""Of English, about."""


@dataclass(frozen=True)
class Judgements:
    """One row for each pair, in alpaca-eval's format, or for each rated answer; and what they took."""

    rows: list[Row]
    counts: dict[str, Any]
    """`judged`, `unreadable`; of a judge that is asked `calls`, `cached`, their tokens and `usd`."""


def annotate(
    pairs: Sequence[Pair],
    config: JudgeConfig,
    store: Path,
    generators: tuple[str, str] = ("reference", "model"),
    *,
    device: str = "cpu",
) -> Judgements:
    """Judge each pair. `generators` are the names of who wrote the first and the second answers.

    Raises `ValueError` for a pair that a file of judgements lacks, and where a judge gave no answer; those that it gave
    are kept in `store`.
    """
    known = {"generator_1": generators[0], "generator_2": generators[1]}
    match config:
        case AnnotationsJudge():
            rows, counts = _looked_up(pairs, Path(config.file)), Counter[str]()
        case AskedJudge():
            rows, counts = _compared(pairs, config, store, device)
        case _:
            raise TypeError(f"unknown judge {type(config).__name__}")
    return _with_counts([known | row for row in rows], "preference", config, counts)


def rate(
    rows: Sequence[Row], data: Data, config: AskedJudge, store: Path, *, device: str = "cpu"
) -> Judgements:
    """Rate both answers of each row of MT-Bench; a row a turn. Raises `ValueError` as `annotate`."""
    turns = [(row, turn) for row in rows for turn in range(len(row["answers"]))]
    questions = [data.question(row, turn) for row, turn in turns]
    answers, counts, judge = _answers(questions, config, store, device)
    rated = [
        {name: row[name] for name in ("question_id", "category")}
        | {
            "turn": turn,
            "judge": judge,
            "rating": rating(answer),
            "judgment": answer["message"].get("content"),
        }
        for (row, turn), answer in zip(turns, answers, strict=True)
    ]
    return _with_counts(rated, "rating", config, counts)


def _with_counts(rows: list[Row], column: str, config: JudgeConfig, counts: Counter[str]) -> Judgements:
    unreadable = sum(row[column] is None for row in rows)
    if unreadable:
        log.warning(
            "%d of %d answers of the judge hold no %s: they do not count", unreadable, len(rows), column
        )
    figures: dict[str, Any] = {"judged": len(rows) - unreadable, "unreadable": unreadable, **counts}
    if isinstance(config, OpenAIJudge):
        figures["usd"] = usd(config, counts["input_tokens"], counts["output_tokens"])
    return Judgements(rows, figures)


def _compared(
    pairs: Sequence[Pair], config: AskedJudge, store: Path, device: str
) -> tuple[list[Row], Counter[str]]:
    annotator = Annotator(config.annotator)
    differ = [pair for pair in pairs if not pair.same]
    answers, counts, judge = _answers([annotator.question(pair) for pair in differ], config, store, device)
    if plain := sum(not top_logprobs(answer) for answer in answers):
        log.warning("%d answers of the judge are without log-probabilities: their text counts", plain)
        counts["without_logprobs"] = plain
    told = dict(zip((pair.instruction for pair in differ), answers, strict=True))
    by = {"annotator": config.annotator, "judge": judge}
    return [_row(pair, annotator, told.get(pair.instruction)) | by for pair in pairs], counts


def _answers(
    questions: Sequence[Question], config: AskedJudge, store: Path, device: str
) -> tuple[list[Completion], Counter[str], str]:
    """The judge's answers, what they took, and what the judge is known by."""
    judge = judge_of(config, device)
    return *answer_all(questions, judge, Answers(store / ANSWERS, judge.model)), judge.model


def judge_of(config: AskedJudge, device: str = "cpu") -> Judge:
    """The judge of a config, ready to be asked; a local one is loaded."""
    match config:
        case OpenAIJudge():
            from paft.judge.endpoint import Endpoint

            return Endpoint(config)
        case LocalJudge():
            from paft.judge.local import Local

            return Local(Path(config.path), name_of(config), device=device)
    raise TypeError(f"unknown judge {type(config).__name__}")


def _row(pair: Pair, annotator: Annotator, answer: Mapping[str, Any] | None) -> Row:
    preference = DRAW if answer is None else annotator.preference(pair, dict(answer))
    raw = None if answer is None else {name: value for name, value in answer.items() if name not in NOT_KEPT}
    return _texts(pair) | {"preference": preference, "raw_completion": raw}


def _texts(pair: Pair) -> Row:
    return {"instruction": pair.instruction, "output_1": pair.first, "output_2": pair.second}


def _looked_up(pairs: Sequence[Pair], file: Path) -> list[Row]:
    """The file's judgement of each pair, by its texts; of two equal answers a draw."""
    given = {
        (r["instruction"], r["output_1"], r["output_2"]): r for r in read_annotations(file, "judge.file")
    }
    rows = [
        given.get((p.instruction, p.first, p.second), {"preference": DRAW} if p.same else None) for p in pairs
    ]
    missing = [pair.instruction for pair, row in zip(pairs, rows, strict=True) if row is None]
    if missing:
        raise ValueError(
            f"judge.file={file} has no judgement of {len(missing)} of {len(pairs)} answers, the first to "
            f"{missing[0]!r:.80}; it must be of these very answers, and judge=openai or judge=local judges others"
        )
    return [
        _texts(pair)
        | {name: row[name] for name in ("annotator", "preference", "raw_completion") if name in row}
        for pair, row in zip(pairs, rows, strict=True)
        if row is not None
    ]


def name_of(config: AskedJudge) -> str:
    """What a judge's answers are known by: its model's name, of a folder its content."""
    if isinstance(config, OpenAIJudge):
        return config.model
    assert isinstance(config, LocalJudge)
    return f"local {folder_sha256(Path(config.path))[:16]}"


def usd(config: OpenAIJudge, input_tokens: float, output_tokens: float) -> float | None:
    """US dollars of so many tokens; None where prices are not known."""
    if config.prices is None:
        return None
    first, second = config.prices
    return round((first * input_tokens + second * output_tokens) / 1e6, 6)


def planned(pairs: Sequence[Pair], config: JudgeConfig, store: Path) -> dict[str, Any]:
    """What `annotate` would ask: `calls`, `cached`, `input_tokens` by four characters a token, `usd`; asks nothing."""
    if not isinstance(config, AskedJudge):
        return {"calls": 0}
    annotator = Annotator(config.annotator)
    questions = [annotator.question(pair) for pair in pairs if not pair.same]
    answers = Answers(store / ANSWERS, name_of(config))
    new = [question for question in questions if answers.get(question) is None]
    characters = sum(len(message["content"]) for question in new for message in question.messages)
    tokens = round(characters / CHARACTERS_PER_TOKEN)
    figures: dict[str, Any] = {"calls": len(new), "cached": len(questions) - len(new), "input_tokens": tokens}
    if isinstance(config, OpenAIJudge):
        figures["usd"] = usd(config, tokens, len(new))
    return figures

"""A judge's answers, each kept as soon as it is there: a run that is stopped goes on, and nobody pays twice."""

import logging
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Protocol

from paft.files.jsonfile import read_object, write_json
from paft.judge.prompts import Completion, Question

log = logging.getLogger("paft")

SAID_EVERY = 30.0
"""Seconds between two lines of progress."""


class Hopeless(ValueError):
    """An error that every other call would meet, too."""


class Judge(Protocol):
    """Something that answers questions."""

    model: str
    """What its answers are known by."""
    at_once: int
    """Questions that may be under way together."""

    def ask(self, question: Question, stop: threading.Event) -> Completion:
        """The answer. Raises `ValueError` where there is none to be had; makes no further attempt once `stop` is
        set."""
        ...


class Answers:
    """A folder of answers by the content of their questions."""

    def __init__(self, folder: Path, model: str) -> None:
        self.folder, self.model = folder, model

    def get(self, question: Question) -> Completion | None:
        """The answer that was given to this question; None where it was never asked, or its file is damaged."""
        path = self._path(question)
        try:
            answer = read_object(path)["answer"] if path.is_file() else None
        except (ValueError, KeyError, OSError):
            return None
        return answer if isinstance(answer, dict) else None

    def put(self, question: Question, answer: Completion) -> None:
        path = self._path(question)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"model": self.model, "answer": answer})

    def _path(self, question: Question) -> Path:
        key = question.key(self.model)
        return self.folder / key[:2] / f"{key}.json"


def answer_all(
    questions: Sequence[Question], judge: Judge, answers: Answers
) -> tuple[list[Completion], Counter[str]]:
    """The answer to each question, and counts: `calls` made now, `cached`, and the calls' `input_tokens` and
    `output_tokens`.

    Raises `ValueError` where questions stay without an answer, after all others have one.
    """
    by_key = {question.key(judge.model): question for question in questions}
    cached = {
        key: answer for key, question in by_key.items() if (answer := answers.get(question)) is not None
    }
    new = _ask_all({key: question for key, question in by_key.items() if key not in cached}, judge, answers)
    counts = Counter(calls=len(new), cached=len(cached), input_tokens=0, output_tokens=0)
    for answer in new.values():
        usage = answer.get("usage") or {}
        counts["input_tokens"] += int(usage.get("prompt_tokens") or 0)
        counts["output_tokens"] += int(usage.get("completion_tokens") or 0)
    by_key_answered = cached | new
    return [by_key_answered[question.key(judge.model)] for question in questions], counts


def _ask_all(questions: dict[str, Question], judge: Judge, answers: Answers) -> dict[str, Completion]:
    """Key -> answer. On an error that all would meet, and on a signal, no other call begins."""
    stop, failed, given = threading.Event(), list[ValueError](), dict[str, Completion]()

    def ask(question: Question) -> Completion:
        answer = judge.ask(question, stop)
        answers.put(question, answer)  # here, as the main thread may have been stopped meanwhile
        return answer

    pool, said = ThreadPoolExecutor(judge.at_once, thread_name_prefix="judge"), time.monotonic()
    try:
        under_way = {pool.submit(ask, question): key for key, question in questions.items()}
        for future in as_completed(under_way):
            try:
                given[under_way[future]] = future.result()
            except Hopeless:
                raise
            except ValueError as error:
                failed.append(error)
            if time.monotonic() - said > SAID_EVERY:
                said = time.monotonic()
                log.info("judged %d of %d", len(given), len(questions))
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)
    if failed:
        raise ValueError(
            f"{len(failed)} of {len(questions)} calls of the judge failed, the first with: {failed[0]}. The other "
            "answers are kept: the same command asks for the rest"
        )
    return given

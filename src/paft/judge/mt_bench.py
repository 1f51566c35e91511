"""MT-Bench's single-answer grading (Zheng et al. 2023, arXiv:2306.05685) from FastChat's own files.

They are its questions of two turns, the prompts of its judge, and GPT-4's answers to questions with a right answer.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paft.config.judged import MT_BENCH_FILES
from paft.judge.outputs import Row, read_rows
from paft.judge.prompts import Completion, Question

WITH_REFERENCE = ("math", "reasoning", "coding")
"""Categories whose judge sees a right answer."""
SAMPLING = {"temperature": 0, "max_tokens": 2048}
RATINGS = (re.compile(r"\[\[(\d+\.?\d*)\]\]"), re.compile(r"\[(\d+\.?\d*)\]"))
"""How a rating is written, and how it often is."""
PLACE = re.compile(r"\{(\w+)\}")
LARGEST = 10


@dataclass(frozen=True)
class Data:
    """What FastChat's files hold."""

    questions: list[Row]
    """`question_id`, `category` and two `turns` each."""
    prompts: Mapping[str, Row]
    """By name: `system_prompt` and `prompt_template`."""
    references: Mapping[Any, Sequence[str]]
    """Answers to both turns, by `question_id`."""

    def question(self, row: Row, turn: int) -> Question:
        """What the judge is asked of an answer to turn 0 or 1."""
        referred = row["category"] in WITH_REFERENCE
        name = f"single-{'math-' * referred}v1{'-multi-turn' * turn}"
        turns, answers = row["turns"], row["answers"]
        texts = {"question": turns[0], "answer": answers[0]}
        texts |= {f"question_{n}": text for n, text in enumerate(turns, 1)}
        texts |= {f"answer_{n}": text for n, text in enumerate(answers, 1)}
        if referred:
            texts |= {f"ref_answer_{n}": t for n, t in enumerate(self.references[row["question_id"]], 1)}
        prompt = self.prompts[name]
        user = PLACE.sub(lambda place: texts.get(place[1], place[0]), prompt["prompt_template"])
        messages = {"system": prompt["system_prompt"], "user": user}
        return Question(tuple({"role": role, "content": text} for role, text in messages.items()), SAMPLING)


def read_data(folder: Path) -> Data:
    """The files in FastChat's `fastchat/llm_judge/data`. Raises `ValueError` naming what is wrong with one of them."""
    prompts, questions, answers = (folder / name for name in MT_BENCH_FILES)
    at = "evaluate.questions.folder:"
    rows = read_rows(questions, at, ("category",))
    for row in rows:
        turns = row.get("turns")
        if not (isinstance(turns, list) and len(turns) == 2 and all(isinstance(t, str) for t in turns)):
            raise ValueError(f"{at} {questions}: question {row.get('question_id')} must have two turns")
    by_name = {r["name"]: r for r in read_rows(prompts, at, ("name", "system_prompt", "prompt_template"))}
    needed = [f"single-{math}v1{turn}" for math in ("", "math-") for turn in ("", "-multi-turn")]
    if missing := [name for name in needed if name not in by_name]:
        raise ValueError(f"{at} {prompts} has no prompt {missing[0]!r}")
    references = {
        row.get("question_id"): row["choices"][0]["turns"] for row in read_rows(answers, at, ("model_id",))
    }
    for row in rows:
        if row["category"] in WITH_REFERENCE and row["question_id"] not in references:
            raise ValueError(f"{at} {answers} has no answer to question {row['question_id']}")
    return Data(rows, by_name, references)


def rating(completion: Completion) -> float | None:
    """1 to 10; None where the judge gave none."""
    text = str(completion["message"].get("content") or "")
    match = next((match for pattern in RATINGS if (match := pattern.search(text))), None)
    value = None if match is None else float(match[1])
    return value if value is not None and 1 <= value <= LARGEST else None

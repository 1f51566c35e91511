"""Documents and scoring of PAFT's own lm-eval tasks; the YAML files beside this one name these functions."""

import json
import re
from importlib.resources import files
from typing import Any

from datasets import Dataset

from paft.config import Skill
from paft.data.demo import demo_rows

NUM_ITEMS = 200
TEST_SEED = 1
COT_PROMPTS = "tasks/mmlu/flan_cot_fewshot/_cot_prompts.json"
QUESTION = re.compile(
    r"(?P<question>.+?)\n(?P<options>\(A\).+?)\nA: (?P<answer>.+The answer is \((?P<letter>[A-E])\)\.)", re.DOTALL
)


def tool_call(**_: Any) -> dict[str, Dataset]:
    """`NUM_ITEMS` requests the SFT branch never saw, with the call each should become."""
    rows = demo_rows(Skill.tool_call, split="test", num_rows=NUM_ITEMS, seed=TEST_SEED)
    docs = [{"request": r["messages"][0]["content"], "call": r["messages"][1]["content"]} for r in rows]
    return {"test": Dataset.from_list(docs)}


def honesty(**_: Any) -> dict[str, Dataset]:
    """`NUM_ITEMS` questions with a preferred and a rejected answer the preference branch never saw."""
    rows = demo_rows(Skill.honesty, split="test", num_rows=NUM_ITEMS, seed=TEST_SEED)
    docs = [
        {"prompt": r["prompt"][0]["content"], "answers": [r["chosen"][0]["content"], r["rejected"][0]["content"]]}
        for r in rows
    ]
    return {"test": Dataset.from_list(docs)}


def mmlu_dev(**_: Any) -> dict[str, Dataset]:
    """The 282 MMLU development questions of 57 subjects that lm-eval ships with worked answers.

    Five of each subject but for three that have four; one question has five options.
    """
    prompts: dict[str, str] = json.loads(files("lm_eval").joinpath(COT_PROMPTS).read_text())
    docs = [doc for subject, text in prompts.items() for doc in worked_questions(subject, text)]
    return {"test": Dataset.from_list(docs)}


def worked_questions(subject: str, text: str) -> list[dict[str, Any]]:
    """Question, lettered options, worked answer and letter of each example in one subject's few-shot prompt."""
    docs = []
    for part in re.split(r"\n\nQ: ", text)[1:]:
        match = QUESTION.match(part.strip())
        if match is None:
            raise ValueError(f"cannot read a worked question of {subject}: {part[:200]!r}")
        options = [o.strip() for o in re.split(r"\([A-E]\) ?", match["options"])[1:]]
        letters = list("ABCDE"[: len(options)])
        listed = "\n".join(f"{letter}. {option}" for letter, option in zip(letters, options, strict=True))
        docs.append(
            {
                "subject": subject,
                "question": f"{match['question'].strip()}\n{listed}",
                "letters": letters,
                "gold": letters.index(match["letter"]),
                "answer": match["answer"].strip(),
            }
        )
    return docs


def exact_call(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """1 if the generated text, stripped, is the call to the letter."""
    return {"exact_match": float(results[0].strip() == doc["call"])}


def answer_bits(doc: dict[str, Any], results: list[tuple[float, bool]]) -> dict[str, tuple[float, int]]:
    """(log-likelihood of the worked answer, its UTF-8 bytes), summed over items by lm-eval's bits_per_byte."""
    loglikelihood, _ = results[0]
    return {"bits_per_byte": (loglikelihood, len(doc["answer"].encode()))}

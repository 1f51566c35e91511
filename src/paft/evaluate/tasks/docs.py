"""Documents and scoring of PAFT's own lm-eval tasks; the YAML files beside this one name these functions."""

import json
import re
from importlib.resources import files
from typing import Any

from datasets import Dataset

from paft.config import Skill
from paft.data.demo import DemoRow, DemoSplit, demo_rows

NUM_ITEMS = 200
TEST_SEED = 1
SPLITS: tuple[DemoSplit, ...] = ("test", "validation")
COT_PROMPTS = "tasks/mmlu/flan_cot_fewshot/_cot_prompts.json"
QUESTION = re.compile(
    r"(?P<question>.+?)\n(?P<options>\(A\).+?)\nA: (?P<answer>.+The answer is \((?P<letter>[A-E])\)\.)",
    re.DOTALL,
)


def tool_call(**_: Any) -> dict[str, Dataset]:
    """`NUM_ITEMS` requests the SFT branch never saw, with the call each should become; as many for validation."""
    return {
        split: Dataset.from_list([_request(r) for r in held_out(Skill.tool_call, split)]) for split in SPLITS
    }


def _request(row: DemoRow) -> dict[str, str]:
    user, answer = row["messages"]
    return {"request": user["content"], "call": answer["content"]}


def honesty(**_: Any) -> dict[str, Dataset]:
    """`NUM_ITEMS` questions with a preferred and a rejected answer the preference branch never saw; as many for
    validation."""
    return {
        split: Dataset.from_list([_question(r) for r in held_out(Skill.honesty, split)]) for split in SPLITS
    }


def _question(row: DemoRow) -> dict[str, Any]:
    answers = [row["chosen"][0]["content"], row["rejected"][0]["content"]]
    return {"prompt": row["prompt"][0]["content"], "answers": answers}


def held_out(skill: Skill, split: DemoSplit) -> list[DemoRow]:
    """Rows of a split that no training sees; no prompt of one is in another."""
    return demo_rows(skill, split=split, num_rows=NUM_ITEMS, seed=TEST_SEED)


def mmlu_dev(**_: Any) -> dict[str, Dataset]:
    """The 282 MMLU development questions of 57 subjects that lm-eval ships with worked answers.

    Five of each subject but for three that have four; one question has five options.
    """
    prompts: dict[str, str] = json.loads(files("lm_eval").joinpath(COT_PROMPTS).read_text())
    docs = [doc for subject, text in prompts.items() for doc in worked_questions(subject, text)]
    return {"test": Dataset.from_list(docs)}


def worked_questions(subject: str, text: str) -> list[dict[str, Any]]:
    """The examples of one subject's few-shot prompt: question with lettered options, choices, index of the answer.

    The choices are the letters and, last, the worked answer.
    """
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
                "choices": [*letters, match["answer"].strip()],
                "gold": letters.index(match["letter"]),
            }
        )
    return docs


def exact_call(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """1 if the generated text, stripped, is the call to the letter."""
    return {"exact_match": float(results[0].strip() == doc["call"])}


def letter_and_bits(doc: dict[str, Any], results: list[tuple[float, bool]]) -> dict[str, Any]:
    """Accuracy over the letters, and (log-likelihood of the worked answer, its UTF-8 bytes).

    The worked answer is the last choice; lm-eval's bits_per_byte sums over items.
    """
    *letters, worked = (loglikelihood for loglikelihood, _ in results)
    guess = max(range(len(letters)), key=letters.__getitem__)
    return {"acc": float(guess == doc["gold"]), "bits_per_byte": (worked, len(doc["choices"][-1].encode()))}

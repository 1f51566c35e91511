"""Tasks made of the rows that `data.<branch>.held_out` keeps from training; `paft.evaluate.run` says where they are."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset
from lm_eval.api.task import ConfigurableTask

from paft.data.held_out import read_held_out

ANSWER = re.compile(r"####\s*\$?(-?[\d,]*\.?\d+)")
STEP = re.compile(r"<<[^<>]*=(-?[\d,]*\.?\d+)>>")
NUMBER = re.compile(r"(?<![\w.])\d[\d,]*(?:\.\d+)?")
NUM_CHOICES = 4


def preference(preference_data: str, **_: Any) -> dict[str, Dataset]:
    """Pairs the preference branch never saw."""
    rows = read_held_out(Path(preference_data))
    answers = [[row["chosen"][0]["content"], row["rejected"][0]["content"]] for row in rows]
    return _test({"messages": row["prompt"], "answers": a} for row, a in zip(rows, answers, strict=True))


def gsm8k(sft_data: str, **_: Any) -> dict[str, Dataset]:
    """Questions the SFT branch never saw, their answer, and the answer among numbers that are as plausible."""
    return _test(_question(row["messages"]) for row in read_held_out(Path(sft_data)))


def _test(docs: Iterator[dict[str, Any]]) -> dict[str, Dataset]:
    return {"test": Dataset.from_list(list(docs))}


def _question(messages: list[dict[str, str]]) -> dict[str, Any]:
    *before, solution = messages
    found = ANSWER.search(solution["content"])
    if found is None:
        raise ValueError(
            f"an answer must end in '#### number' for a GSM8K task, got {solution['content'][-80:]!r}; "
            "leave the task out of evaluate.tasks for other data"
        )
    answer = _plain(found[1])
    numbers = plausible(answer, before[-1]["content"], solution["content"])
    return {"messages": before, "answer": answer, "answers": [f"#### {n}" for n in numbers]}


def plausible(answer: str, question: str, solution: str) -> list[str]:
    """The answer and three other numbers: results of the solution's own steps, numbers of the question, and what
    slips of arithmetic give; those written with about as many characters first, as a longer number is less likely."""
    value = float(answer)
    slips = [value * 2, value + 10, value * 10, value + 1, value / 2, value + 2, value + 3]
    found = [*STEP.findall(solution), *NUMBER.findall(question), *(f"{slip:g}" for slip in slips)]
    others = [n for n in dict.fromkeys(map(_plain, found)) if n != answer and "e" not in n]
    return [answer, *sorted(others, key=lambda n: abs(len(n) - len(answer)))[: NUM_CHOICES - 1]]


def _plain(number: str) -> str:
    """Without thousands separators, and without decimals that are none."""
    number = number.replace(",", "")
    return re.sub(r"\.0+$", "", number)


def exact_answer(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """1 if the generated solution states the answer's number after ####."""
    found = ANSWER.search(results[0])
    return {"exact_match": float(found is not None and _plain(found[1]) == doc["answer"])}


class ChatTask(ConfigurableTask):
    """A task whose context is the messages of its document, of which there may be several."""

    def __init__(self, config: dict[str, Any]) -> None:
        # lm-eval leaves in the settings what tells it to make this class
        super().__init__(config={name: value for name, value in config.items() if name != "class"})

    def fewshot_context(
        self,
        doc: dict[str, Any],
        num_fewshot: int,
        system_instruction: str | None = None,
        apply_chat_template: bool = False,
        fewshot_as_multiturn: bool = False,
        chat_template: Callable[..., str] | None = None,
        gen_prefix: str | None = None,
    ) -> str:
        """The chat up to where the answer begins. Raises `ValueError` without a chat template or with shots."""
        if not (apply_chat_template and chat_template) or num_fewshot:
            raise ValueError(
                f"{self.config.task} needs evaluate.apply_chat_template=true and num_fewshot=null, got "
                f"{apply_chat_template} and {num_fewshot}: its items are conversations"
            )
        return chat_template(doc["messages"])

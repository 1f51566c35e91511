"""Tasks made of the rows that `data.<branch>.held_out` keeps from training; `paft.evaluate.stage` gives the folder."""

import re
from collections.abc import Callable, Iterable
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


def answers(sft_data: str, **_: Any) -> dict[str, Dataset]:
    """Conversations the SFT branch never saw, and their last answer."""
    return _test({"messages": m[:-1], "answers": [m[-1]["content"]]} for m in _solved(sft_data))


def gsm8k(sft_data: str, **_: Any) -> dict[str, Dataset]:
    """Questions the SFT branch never saw, and their answer."""
    return _test({"messages": m[:-1], "answer": _answer(m[-1]["content"])} for m in _solved(sft_data))


def gsm8k_choice(sft_data: str, **_: Any) -> dict[str, Dataset]:
    """The same with the solution up to the result of its last step, among numbers that are as plausible.

    A few questions whose last step does not give the answer are left out. The answer right after the question, which
    is at chance for a small model, and after the whole solution, which any model copies, tell nothing.
    """
    docs = ((messages, list(STEP.finditer(messages[-1]["content"]))) for messages in _solved(sft_data))
    return _test(
        _last_step(messages, steps[-1])
        for messages, steps in docs
        if steps and _plain(steps[-1][1]) == _answer(messages[-1]["content"])
    )


def _solved(folder: str) -> list[list[dict[str, str]]]:
    return [row["messages"] for row in read_held_out(Path(folder))]


def _test(docs: Iterable[dict[str, Any]]) -> dict[str, Dataset]:
    return {"test": Dataset.from_list(list(docs))}


def _answer(solution: str) -> str:
    match = ANSWER.search(solution)
    if match is None:
        raise ValueError(
            f"an answer must end in '#### number' for a GSM8K task, got {solution[-80:]!r}; "
            "leave the task out of evaluate.tasks for other data"
        )
    return _plain(match[1])


def _last_step(messages: list[dict[str, str]], step: re.Match[str]) -> dict[str, Any]:
    *before, solution = messages
    numbers = plausible(_plain(step[1]), before[-1]["content"], solution["content"])
    begun = solution["content"][: step.start(1)]
    return {"messages": before, "begun": begun, "answers": [f"{number}>>" for number in numbers]}


def plausible(answer: str, question: str, solution: str) -> list[str]:
    """The answer and three other numbers: results of the solution's own steps, numbers of the question, and what
    slips of arithmetic give; those written with about as many characters first, as a longer number is less likely."""
    value = float(answer)
    slips = [value * 2, value + 10, value * 10, value + 1, value / 2, value + 2, value + 3]
    numbers = [*STEP.findall(solution), *NUMBER.findall(question), *(f"{slip:g}" for slip in slips)]
    others = [n for n in dict.fromkeys(map(_plain, numbers)) if n != answer and "e" not in n]
    return [answer, *sorted(others, key=lambda n: abs(len(n) - len(answer)))[: NUM_CHOICES - 1]]


def _plain(number: str) -> str:
    """Without thousands separators, and without decimals that are none."""
    number = number.replace(",", "")
    return re.sub(r"\.0+$", "", number)


def exact_answer(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """1 if the generated solution states the answer's number after ####."""
    match = ANSWER.search(results[0])
    return {"exact_match": float(match is not None and _plain(match[1]) == doc["answer"])}


def likelier_and_margin(doc: dict[str, Any], results: list[tuple[float, bool]]) -> dict[str, float]:
    """1 if the chosen answer is the likelier one, and log pi(chosen) - log pi(rejected) in nats.

    What a model's mean margin is above the base model's is DPO's implicit reward margin divided by beta.
    """
    (chosen, _), (rejected, _) = results
    return {"acc": float(chosen > rejected), "margin": chosen - rejected}


def answer_bits(doc: dict[str, Any], results: list[tuple[float, bool]]) -> dict[str, Any]:
    """How well the model knows the answer: lm-eval's bits_per_byte sums over items."""
    ((logp, _),) = results
    return {"bits_per_byte": (logp, len(doc["answers"][0].encode()))}


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
        """The chat up to where the answer begins, or goes on after `begun`.

        Raises `ValueError` without a chat template or with shots.
        """
        if not (apply_chat_template and chat_template) or num_fewshot:
            raise ValueError(
                f"{self.config.task} needs evaluate.apply_chat_template=true and num_fewshot=null, got "
                f"{apply_chat_template} and {num_fewshot}: its items are conversations"
            )
        return chat_template(doc["messages"]) + str(doc.get("begun") or "")

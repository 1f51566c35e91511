"""What a judge is asked about a pair, and what its answer means: as alpaca-eval's weighted annotators do.

Which of two answers is shown first is drawn for each instruction, from the instruction's own text; the judge names one
of two tokens, and its preference is the probability of one against the other.
"""

import math
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from paft.files.fingerprint import digest
from paft.judge.outputs import Pair
from paft.judge.package import annotator

Message = dict[str, str]
Completion = dict[str, Any]
"""A choice of a chat completion: `message`, `logprobs`; and the `usage` of the call."""
SEED = 0
"""alpaca-eval's."""
TURN = re.compile(r"<\|im_start\|>(\w+)\n(.*?)<\|im_end\|>", re.DOTALL)
PLACE = re.compile(r"\{(instruction|output_1|output_2)\}")
SAMPLING = ("max_tokens", "temperature", "top_p", "logprobs", "top_logprobs")
TOP_P = {"top_p": 1.0}
"""alpaca-eval's default."""


@dataclass(frozen=True)
class Question:
    """One call of a judge."""

    messages: tuple[Message, ...]
    sampling: Mapping[str, Any]
    """Fields of the request beside the model and the messages."""

    def key(self, model: str) -> str:
        """What the answer of a judge is known by: the judge, and everything it is sent."""
        return digest({"model": model, "messages": list(self.messages), "sampling": dict(self.sampling)})


@dataclass(frozen=True)
class Annotator:
    """One of alpaca-eval's annotators, by its name."""

    name: str

    @property
    def settings(self) -> dict[str, Any]:
        return annotator(self.name)

    def question(self, pair: Pair) -> Question:
        """The prompt with both answers in the order that is drawn for the instruction."""
        first, second = (pair.second, pair.first) if switched(pair.instruction) else (pair.first, pair.second)
        texts = {"instruction": pair.instruction, "output_1": first, "output_2": second}
        messages = tuple(
            {"role": role, "content": PLACE.sub(lambda place: texts[place[1]], content.strip())}
            for role, content in TURN.findall(self.settings["prompt"])
        )
        given = TOP_P | self.settings["completions_kwargs"]
        return Question(messages, {name: given[name] for name in SAMPLING if name in given})

    def preference(self, pair: Pair, completion: Completion) -> float | None:
        """1 where the reference's answer is better, 2 where the model's is; None where neither token was near.

        Of an answer without log-probabilities the text counts, which is 1 or 2.
        """
        options = self.settings["completion_parser_kwargs"]
        first, tokens = options["numerator_token"], options["denominator_tokens"]
        logprobs = top_logprobs(completion) or {str(completion["message"].get("content")).strip(): 0.0}
        near = {token: logprobs[token] for token in tokens if token in logprobs}
        if not near:
            return None
        highest = max(near.values())
        weights = {token: math.exp(value - highest) for token, value in near.items()}
        preference = 2 - weights.get(first, 0.0) / math.fsum(weights.values())
        return 3 - preference if switched(pair.instruction) else preference


def switched(instruction: str) -> bool:
    """Whether the model's answer is shown first: alpaca-eval's draw."""
    return random.Random(f"is_switched_outputs{instruction}{SEED}").choices([False, True], k=1)[0]


def top_logprobs(completion: Completion) -> dict[str, float]:
    """Token -> log-probability of the likeliest first tokens; empty for an answer of a server that gives none."""
    try:
        top = completion["logprobs"]["content"][0]["top_logprobs"]
        return {str(entry["token"]): float(entry["logprob"]) for entry in top}
    except (LookupError, TypeError, ValueError):
        return {}

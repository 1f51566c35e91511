"""How much rows ask of a model, independent of the model: tokens, attended pairs, labels. Loads no torch.

The one place that knows which tokens a training step forwards; a plan counts with mean rows, a training with its
own. Tokens are real ones, never padding.
"""

from collections.abc import Container, Iterable
from dataclasses import dataclass

from paft.chat.tokens import Encoded, EncodedAnswer, EncodedPair
from paft.config import BranchConfig, PreferenceConfig


@dataclass(frozen=True)
class Work:
    """What rows ask of a model; works add up, and multiply with a number of equal rows."""

    tokens: float = 0.0
    """Through the decoder layers."""
    attended: float = 0.0
    """(query, key) pairs under causal attention."""
    labels: float = 0.0
    """Positions the output head is applied to."""

    def __add__(self, other: "Work") -> "Work":
        return Work(self.tokens + other.tokens, self.attended + other.attended, self.labels + other.labels)

    def __mul__(self, times: float) -> "Work":
        return Work(self.tokens * times, self.attended * times, self.labels * times)


def sequence_work(tokens: float, labels: float, *, past: float = 0.0) -> Work:
    """`tokens` tokens of one sequence, after `past` others that were forwarded before."""
    return Work(tokens, tokens * (past + tokens / 2), labels)


def pair_work(prompt: float, chosen: float, rejected: float, *, learns_prompt: bool = False) -> Work:
    """Two answers to a prompt that is forwarded once for both; its last token comes again before the second."""
    first = sequence_work(prompt + chosen, chosen + (prompt - 1 if learns_prompt else 0))
    return first + sequence_work(1 + rejected, rejected, past=prompt)


def learns_prompt(branch: BranchConfig) -> bool:
    """ORPO's likelihood term is by default over the prompt too."""
    return isinstance(branch, PreferenceConfig) and branch.learns_prompt


def other_forwards(branch: BranchConfig, inputs: Container[str]) -> int:
    """How many times a training step forwards its rows beside what it learns from.

    DPO and KTO need the reference's log-probabilities: from an input of that name, or from a forward pass of their own.
    KTO's reference point takes a pass of each prompt with another answer, in the policy and in the reference.
    """
    if not isinstance(branch, PreferenceConfig):
        return 0
    answers = 2 if branch.needs_kl else 1
    return int(branch.needs_kl) + (answers if branch.needs_reference and "reference" not in inputs else 0)


def rows_work(rows: Iterable[Encoded | EncodedPair | EncodedAnswer], branch: BranchConfig) -> Work:
    """What one forward pass of `rows` takes in this branch."""
    total = Work()
    for row in rows:
        if isinstance(row, EncodedPair):
            total += pair_work(*map(len, row), learns_prompt=learns_prompt(branch))
        else:
            total += sequence_work(row.row_tokens, row.num_labels)
    return total

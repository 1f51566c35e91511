"""Single answers that are judged: their log-probabilities, and the reference point that couples a global batch."""

from collections.abc import Sequence

import torch
from torch import Tensor

from paft.chat.tokens import EncodedAnswer
from paft.forward.batches import sft_tensors
from paft.model.policy import Policy
from paft.objectives.objective import AnswerLogps
from paft.training.reference import ScoredAnswer


def answer_logps(policy: Policy, rows: Sequence[EncodedAnswer], pad_id: int) -> AnswerLogps:
    """What an unpaired loss is of, but for the reference point; scored rows bring the reference's part."""
    device = policy.base.device
    tensors = sft_tensors([row.text for row in rows], pad_id, device)
    logps = policy(*tensors).sum(1)
    scored = [row.logps for row in rows if isinstance(row, ScoredAnswer)]
    if len(scored) == len(rows):
        reference = torch.tensor(scored, device=device)
    else:
        with policy.reference():
            reference = policy(*tensors).sum(1)
    return AnswerLogps(logps, reference, torch.tensor([row.label for row in rows], device=device))


def answer_values(logps: AnswerLogps, reward_scale: float, num_rows: int, num_good: int) -> dict[str, Tensor]:
    """This micro-batch's part of the averages over the good (chosen) and over the bad (rejected) answers of a global
    batch, under the names that pairs have them; NaN where it has none of them. `margins` are of the averages."""
    policy, good = logps.policy.detach(), logps.desirable
    rewards = reward_scale * (policy - logps.reference)
    kinds = {"chosen": (good, num_good), "rejected": (~good, num_rows - num_good)}
    values = {
        f"{name}_{what}": (of * mask).sum() / count
        for name, (mask, count) in kinds.items()
        for what, of in (("logps", policy), ("rewards", rewards))
    }
    return values | {"margins": values["chosen_rewards"] - values["rejected_rewards"]}

"""Our deltas against peft's merge functions, run on the same dense deltas."""

import pytest
import torch
from peft.utils import merge_utils
from torch import Tensor

from paft.merge.methods import dare_linear, dare_ties, task_arithmetic, ties
from paft.merge.sparsify import bernoulli_mask, magnitude

WEIGHTS = [0.7, 0.3]
OURS = {"elect_on": "unweighted", "normalize": "count"}
SIGNS = [("mass", "total"), ("count", "frequency")]


def random_deltas() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(24, 40, generator=generator) * 0.01 for _ in range(2)]


def masks_of_seed(seed: int, density: float) -> list[Tensor]:
    """The masks peft draws from the global generator after `manual_seed(seed)`."""
    generator = torch.Generator().manual_seed(seed)
    return [bernoulli_mask((24, 40), density, generator) for _ in range(2)]


@pytest.mark.parametrize(("election", "peft_method"), SIGNS)
@pytest.mark.parametrize("density", [0.2, 0.5, 0.9])
def test_ties_against_peft(density: float, election: str, peft_method: str) -> None:
    deltas = random_deltas()
    theirs = merge_utils.ties(deltas, torch.tensor(WEIGHTS), density, majority_sign_method=peft_method)
    torch.testing.assert_close(ties(deltas, WEIGHTS, density=density, election=election, **OURS), theirs)


@pytest.mark.parametrize(("election", "peft_method"), SIGNS)
def test_dare_ties_against_peft(election: str, peft_method: str) -> None:
    deltas, density = random_deltas(), 0.4
    torch.manual_seed(5)
    theirs = merge_utils.dare_ties(deltas, torch.tensor(WEIGHTS), density, majority_sign_method=peft_method)
    options = {"masks": masks_of_seed(5, density), "rescale": "inverse_density", "election": election} | OURS
    torch.testing.assert_close(dare_ties(deltas, WEIGHTS, density=density, **options), theirs)


def test_dare_linear_against_peft() -> None:
    deltas, density = random_deltas(), 0.4
    torch.manual_seed(5)
    theirs = merge_utils.dare_linear(deltas, torch.tensor(WEIGHTS), density)
    ours = dare_linear(
        deltas, WEIGHTS, density=density, masks=masks_of_seed(5, density), rescale="inverse_density"
    )
    torch.testing.assert_close(ours, theirs)


def test_task_arithmetic_against_peft() -> None:
    deltas = random_deltas()
    theirs = merge_utils.task_arithmetic(deltas, torch.tensor(WEIGHTS))
    torch.testing.assert_close(task_arithmetic(deltas, WEIGHTS), theirs)


def test_magnitude_against_peft_magnitude_prune() -> None:
    deltas = random_deltas()
    theirs = merge_utils.magnitude_prune(deltas, torch.tensor(WEIGHTS), 0.3)
    torch.testing.assert_close(task_arithmetic([magnitude(d, 0.3) for d in deltas], WEIGHTS), theirs)

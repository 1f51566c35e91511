"""Our deltas against peft's merge functions, run on the same dense deltas."""

import numpy as np
import pytest
import torch
from peft.utils import merge_utils
from torch import Tensor

from paft.delta.rows import Array
from paft.merge.methods import dare_linear, dare_ties, magnitude, task_arithmetic, ties
from paft.merge.sparsify import Mask, bernoulli_mask

WEIGHTS = [0.7, 0.3]
OURS = {"elect_on": "unweighted", "normalize": "count"}
SIGNS = [("mass", "total"), ("count", "frequency")]


def random_deltas() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(24, 40, generator=generator) * 0.01 for _ in range(2)]


def ours(deltas: list[Tensor]) -> list[Array]:
    return [delta.numpy() for delta in deltas]


def masks_of_seed(seed: int, density: float) -> list[Mask]:
    """The masks peft draws from the global generator after `manual_seed(seed)`."""
    generator = np.random.RandomState(seed)
    return [bernoulli_mask((24, 40), density, generator) for _ in range(2)]


@pytest.mark.parametrize(("election", "peft_method"), SIGNS)
@pytest.mark.parametrize("density", [0.2, 0.5, 0.9])
def test_ties_against_peft(density: float, election: str, peft_method: str) -> None:
    deltas = random_deltas()
    theirs = merge_utils.ties(deltas, torch.tensor(WEIGHTS), density, majority_sign_method=peft_method)
    merged = ties(ours(deltas), WEIGHTS, density=density, election=election, **OURS)
    torch.testing.assert_close(torch.from_numpy(merged), theirs)


@pytest.mark.parametrize(("election", "peft_method"), SIGNS)
def test_dare_ties_against_peft(election: str, peft_method: str) -> None:
    deltas, density = random_deltas(), 0.4
    torch.manual_seed(5)
    theirs = merge_utils.dare_ties(deltas, torch.tensor(WEIGHTS), density, majority_sign_method=peft_method)
    options = {"masks": masks_of_seed(5, density), "rescale": "inverse_density", "election": election} | OURS
    merged = dare_ties(ours(deltas), WEIGHTS, density=density, **options)
    torch.testing.assert_close(torch.from_numpy(merged), theirs)


def test_dare_linear_against_peft() -> None:
    deltas, density = random_deltas(), 0.4
    torch.manual_seed(5)
    theirs = merge_utils.dare_linear(deltas, torch.tensor(WEIGHTS), density)
    options = {"masks": masks_of_seed(5, density), "rescale": "inverse_density"}
    merged = dare_linear(ours(deltas), WEIGHTS, density=density, **options)
    torch.testing.assert_close(torch.from_numpy(merged), theirs)


def test_task_arithmetic_against_peft() -> None:
    deltas = random_deltas()
    theirs = merge_utils.task_arithmetic(deltas, torch.tensor(WEIGHTS))
    torch.testing.assert_close(torch.from_numpy(task_arithmetic(ours(deltas), WEIGHTS)), theirs)


def test_magnitude_against_peft_magnitude_prune() -> None:
    deltas = random_deltas()
    theirs = merge_utils.magnitude_prune(deltas, torch.tensor(WEIGHTS), 0.3)
    merged = task_arithmetic([magnitude(delta, 0.3) for delta in ours(deltas)], WEIGHTS)
    torch.testing.assert_close(torch.from_numpy(merged), theirs)

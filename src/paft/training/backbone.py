"""The model of a training: the base, what earlier trainings add to it, and what is trained on top."""

from collections.abc import Sequence
from pathlib import Path

import torch

from paft.config import BranchConfig, ModelConfig, Quantization
from paft.model.adapters import add_deltas, refuse_unstored
from paft.model.full import FullPolicy
from paft.model.paths import FastPaths, paths_of
from paft.model.policy import Policy
from paft.model.quantize import quantize
from paft.proof.base import load_base
from paft.versions import recompute_layers


def make_policy(
    folder: Path,
    model: ModelConfig,
    branch: BranchConfig,
    deltas: Sequence[Path],
    paths: FastPaths | None,
    *,
    seed: int,
    device: torch.device,
    sharded: bool = False,
) -> Policy:
    """The base in `folder` plus `deltas`, with a new adapter or, with `tuning=full`, every weight to be trained.

    The base is read onto the `device`, so that no process holds it in host memory; a `sharded` one, or one whose
    weights become four bits there, layer by layer from the host. Raises `ValueError` for weights that the base's files
    do not hold.
    """
    # Some of Lightning's strategies make their device the default one. A factor's first values depend on the
    # device that draws them, and must not depend on the strategy
    cpu, packed = torch.device("cpu"), model.quantization is Quantization.nf4
    with cpu:
        loaded_on = cpu if sharded or packed else device
        base = load_base(folder, model, paths, device=loaded_on, used_on=device.type)
        add_deltas(base, list(deltas), folder)
    if packed:
        quantize(base, device)
    with cpu, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        policy = FullPolicy(base) if branch.is_full else Policy(base, branch.lora, seed=seed)
    refuse_unstored(policy.adapted_weights(), folder, left_out=not branch.is_full)
    return policy


def recompute_activations(policy: Policy, branch: BranchConfig) -> None:
    """Gradient checkpointing. Raises `ValueError` where masks of dropout could not be drawn again."""
    if branch.in_effect().lora.dropout and not paths_of(policy.base).padded:
        raise ValueError(
            f"lora.dropout={branch.lora.dropout:g} and trainer.gradient_checkpointing=true do not go "
            f"together on {policy.base.config.model_type}, whose rows are run one by one; switch one off"
        )
    recompute_layers(policy.base)

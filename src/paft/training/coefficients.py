"""The `coefficients` stage: how much of each branch's delta every layer takes, learnt on a few of both branches' rows.

Both deltas are frozen; a tensor has one number for each. What is minimised is the SFT loss of SFT rows plus the
preference branch's own loss of its pairs, as in LoRA Soups' learnable concatenation (Prabhakar et al. 2024,
arXiv:2410.13025) with either skill's own loss.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from paft.chat.tokens import Encoded, EncodedAnswer, EncodedPair
from paft.data.tokens import read_preference, read_sft
from paft.files.jsonfile import write_json
from paft.forward.batches import sft_tensors
from paft.forward.pairs import REJECTED, pair_tensors
from paft.graph.configs import CoefficientsStage
from paft.graph.stage import Stage
from paft.losses import mean_nll, reference_point
from paft.merge.branches import read_branches
from paft.merge.methods.learned import FILE
from paft.model.base import base_folder, pad_token_id
from paft.objectives.objective import Objective, UnpairedObjective
from paft.proof.base import load_base
from paft.proof.record import device_of, proved_paths
from paft.store.context import Context
from paft.training.batches import row_order
from paft.training.mixed import MixedPolicy
from paft.training.preference import pair_logps
from paft.training.reference import scored
from paft.training.taken import folder_of_branch
from paft.training.unpaired import answer_logps


def run(
    stage: Stage[CoefficientsStage], inputs: dict[str, Path], out: Path, context: Context
) -> dict[str, Any]:
    """Write coefficients.json, {tensor: [sft, preference]}; returns the loss at the first and at the last step."""
    config, settings = stage.config, context.running.trainer
    offline = context.running.offline
    folder, device = base_folder(config.model, offline=offline), device_of(settings)
    paths = replace(proved_paths(folder, config.model, device), fused=False)  # every layer is called as it is
    names = ("sft", "preference")
    folders = {n: folder_of_branch(stage.inputs[n], inputs[n], offline=offline) for n in names}
    branches = [read_branches(folder, {name: at})[name] for name, at in folders.items()]
    base = load_base(folder, config.model, paths, used_on=device)
    base.to(torch.device(device))  # type: ignore[arg-type]
    policy = MixedPolicy(base, branches, config.weights)
    policy.train()
    texts = drawn(read_sft(inputs["sft_data"], "train"), config)
    pairs: Sequence[Any] = read_preference(inputs["preference_data"], "train")
    pairs = scored(pairs, inputs["reference"]) if "reference" in inputs else pairs
    losses = learn(policy, config, texts, drawn(pairs, config), pad_token_id(folder, config.model), settings)
    write_json(out / FILE, {name: own.tolist() for name, own in policy.coefficients.items()})
    write_json(out / "losses.json", losses)
    return {"loss_before": losses[0], "loss_after": losses[-1], "steps": len(losses)}


def drawn(rows: Sequence[Any], config: CoefficientsStage) -> list[Any]:
    order = row_order(len(rows), seed=config.seed, epoch=0)[: config.num_rows]
    return [rows[i] for i in order]


def learn(
    policy: MixedPolicy,
    config: CoefficientsStage,
    texts: Sequence[Encoded],
    pairs: Sequence[Any],
    pad_id: int,
    settings: Any,
) -> list[float]:
    """Adam on the coefficients alone; the loss of every step, before it."""
    losses: list[float] = []
    objective = config.preference
    assert isinstance(objective, Objective | UnpairedObjective)
    loss_of: Any = pair_loss if isinstance(objective, Objective) else answer_loss
    optimizer = torch.optim.Adam(policy.coefficients.values(), lr=config.lr)
    batches = zip(cycled(texts, config.batch_size), cycled(pairs, config.batch_size), strict=True)
    steps = tqdm(
        islice(batches, config.steps),
        "coefficients",
        total=config.steps,
        unit=" steps",
        disable=not settings.progress_bar,
    )
    for some_texts, some_pairs in steps:
        optimizer.zero_grad()
        text = text_loss(policy, some_texts, pad_id)
        text.backward()
        pair = config.preference_loss_weight * loss_of(policy, objective, some_pairs, pad_id)
        pair.backward()
        optimizer.step()
        losses.append(float(text.detach() + pair.detach()))
    return losses


def cycled(rows: Sequence[Any], size: int) -> Iterator[list[Any]]:
    """Batches in order, from the first row again behind the last."""
    start = 0
    while True:
        yield [rows[(start + i) % len(rows)] for i in range(min(size, len(rows)))]
        start += size


def text_loss(policy: MixedPolicy, rows: list[Encoded], pad_id: int) -> Tensor:
    tensors = sft_tensors(rows, pad_id, policy.base.device)
    return mean_nll(policy(*tensors), sum(row.num_labels for row in rows))


def pair_loss(policy: MixedPolicy, objective: Objective, rows: list[EncodedPair], pad_id: int) -> Tensor:
    pairs = pair_tensors(policy, rows, pad_id, prompt_labels=objective.learns_prompt).to(policy.base.device)
    logps_RT = pairs.logps(policy)
    loss = objective.losses(pair_logps(policy, objective, rows, pairs, logps_RT)).mean()
    if not objective.weight_of_nll:
        return loss
    chosen = pairs.answers != REJECTED
    return loss + objective.weight_of_nll * mean_nll(
        logps_RT * chosen, int((pairs.labels >= 0)[chosen].sum())
    )


def answer_loss(
    policy: MixedPolicy, objective: UnpairedObjective, rows: list[EncodedAnswer], pad_id: int
) -> Tensor:
    logps = answer_logps(policy, rows, pad_id)
    if objective.needs_kl:
        with torch.no_grad():
            others = answer_logps(policy, [row.mismatched for row in rows], pad_id)
        logps = logps._replace(kl=reference_point(others.policy - others.reference, len(rows)))
    return objective.losses(logps).mean()

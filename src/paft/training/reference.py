"""The `reference` stage: what the reference policy of DPO or KTO says of the rows, once for all trainings that ask.

The reference never moves, so beta, loss, learning rate and adapter are no part of it. Pairs are scored in parts
of a few hundred, like lengths together; on several devices each rank takes every so manieth part with the whole
base on its own device, and none waits for another. A killed run goes on after the parts it has finished.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm import tqdm

from paft.chat.tokens import EncodedAnswer, EncodedPair
from paft.config import Quantization, TrainerConfig
from paft.data.tokens import read_preference
from paft.delta.full import trained_folder
from paft.forward.batches import micro_batches
from paft.forward.pairs import pair_tensors
from paft.graph.configs import FirstSteps, ReferenceStage
from paft.graph.stage import Stage
from paft.model.adapters import add_deltas
from paft.model.base import base_folder, pad_token_id
from paft.model.policy import FrozenPolicy, Policy
from paft.model.quantize import quantize
from paft.proof.base import load_base
from paft.proof.record import device_of, proved_paths
from paft.store.context import Context
from paft.training.batches import row_order

FILE, PARTS = "reference.parquet", "part-*.parquet"
PART_ROWS = 256
SUMS = ("chosen_logps", "rejected_logps", "chosen_shorter_logps", "rejected_shorter_logps")
OF_ANSWERS = {"chosen_logps": "answer_logps", "rejected_logps": "mismatched_logps"}
"""What the sums are called of an unpaired row, which is scored as a pair of its two answers."""


class ScoredPair(EncodedPair):
    """A preference row and what the reference policy says of it."""

    reference: tuple[float, ...]
    """Log-probability of the chosen and of the rejected answer: sums over their tokens, and with `shorter` also over as
    many of each as the shorter one has."""


class ScoredAnswer(EncodedAnswer):
    """An unpaired row and what the reference policy says of its answer, and of the mismatched one."""

    logps: float
    mismatched_logps: float

    @property
    def mismatched(self) -> "ScoredAnswer":
        row = ScoredAnswer(*super().mismatched)
        row.logps = self.mismatched_logps
        return row


def run(stage: Stage[ReferenceStage], inputs: dict[str, Path], out: Path, context: Context) -> dict[str, Any]:
    """Write this rank's parts of the scores to `out`; `join` makes one file of them."""
    config = stage.config
    settings = context.running.trainer
    rows = read_preference(inputs["data"], "train")
    numbers = rows_read(len(rows), config.only)
    rank = int(os.environ["RANK"]) if settings.world_size > 1 else 0
    parts = [numbers[i : i + PART_ROWS] for i in range(0, len(numbers), PART_ROWS)][
        rank :: settings.world_size
    ]
    policy, pad_id = load_reference(config, inputs, context, rank)
    hidden = rank > 0 or not settings.progress_bar
    with tqdm(desc="reference", total=sum(map(len, parts)), unit=" rows", disable=hidden) as bar:
        for ids in parts:
            file = out / f"part-{ids[0]:09d}.parquet"
            if not file.is_file():
                pairs = {i: as_pair(rows[i]) for i in ids}
                scores = score_pairs(policy, pairs, pad_id, settings, shorter=config.shorter)
                if isinstance(rows[ids[0]], EncodedAnswer):
                    scores = scores.rename(columns=OF_ANSWERS)
                scores.to_parquet(file.with_suffix(".tmp"), index=False)
                os.replace(file.with_suffix(".tmp"), file)
            bar.update(len(ids))
    return {}


def load_reference(
    config: ReferenceStage, inputs: dict[str, Path], context: Context, rank: int
) -> tuple[FrozenPolicy, int]:
    """The base, plus the delta of an `sft` input, on this rank's device; and the token that pads."""
    settings = context.running.trainer
    folder = base_folder(config.model, offline=context.running.offline)
    kind = device_of(settings)
    base = load_base(folder, config.model, proved_paths(folder, config.model, kind), used_on=kind)
    add_deltas(base, [trained_folder(inputs["sft"])] if "sft" in inputs else [], folder)
    device = torch.device("cpu")
    if settings.accelerator == "gpu":
        alone = settings.world_size == 1
        device = torch.device("cuda", torch.cuda.current_device() if alone else rank % settings.devices)
    if config.model.quantization is Quantization.nf4:
        quantize(base, device)
    return FrozenPolicy(base).to(device), pad_token_id(folder, config.model)


def as_pair(row: EncodedPair | EncodedAnswer) -> EncodedPair:
    """Of an unpaired row its own answer and the mismatched one, which share its prompt."""
    if isinstance(row, EncodedPair):
        return row
    return EncodedPair(row.prompt_ids, row.answer_ids, row.mismatched_ids)


@torch.no_grad()
def score_pairs(
    policy: Policy,
    pairs: dict[int, EncodedPair],
    pad_id: int,
    settings: TrainerConfig,
    *,
    shorter: bool = False,
) -> pd.DataFrame:
    """One row a pair: its place in the data, log-probability of either answer in nats.

    With `shorter` also of as many tokens of each as the shorter one has.
    """
    place = {id(pair): i for i, pair in pairs.items()}
    device = next(policy.parameters()).device
    scores: list[tuple[float, ...]] = []
    rows_of = list(pairs.values())
    packed = policy.packs(max(row.row_tokens for row in rows_of))
    for rows in micro_batches(rows_of, settings.micro_batch_size, settings.micro_batch_tokens, packed=packed):
        tensors = pair_tensors(policy, rows, pad_id).to(device)
        logps = tensors.logps(policy)
        answers = [*tensors.answer_sums(logps)]
        if shorter:
            answers += tensors.answer_sums(logps * tensors.within_shorter())
        scores += zip((place[id(r)] for r in rows), *(a.tolist() for a in answers), strict=True)
    return pd.DataFrame(scores, columns=["row", *(SUMS if shorter else SUMS[:2])])


def join(out: Path, context: Context) -> dict[str, Any]:
    """Make one file of all devices' parts; returns the metrics for stage.json."""
    parts = sorted(out.glob(PARTS))
    scores = pd.concat([pd.read_parquet(part) for part in parts]).sort_values("row")
    scores.to_parquet(out / FILE, index=False)
    for part in parts:
        part.unlink()
    means = scores.iloc[:, 1:3].mean()
    return {
        "rows": len(scores),
        **{str(name): float(value) for name, value in means.items()},
        "devices": context.running.trainer.world_size,
    }


def rows_read(num_rows: int, only: FirstSteps | None) -> list[int]:
    """The rows a training reads, in the order of the data: all, or those of its first steps."""
    if only is None:
        return list(range(num_rows))
    size = only.global_batch_size
    per_epoch = num_rows // size
    if only.max_steps >= per_epoch:
        return list(range(num_rows))
    return sorted(row_order(num_rows, seed=only.seed, epoch=0)[: only.max_steps * size])


def scored(rows: Sequence[Any], folder: Path) -> list[Any]:
    """The rows in their order, those that the stage in `folder` scored with their reference."""
    scores = pd.read_parquet(folder / FILE)
    known = list(rows)
    for i, *reference in scores.itertuples(index=False):
        known[i] = with_reference(known[i], reference)
    return known


def with_reference(row: EncodedPair | EncodedAnswer, reference: Sequence[float]) -> ScoredPair | ScoredAnswer:
    if isinstance(row, EncodedAnswer):
        answer = ScoredAnswer(*row)
        answer.logps, answer.mismatched_logps = reference
        return answer
    pair = ScoredPair(*row)
    pair.reference = tuple(reference)
    return pair

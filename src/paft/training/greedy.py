"""The `sft` and `preference` stages of a branch that is a greedy soup: the mean of those trainings, of several, that
validation rows choose (recipe 1 of Wortsman et al. 2022, arXiv:2203.05482, with the validation loss for accuracy).

The rows are the branch's own validation split, of which no training learns and no stage but this one makes a choice;
`paft.command.chosen` refuses those that are items of the evaluation.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from paft.chat.tokens import IGNORE, Encoded, EncodedAnswer, EncodedPair
from paft.config import Quantization
from paft.delta.full import trained_folder
from paft.graph.configs import GreedySoupStage
from paft.graph.soup import members, words
from paft.graph.stage import Stage
from paft.graph.stages import TRAINED
from paft.merge.branches import read_branches
from paft.model.adapters import add_deltas
from paft.model.base import base_folder, pad_token_id
from paft.model.quantize import quantize
from paft.proof.base import load_base
from paft.proof.record import device_of, proved_paths
from paft.store.context import Context
from paft.training.batches import StepLoader
from paft.training.mixed import MixedPolicy
from paft.training.soup import write_mean
from paft.training.stage import MODULES, READERS

log = logging.getLogger("paft")

Score = Callable[[Sequence[int]], Mapping[str, float]]
"""The numbers of some trainings -> what their mean has on the validation rows; "loss" decides."""


@dataclass(frozen=True)
class Candidate:
    """Trainings whose mean was scored."""

    members: tuple[int, ...]
    """Their numbers, in the order they were taken."""
    values: Mapping[str, float]
    kept: bool
    """Whether the soup went on from here; the last one of which this is true is the soup."""


def greedy(num_trainings: int, score: Score) -> list[Candidate]:
    """Every candidate in the order it was scored: each training alone, then the soup so far with one more.

    It begins as the training of the lowest loss. Each other one, the lower its loss the earlier (of equal ones the
    first), stays in it if the loss of the mean is then no higher than before. Raises `ValueError` if no training has a
    finite loss.
    """
    alone = [dict(score([number])) for number in range(num_trainings)]
    if not any(math.isfinite(values["loss"]) for values in alone):
        raise ValueError(
            "no training of the soup has a finite loss on the validation rows; look at their curves"
        )
    first, *others = sorted(
        range(num_trainings), key=lambda n: (math.isnan(alone[n]["loss"]), alone[n]["loss"])
    )
    candidates = [Candidate((number,), values, number == first) for number, values in enumerate(alone)]
    soup: tuple[int, ...] = (first,)
    lowest = alone[first]["loss"]
    for number in others:
        values = dict(score([*soup, number]))
        candidates.append(Candidate((*soup, number), values, kept=values["loss"] <= lowest))
        if candidates[-1].kept:
            soup, lowest = candidates[-1].members, values["loss"]
    return candidates


def run(
    stage: Stage[GreedySoupStage], inputs: dict[str, Path], out: Path, context: Context
) -> dict[str, Any]:
    """Write the mean of the chosen trainings' deltas to `out/adapter`, and `sparsity.json`; returns the metrics: among
    them every candidate with its scores, and the soup's under the names that a training has them."""
    rows, passed = validation_rows(stage, inputs["data"])
    names = [*members(stage)]
    score, hidden = scorer(stage, inputs, rows, context), not context.running.trainer.progress_bar
    with tqdm(desc="greedy soup", total=2 * len(names) - 1, unit=" scores", disable=hidden) as progress:

        def counted(numbers: Sequence[int]) -> Mapping[str, float]:
            progress.update()
            return score(numbers)

        candidates = greedy(len(names), counted)
    *_, soup = (candidate for candidate in candidates if candidate.kept)
    kept = sorted(soup.members)
    folders = [inputs[names[number]] for number in kept]
    metrics = write_mean(folders, stage.config.model, out, offline=context.running.offline)
    told = described(candidates, stage)
    metrics |= {"rows": len(rows), "rows_passed_over": passed, "candidates": told}
    metrics["chosen"] = [words(members(stage)[names[number]]) for number in kept]
    return metrics | {f"validation/{name}": value for name, value in soup.values.items()}


def described(candidates: Sequence[Candidate], stage: Stage[GreedySoupStage]) -> list[dict[str, Any]]:
    """The candidates by what their trainings differ in, for stage.json; each is logged."""
    said, told = [*map(words, members(stage).values())], []
    for candidate in candidates:
        names = [said[number] for number in candidate.members]
        told.append({"members": names, **candidate.values, "kept": candidate.kept})
        loss, kept = candidate.values["loss"], ", kept" if candidate.kept else ""
        log.info("%s soup: loss %.6g of %s%s", stage.name, loss, " + ".join(names), kept)
    return told


def scorer(
    stage: Stage[GreedySoupStage], inputs: dict[str, Path], rows: Sequence[Any], context: Context
) -> Score:
    """The validation loss of the branch, and what else a training says of these rows, of the mean of some trainings.

    The base is loaded once, with all adapters beside its layers; a mean is a factor for each of them.
    """
    config, settings = stage.config, context.running.trainer
    folder, device = base_folder(config.model, offline=context.running.offline), device_of(settings)
    paths = replace(proved_paths(folder, config.model, device), fused=False)  # every layer is called as it is
    base = load_base(folder, config.model, paths, used_on=device)
    add_deltas(base, [trained_folder(inputs[name]) for name in TRAINED if name in inputs], folder)
    if config.model.quantization is Quantization.nf4:
        quantize(base, torch.device(device))
    base.to(torch.device(device))  # type: ignore[arg-type]
    trainings = members(stage)
    adapters = [read_branches(folder, {name: inputs[name] / "adapter"})[name] for name in trainings]
    policy = MixedPolicy(base, adapters, [0.0] * len(adapters))
    first, pad_id = trainings["0"].config, pad_token_id(folder, config.model)
    module = MODULES[stage.name](folder, first, settings, num_steps=1, pad_id=pad_id)
    module.policy = policy
    module.to(torch.device(device)).eval()
    batch = StepLoader(rows, global_batch_size=len(rows), steps=1, seed=0).at(0)

    def score(numbers: Sequence[int]) -> dict[str, float]:
        policy.weigh([(number in numbers) / len(numbers) for number in range(len(adapters))])
        return {name: float(value) for name, value in module.averages(batch).items()}

    return score


def validation_rows(stage: Stage[GreedySoupStage], data: Path) -> tuple[list[Any], int]:
    """The first validation rows whose prompt is that of no training row, and how many before them were passed over.

    Raises `ValueError` if none is left.
    """
    read, wanted = READERS[stage.name], stage.config.num_rows
    rows = read(data, "validation")
    prompts = [prompt_of(row) for row in rows]
    held = set(prompts)
    learnt = {prompt for row in read(data, "train") if (prompt := prompt_of(row)) in held}
    others = [number for number, prompt in enumerate(prompts) if prompt not in learnt][:wanted]
    if not others:
        raise ValueError(
            f"each of the {len(rows)} validation rows of data.{stage.name} has the prompt of a training row, so "
            f"{stage.name}.soup.kind=greedy has none to go by; give it other rows, or leave it out"
        )
    if passed := others[-1] + 1 - len(others):
        log.warning(
            "%s soup: %d validation rows have the prompt of a training row; not used", stage.name, passed
        )
    return [rows[number] for number in others], passed


def prompt_of(row: Encoded | EncodedPair | EncodedAnswer) -> tuple[int, ...]:
    """The tokens before the first that is learnt."""
    if not isinstance(row, Encoded):
        return tuple(row.prompt_ids)
    return tuple(row.input_ids[: next(i for i, label in enumerate(row.labels) if label != IGNORE)])

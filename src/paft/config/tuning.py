"""What full fine-tuning does not go together with: said before anything is loaded."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from paft.config.merge import MergeOutput, Space
from paft.config.model import Quantization
from paft.config.paradigms import Paradigm
from paft.config.training import BranchConfig

if TYPE_CHECKING:
    from paft.config.root import RunConfig


def refuse_full(config: "RunConfig") -> None:
    """Raise `ValueError` for the first setting that a branch of this run cannot have with `tuning=full`."""
    if config.paradigm is Paradigm.joint and config.sft.tuning is not config.preference.tuning:
        raise ValueError(
            f"paradigm=joint trains one delta, got sft.tuning={config.sft.tuning.value} and preference.tuning="
            f"{config.preference.tuning.value}; set both to one of them"
        )
    for name in config.paradigm.branches:
        branch: BranchConfig = getattr(config, name)
        if branch.is_full and (wrong := next(_conflicts(config, branch), None)):
            raise ValueError(f"{name}.tuning=full {wrong}, or {name}.tuning=lora")


def _conflicts(config: "RunConfig", branch: BranchConfig) -> Iterator[str]:
    """In words: what a run has that is for LoRA alone, and what to do."""
    if config.model.quantization is not Quantization.none:
        yield (
            f"trains the weights themselves, which model.quantization={config.model.quantization.value} has in four "
            "bits: set model.quantization=none"
        )
    if branch.soup.stated:
        yield f"writes no LoRA adapter, and {branch.soup.stated} averages adapters: leave it out"
    merge = config.merge
    if merge.output is MergeOutput.adapter:
        yield (
            "changes embeddings and norms too, which no LoRA adapter holds: leave merge.output=adapter out"
        )
    if config.paradigm is not Paradigm.parallel:
        return  # of `merge` nothing else is read
    if merge.space is Space.core and Space.delta in merge.spaces:  # others are of whole weights too
        yield (
            "gives a delta without factors, which the bases of merge.space=core are made of: set merge.space=delta, "
            "or merge.space=svd, whose basis is the deltas' own"
        )

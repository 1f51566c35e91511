"""What a merge changes, and what the stages cost that measure on rows for it or for a soup: statistics of a branch,
coefficients of layers, the losses that a greedy soup goes by."""

from paft.config import HardwareConfig, ModelShape, Space, Statistic, TakenKind
from paft.cost.flops_and_bytes import (
    base_memory,
    forward_flops,
    head_parameters,
    item_bytes,
    linear_parameters,
    linear_sizes,
    parameters,
    weight_bytes,
)
from paft.cost.merges import MergeWork
from paft.cost.work import Work, other_forwards, pair_work, sequence_work
from paft.graph.configs import BranchStage, GreedySoupStage, StatisticsStage, TakenStage
from paft.graph.soup import members
from paft.graph.stage import Stage
from paft.plan.rows import Rows, count
from paft.store.store import Store

MIXED_COPIES = 3
"""Float32 arrays of a tensor while it is mixed: the sum, a delta and, on the way back, the gradient."""
BACKWARD = 2
"""Of a forward pass, for what a pass through frozen layers sends back; gradients of the weights take one more."""


def flops_of(stage: Stage, shape: ModelShape, store: Store) -> tuple[float, Rows]:
    """FLOPs of a `statistics` or `coefficients` stage, or of a greedy soup, and the rows they are of."""
    if isinstance(stage.config, GreedySoupStage):
        rows = count(stage.inputs["data"], store)
        return scoring_flops(stage, shape, rows), rows
    if isinstance(stage.config, StatisticsStage):
        rows = count(stage.inputs["data"], store)
        num = min(rows.num, stage.config.num_rows)
        work = sequence_work(rows.prompt + rows.answer, rows.answer) * num
        forward = forward_flops(shape, work)
        if stage.config.statistic is Statistic.fisher:
            return forward * (1 + BACKWARD), rows
        return forward + gram_flops(shape, work), rows
    texts, pairs = (count(stage.inputs[f"{branch}_data"], store) for branch in ("sft", "preference"))
    row = sequence_work(texts.prompt + texts.answer, texts.answer) + pair_work(
        pairs.prompt, pairs.answer, pairs.answer
    )
    passes = BACKWARD + int(changes_all(stage))
    return forward_flops(shape, row * stage.config.batch_size * stage.config.steps) * passes, texts


def scoring_flops(soup: Stage[GreedySoupStage], shape: ModelShape, rows: Rows) -> float:
    """Each of n trainings is scored alone, and n - 1 times a mean of several."""
    trainings = members(soup)
    branch = trainings["0"].config.branch
    passes = (2 * len(trainings) - 1) * (1 + other_forwards(branch, ()))
    return forward_flops(shape, rows.work(branch) * min(rows.held_out, soup.config.num_rows) * passes)


def gram_flops(shape: ModelShape, work: Work) -> float:
    """x x^T of the inputs of each layer, once for layers of one input."""
    return 2.0 * work.tokens * gram_values(shape)


def gram_values(shape: ModelShape) -> float:
    """Values of all Gram matrices of a model."""
    inputs = [linear_sizes(shape)[name][0] for name in ("q_proj", "o_proj", "gate_proj", "down_proj")]
    return float(shape.num_hidden_layers * sum(size**2 for size in inputs))


def bytes_of(stage: Stage, shape: ModelShape, hardware: HardwareConfig) -> float:
    """The model in float32, and what is summed up: of every tensor, where a branch changes all. Coefficients of such a
    branch take the model in its own type, each weight as stored and as mixed, and float32 arrays of one tensor; a soup
    takes the base as it is at work."""
    if isinstance(stage.config, GreedySoupStage):
        own = stage.config.model
        packed = weight_bytes(own, hardware)
        return base_memory(shape, item_bytes=item_bytes(own, hardware), weight_bytes=packed)
    model, every = 4.0 * parameters(shape), changes_all(stage)
    if not isinstance(stage.config, StatisticsStage):
        one = 4.0 * MIXED_COPIES * head_parameters(shape)
        return (
            2.0 * item_bytes(stage.config.model, hardware) * parameters(shape) + one if every else 2 * model
        )
    if stage.config.statistic is Statistic.fisher:
        return model + 2 * 4.0 * (parameters(shape) if every else linear_parameters(shape))
    return model + 4.0 * gram_values(shape)


def changes_all(stage: Stage) -> bool:
    """Whether a branch among a stage's inputs changes every tensor: by full fine-tuning, or taken as a whole model."""

    def all_of(config: object) -> bool:
        if isinstance(config, TakenStage):
            return config.kind is TakenKind.checkpoint
        return isinstance(config, BranchStage) and config.branch.is_full

    return any(all_of(branch.config) for branch in stage.inputs.values())


def merge_work(shape: ModelShape, stage: Stage) -> MergeWork:
    """Deltas that are no LoRA are decomposed as the method says, or both side by side in the space of that."""
    if not changes_all(stage):
        return MergeWork(shape)
    method = stage.config.method
    return MergeWork(shape, True, 2 if method.space is Space.svd else method.decompositions)

"""What the stages cost that measure on training rows for a merge: statistics of a branch, coefficients of layers."""

from paft.config import ModelShape, Statistic
from paft.cost.flops_and_bytes import forward_flops, linear_parameters, linear_sizes, parameters
from paft.cost.work import Work, pair_work, sequence_work
from paft.graph.configs import StatisticsStage
from paft.graph.stage import Stage
from paft.plan.rows import Rows, count
from paft.store.store import Store

BACKWARD = 2
"""Of a forward pass, for what a pass through frozen layers sends back; gradients of the weights take one more."""


def flops_of(stage: Stage, shape: ModelShape, store: Store) -> tuple[float, Rows]:
    """FLOPs of a `statistics` or `coefficients` stage, and the rows they are of."""
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
    return forward_flops(shape, row * stage.config.batch_size * stage.config.steps) * BACKWARD, texts


def gram_flops(shape: ModelShape, work: Work) -> float:
    """x x^T of the inputs of each layer, once for layers of one input."""
    return 2.0 * work.tokens * gram_values(shape)


def gram_values(shape: ModelShape) -> float:
    """Values of all Gram matrices of a model."""
    inputs = [linear_sizes(shape)[name][0] for name in ("q_proj", "o_proj", "gate_proj", "down_proj")]
    return float(shape.num_hidden_layers * sum(size**2 for size in inputs))


def bytes_of(stage: Stage, shape: ModelShape) -> float:
    """The model in float32, and what is summed up."""
    model = 4.0 * parameters(shape)
    if not isinstance(stage.config, StatisticsStage):
        return 2 * model
    if stage.config.statistic is Statistic.fisher:
        return model + 2 * 4.0 * linear_parameters(shape)
    return model + 4.0 * gram_values(shape)

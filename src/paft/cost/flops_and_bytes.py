"""What a model's work costs, from its shape alone: FLOPs and bytes. Pure arithmetic, loads no torch.

A plan and the throughput shown while training use the same functions. A multiply-add is two FLOPs; norms,
activations and the optimizer, below one percent together, are left out. Tokens are real ones, never padding.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from paft.config import (
    BranchConfig,
    DType,
    HardwareConfig,
    L1Of,
    LoraConfig,
    ModelConfig,
    ModelShape,
    Quantization,
    SFTConfig,
)
from paft.cost.parameters import (
    adapted,
    dropout_masks,
    head_parameters,
    linear_parameters,
    linear_sizes,
    lora_parameters,
    parameters,
)
from paft.cost.work import Work
from paft.device import CPU, computed_in

BLOCK_N = CPU.head_block
"""Tokens whose vocabulary-sized logits exist at once in an evaluation, and in a training on a CPU."""
NF4_BYTES = 1 / 2 + 1 / 64 + 4 / (64 * 256)
"""Of a weight: four bits, its block's maximum in a byte, and the scale of 256 such maxima in float32."""


# --- FLOPs -------------------------------------------------------------------------------------------


def forward_flops(shape: ModelShape, work: Work) -> float:
    """One forward pass of the base."""
    return _layer_flops(shape, work) + 2 * head_parameters(shape) * work.labels


def training_flops(
    shape: ModelShape, work: Work, lora: LoraConfig | None, *, recompute: bool = False
) -> float:
    """Forward and backward pass of a LoRA on a frozen base; without one, of training every weight.

    The base's weights need no gradient, so its backward pass is one product, as the forward pass, and a LoRA
    parameter costs six FLOPs a token; attention's backward pass is twice its forward pass. `recompute`
    (gradient checkpointing) adds a forward pass of the layers. A weight that is trained takes one product more, and the
    head's another, for logits that were not kept.
    """
    if lora is None:
        return _layer_flops(shape, work) * (4 if recompute else 3) + 8 * head_parameters(shape) * work.labels
    factors = 2 * lora_parameters(shape, lora) * work.tokens
    forward = _layer_flops(shape, work) + factors
    backward = _layer_flops(shape, Work(work.tokens, 2 * work.attended)) + 2 * factors
    return forward * (2 if recompute else 1) + backward + 4 * head_parameters(shape) * work.labels


def penalty_flops(shape: ModelShape, lora: LoraConfig) -> float:
    """The L1 penalty of one optimizer step: every delta B A, and its sign times either factor."""
    return 6 * shape.num_hidden_layers * lora.rank * sum(n * m for n, m in adapted(shape, lora))


def branch_flops(
    shape: ModelShape, branch: BranchConfig, work: Work, *, steps: float, forwards: int, recompute: bool
) -> float:
    """Training on rows of this work in `steps` optimizer steps, with so many other `forwards` of them."""
    lora = None if branch.is_full else branch.lora
    flops = training_flops(shape, work, lora, recompute=recompute)
    flops += forwards * forward_flops(shape, work)
    if lora and isinstance(branch, SFTConfig) and branch.l1.weight and branch.l1.of is L1Of.delta:
        flops += steps * penalty_flops(shape, lora)
    return flops


def _layer_flops(shape: ModelShape, work: Work) -> float:
    scores_and_values = 4 * shape.num_hidden_layers * shape.num_attention_heads * shape.head_dim
    return 2 * linear_parameters(shape) * work.tokens + scores_and_values * work.attended


# --- bytes on one device -----------------------------------------------------------------------------


def item_bytes(model: ModelConfig, hardware: HardwareConfig | None = None) -> int:
    """Of one stored weight; on a hardware, of one weight and one activation at work there."""
    kind = "" if hardware is None else kind_of(hardware)
    return 4 if computed_in(model.dtype.value, kind) == DType.float32.value else 2


def weight_bytes(model: ModelConfig, hardware: HardwareConfig) -> float:
    """Of one weight of a linear layer while an adapter trains on it."""
    return NF4_BYTES if model.quantization is Quantization.nf4 else item_bytes(model, hardware)


def kind_of(hardware: HardwareConfig) -> str:
    """What torch calls such a device: `cuda` or `cpu`."""
    return "cuda" if hardware.accelerator == "gpu" else "cpu"


def base_memory(shape: ModelShape, *, item_bytes: int, weight_bytes: float | None = None) -> float:
    """Of all weights, those of the linear layers in `weight_bytes` each; embeddings, norms and head keep their type."""
    linear = linear_parameters(shape)
    return linear * (weight_bytes or item_bytes) + (parameters(shape) - linear) * item_bytes


def unpacked_memory(shape: ModelShape, *, item_bytes: int, weight_bytes: float | None = None) -> float:
    """Of the one layer whose packed weights are multiplied, in the type they are multiplied in."""
    packed = weight_bytes is not None and weight_bytes < item_bytes
    return max(n * m for n, m in linear_sizes(shape).values()) * item_bytes if packed else 0.0


@dataclass(frozen=True)
class Batch:
    """The largest micro-batch: its padded tokens, and the tokens of its longest sequence."""

    tokens: float
    longest: float


def training_memory(
    shape: ModelShape,
    lora: LoraConfig | None,
    batch: Batch,
    *,
    item_bytes: int,
    weight_bytes: float | None = None,
    shards: int = 1,
    recompute: bool = False,
    stored_scores: bool = False,
    head_block: int = BLOCK_N,
) -> Mapping[str, float]:
    """Bytes by what holds them, at the end of a forward pass.

    `weight_bytes` is of a linear layer's weight if that is not `item_bytes`. `shards` devices share the base and the
    factors. `stored_scores` is for an attention that keeps its weights, `head_block` the tokens whose logits exist at
    once. Without a LoRA every weight is trained.
    """
    layers, beside = (
        shape.num_hidden_layers,
        8 if lora is None else 0,
    )  # a whole weight's delta and its gradient
    base = base_memory(shape, item_bytes=item_bytes, weight_bytes=weight_bytes) / shards
    if shards > 1:  # whole while they are used: this decoder layer and the next, embeddings and head
        base += 2 * linear_parameters(shape) / layers * ((weight_bytes or item_bytes) + beside)
        base += 2 * head_parameters(shape) * (item_bytes + beside)
    one = layer_activations(shape, batch, item_bytes=item_bytes, stored_scores=stored_scores)
    one += dropout_masks(shape, lora) * batch.tokens if lora else 0
    adapter = trained_memory(shape, lora, item_bytes=item_bytes) / shards
    if lora and shards > 1:  # gradients stay whole until the last micro-batch of a step
        adapter += 4 * lora_parameters(shape, lora)
    stream = shape.hidden_size * batch.tokens * item_bytes
    return {
        "base": base + unpacked_memory(shape, item_bytes=item_bytes, weight_bytes=weight_bytes),
        "adapter": adapter,
        "activations": layers * stream + one if recompute else layers * one,
        "head": head_memory(shape, batch, item_bytes=item_bytes, block=head_block),
    }


def trained_memory(shape: ModelShape, lora: LoraConfig | None, *, item_bytes: int) -> float:
    """A float32 value, gradient and two Adam moments each; of every weight also the base's own, and one at work."""
    if lora:
        return 16.0 * lora_parameters(shape, lora)
    return (16.0 + item_bytes) * parameters(shape) + 8.0 * head_parameters(shape)


def layer_activations(shape: ModelShape, batch: Batch, *, item_bytes: int, stored_scores: bool) -> float:
    """What a decoder layer keeps for its backward pass.

    Both norms' inputs and outputs, queries, keys, values and what attention makes of them, and inside the MLP the
    gate, the up projection and the product that goes down.
    """
    heads, keys = shape.num_attention_heads, shape.num_key_value_heads
    width = 4 * shape.hidden_size + (2 * heads + 2 * keys) * shape.head_dim + 3 * shape.intermediate_size
    return (width + (heads * batch.longest if stored_scores else 0)) * batch.tokens * item_bytes


def head_memory(shape: ModelShape, batch: Batch, *, item_bytes: int, block: int = BLOCK_N) -> float:
    """A block of logits, and the gradient that each position will pull on its hidden state."""
    return min(block, batch.tokens) * shape.vocab_size * item_bytes + (
        batch.tokens * shape.hidden_size * item_bytes
    )


def forward_memory(
    shape: ModelShape, batch: Batch, *, item_bytes: int, weight_bytes: float | None = None
) -> float:
    """Bytes of a forward pass without gradients: the base, the widest point of one layer, a block of logits."""
    base = base_memory(shape, item_bytes=item_bytes, weight_bytes=weight_bytes)
    base += unpacked_memory(shape, item_bytes=item_bytes, weight_bytes=weight_bytes)
    return base + pass_memory(shape, batch, item_bytes=item_bytes)


def pass_memory(shape: ModelShape, batch: Batch, *, item_bytes: int) -> float:
    """Bytes of a forward pass without gradients, beside the weights."""
    widest = _widest(shape) * batch.tokens * item_bytes
    return widest + head_memory(shape, batch, item_bytes=item_bytes)


def _widest(shape: ModelShape) -> int:
    """Numbers of one token at the widest point of a layer: norm and residual, gate, up projection and their product."""
    return 2 * shape.hidden_size + 3 * shape.intermediate_size


def tokens_that_fit(shape: ModelShape, free: float, *, item_bytes: int) -> int:
    """The largest power of two of tokens whose forward pass takes half of `free` bytes at most; 1 at least.

    The other half is for what the allocator cannot use and for logits in float32. A power of two, so that a few bytes
    more or less do not make other batches.
    """
    tokens = 1
    while pass_memory(shape, Batch(2 * tokens, 2 * tokens), item_bytes=item_bytes) <= free / 2:
        tokens *= 2
    return tokens


def past_share(shape: ModelShape) -> float:
    """Memory of a token that was forwarded before, beside one that is now: of one layer its keys and values are copied
    for every row, and once more for every head that shares them."""
    return 2 * shape.head_dim * (shape.num_key_value_heads + shape.num_attention_heads) / _widest(shape)

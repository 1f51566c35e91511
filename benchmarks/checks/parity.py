"""The device against the CPU: losses, gradients, packed rows, shards."""

import socket
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from checks.given import Given, distance, loaded
from measure import Row
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from paft.chat.tokens import IGNORE, Encoded, EncodedPair
from paft.config import DType
from paft.forward.batches import sft_tensors
from paft.forward.pairs import shared_prompt_tensors, two_row_tensors
from paft.training.batches import StepLoader
from paft.training.module import BranchModule
from paft.training.strategy import shard

CASES: dict[str, tuple[str, ...]] = {
    "sft": ("lambda=1e-4",),
    "sft, rank 128": ("lambda=0", "sft.lora.rank=128"),
    "dpo": ("preference=dpo",),
    "dpo, ipo": ("preference=dpo", "preference.loss=ipo"),
    "orpo": ("preference=orpo",),
}
"""Without dropout, whose masks every kind of device draws for itself."""
LOSS, GRADIENT = 1e-5, 1e-4
"""Relative distances in float32 that another order of sums explains, after four layers of width 4096."""
OWN_ERROR = 2.0
"""The device's bfloat16 may be this many times as far from float32 as the CPU's bfloat16."""
ROUNDING = 2**-8
"""Takes the place of the CPU's own error where it computes a bfloat16 model in float32 and makes none."""
LENGTHS = {"mistral": (1, 7, 333, 1500), "tiny": (1, 7, 33, 90)}
BFLOAT16 = 2e-2
Step = tuple[float, dict[str, Tensor]]


def gradients(given: Given) -> list[Row]:
    """Loss and gradients of every objective: the device in float32 and bfloat16 against the CPU in float32."""
    rows: list[Row] = []
    for name, words in CASES.items():
        branch = name[:3] if name.startswith("sft") else "preference"
        words = (*given.base(given.few_layers), *words)
        exact, near = (step(loaded(words, branch, dtype), branch, given.shape, "cpu") for dtype in DType)
        ours, half = (
            step(loaded(words, branch, dtype), branch, given.shape, given.device) for dtype in DType
        )
        off = abs(ours[0] / exact[0] - 1)
        rows.append(Row(f"{name}: loss", f"{ours[0]:.6f}", "CPU", f"{exact[0]:.6f}", off, at_most=LOSS))
        apart, wrong, own = (distance(found[1], exact[1]) for found in (ours, half, near))
        rows.append(
            Row(f"{name}: gradient", f"{apart:.1e} apart", "CPU in float32", ratio=apart, at_most=GRADIENT)
        )
        shown = f"{wrong:.1e} apart", "CPU in bfloat16", f"{own:.1e} apart"
        rows.append(
            Row(f"{name}: gradient, bfloat16", *shown, ratio=wrong / (own or ROUNDING), at_most=OWN_ERROR)
        )
    return rows


def step(module: BranchModule, branch: str, shape: str, device: str) -> Step:
    """Loss and gradients of one global batch, the penalty with them."""
    module.to(device)
    rows = sft_rows(shape) if branch == "sft" else pairs(shape)
    (batch,) = StepLoader(rows, global_batch_size=len(rows), steps=1, seed=0)
    batch = replace(batch, step=1)  # at step 0 an adapter has not moved
    lengths = [row.row_tokens for row in batch.rows]
    module.backbone.rows.begin(batch.step, [*range(len(lengths))], lengths)
    loss, _ = module.micro_loss(list(batch.rows), batch)
    penalty = module.penalty() if branch == "sft" else None
    loss = loss if penalty is None else loss + penalty
    loss.backward()
    named = module.backbone.peft.named_parameters()
    return loss.item(), {n: p.grad.detach().cpu() for n, p in named if p.grad is not None}


def packing(given: Given) -> list[Row]:
    """Rows of unlike length in one pass against each alone; pairs that share a prompt against two rows."""
    rows = []
    for dtype, most in ((DType.float32, 1e-4), (DType.bfloat16, BFLOAT16)):
        module = loaded((*given.base(given.few_layers), "lambda=0"), "sft", dtype).to(given.device)
        policy = module.backbone
        with torch.no_grad():
            texts = sft_rows(given.shape)
            together = policy(*(t.to(given.device) for t in sft_tensors(texts, 0)))
            alone = [policy(*(t.to(given.device) for t in sft_tensors([row], 0)))[0] for row in texts]
            off = max(largest(together[i, : len(row)], row) for i, row in enumerate(alone))
            shown = f"within {off:.1e} of the largest", "each alone"
            rows.append(Row(f"rows in one pass, {dtype.value}", *shown, ratio=off, at_most=most))
            tensors = (
                lay(pairs(given.shape), 0).to(torch.device(given.device))
                for lay in (shared_prompt_tensors, two_row_tensors)
            )
            shared, two = (torch.cat(t.answer_sums(t.logps(policy))) for t in tensors)
            off = largest(shared, two)
            shown = f"within {off:.1e} of the largest", "two rows"
            rows.append(Row(f"shared prompts, {dtype.value}", *shown, ratio=off, at_most=most))
    return rows


def largest(found: Tensor, wanted: Tensor) -> float:
    """Largest difference over the largest value."""
    return float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-9))


def sharded(given: Given) -> list[Row]:
    """FSDP2 over one device, as every rank of many runs it, against the same module unsharded."""
    words = (*given.base(given.few_layers), "lambda=1e-4")
    plain = step(loaded(words, "sft", DType.float32), "sft", given.shape, given.device)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    backend = "nccl" if given.device == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=address, rank=0, world_size=1)
    module = loaded(words, "sft", DType.float32).to(given.device)
    mesh = init_device_mesh(given.device, (1, 1), mesh_dim_names=("data_parallel", "tensor_parallel"))
    shard(module.backbone, mesh)
    loss, found = step(module, "sft", given.shape, given.device)
    whole = {n: g.full_tensor() if hasattr(g, "full_tensor") else g for n, g in found.items()}
    off = distance(whole, plain[1])
    dist.destroy_process_group()
    return [
        Row(
            "loss, sharded",
            f"{loss:.6f}",
            "single",
            f"{plain[0]:.6f}",
            abs(loss / plain[0] - 1),
            at_most=1e-6,
        ),
        Row("gradient, sharded", f"{off:.1e} apart", "single", ratio=off, at_most=1e-6),
    ]


def sft_rows(shape: str) -> list[Encoded]:
    """Texts of one prompt token more than the lengths of their answers."""
    return [Encoded([3, *ids], [IGNORE, *ids]) for ids in map(tokens, LENGTHS[shape], LENGTHS[shape])]


def pairs(shape: str) -> list[EncodedPair]:
    lengths = LENGTHS[shape]
    return [
        EncodedPair(tokens(n, n), tokens(m, n + 1), tokens(n, n + 2))
        for n, m in zip(lengths, lengths[::-1], strict=True)
    ]


def tokens(count: int, seed: int) -> list[int]:
    ids: Sequence[Any] = torch.randint(
        3, 250, (count,), generator=torch.Generator().manual_seed(seed)
    ).tolist()
    return [*ids]

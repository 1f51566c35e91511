"""How fast branches train: against the card's own limit and against TRL on the same rows; what the penalty takes."""

import json
from dataclasses import replace
from pathlib import Path

import torch
from checks.given import SHAPES, TOKENS, Given, lengths
from contenders.branches import DPO, SFT, Part, paft, step_seconds, trl
from harness.process import Child, installed, matrix_peak
from measure import Row, skipped

from paft.losses import l1_penalty

SETTINGS: dict[str, tuple[str, ...]] = {
    "r=16": (),
    "r=16, lambda=1e-4": ("lambda=1e-4",),
    "r=16, dropout 0.05": ("sft.lora.dropout=0.05",),
    "r=16, recomputed": ("trainer.gradient_checkpointing=true",),
    "r=128": ("sft.lora.rank=128",),
}
SHARE, PENALTY, DPO_TIMES, TOKENS_PER_SECOND = 0.55, 0.03, 2.0, 15_000
"""Asked of Mistral-7B's shape on an H100: share of the measured peak, of a step, times TRL's pairs, and speed."""
BLOCKS = (512, 4096, 1 << 30)
RANKS = (16, 32, 64, 128)


def throughput(given: Given) -> list[Row]:
    """Tokens a second and share of the measured peak; what the penalty adds."""
    peak, rows, seconds = matrix_peak(given.device).flops_per_second, [], {}
    part, file = sized(SFT, given)
    job = prepared(part, given, file)
    for name, words in SETTINGS.items() if given.shape == "mistral" else [*SETTINGS.items()][:2]:
        run = paft("train", part, given.folder, file, *words)
        seconds[name] = sum(step_seconds(part, [run]))
        tokens, flops = (sum(job[unit][part.warmup :]) / seconds[name] for unit in ("tokens", "flops"))
        least = SHARE if name == "r=16" else None
        shown = f"{tokens:.0f} tokens/s", f"{peak / 1e12:.3g} TFLOP/s", f"{flops / 1e12:.3g} TFLOP/s"
        rows.append(Row(name, *shown, flops / peak, at_least=least, note=memory_of(run)))
    added = seconds["r=16, lambda=1e-4"] / seconds["r=16"] - 1
    return [*rows, Row("penalty, share of a step", f"{added:.1%}", "lambda=0", ratio=added, at_most=PENALTY)]


def peers(given: Given) -> list[Row]:
    """The same rows, factors and global batches in TRL's SFT and DPO trainers."""
    if not installed("trl"):
        return [skipped("TRL", "trl")]
    rows = []
    for objective, least in ((SFT, None), (DPO, DPO_TIMES)):
        part, file = sized(objective, given)
        job = prepared(part, given, file)
        ours = paft("train", part, given.folder, file)
        theirs = trl(part, given.folder, f"use_cpu={str(given.device == 'cpu').lower()}")
        a, b = (sum(job[part.unit][part.warmup :]) / sum(step_seconds(part, [run])) for run in (ours, theirs))
        losses = [run.result["logs"][0]["loss"] for run in (ours, theirs)]
        note = f"first losses {losses[0]:.4f} and {losses[1]:.4f}"
        shown = f"{a:.3g} {part.unit}/s", part.peer, f"{b:.3g} {part.unit}/s"
        rows.append(Row(f"{part.name}: {part.unit}/s", *shown, a / b, at_least=least, note=note))
        rows.append(Row(f"{part.name}: peak memory", memory_of(ours), part.peer, memory_of(theirs)))
    return rows


def penalty(given: Given) -> list[Row]:
    """The L1 penalty of one layer, value and gradient, by rank and by rows of a block, in float32."""
    sizes, rows = SHAPES[given.shape], []
    wide, narrow = sizes["intermediate_size"], sizes["hidden_size"]
    for rank in RANKS:
        A = torch.randn(rank, narrow, device=given.device, requires_grad=True)
        B = torch.randn(wide, rank, device=given.device, requires_grad=True)
        found = {block: given.seconds(lambda: penalised(A, B, block)) for block in BLOCKS}  # noqa: B023
        shown = ", ".join(f"{1e3 * s:.2f} ms" for s in found.values())
        best = min(found, key=lambda block: found[block])
        against = f"blocks of {BLOCKS[0]}, {BLOCKS[1]} and all {wide} rows"
        rows.append(
            Row(
                f"penalty of {wide} x {narrow}, r={rank}",
                shown,
                against,
                ratio=found[BLOCKS[0]] / found[best],
            )
        )
    return rows


def penalised(A: torch.Tensor, B: torch.Tensor, block: int) -> None:
    A.grad = B.grad = None
    l1_penalty([(A, B, 1.0)], block_rows=block).backward()


def sized(part: Part, given: Given) -> tuple[Part, Path]:
    """The part on this device with a random base, and a file of rows of full length for it."""
    tokens = TOKENS[given.shape]
    micro = (f"trainer.micro_batch_size={part.batch}", "trainer.gradient_checkpointing=false")
    words = (*given.base(given.layers), f"trainer={given.accelerator}", *micro, *lengths(part.branch, tokens))
    file = given.row_file(part.branch, part.steps * part.batch, tokens)
    return replace(part, overrides=(*part.overrides, *words)), file


def prepared(part: Part, given: Given, file: Path) -> dict[str, list[float]]:
    paft("prepare", part, given.folder, file)
    found: dict[str, list[float]] = json.loads(Path(given.folder / "job.json").read_text())
    return found


def memory_of(run: Child) -> str:
    """Of the device where the run had one, else of the process."""
    return f"{run.result['device_peak_mb'] or run.peak_mb:.0f} MB"

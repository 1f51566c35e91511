"""Where the time of a training step of SmolLM2-135M-Instruct goes, and how near each part is to the machine's peak.

    python benchmarks/step.py [--rows 8] [--tokens 170] [--quick] [--out DIR]

One micro-batch of equal rows, half of their tokens labels, as in GSM8K. Times are of torch's profiler, which makes
the small operations look longer than they are; parts are what one autograd node covers, forward and backward.
"""

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

from harness.process import Peak, matrix_peak, run_child
from harness.progress import Progress, new_parser, parse
from measure import Report, Row, publish

SECONDS = (25, 8)
PARTS = {
    "linear layers with LoRA": "_LoraProduct",
    "attention": "_Attention",
    "output head and softmax": "_HeadLogps",
    "RMSNorm": "_RMSNorm",
    "gated product of the MLP": "_SwiGLU",
}


def profile_step(model: str, rows: int, tokens: int) -> dict[str, float]:
    """Seconds of the whole step unprofiled, and of each part; FLOPs of the linear layers and of the whole."""
    import torch
    from hydra import compose, initialize_config_dir
    from torch.profiler import ProfilerActivity, profile

    from paft.command.choices import CONF
    from paft.command.compose import register_schemas, to_config
    from paft.cost.flops_and_bytes import training_flops
    from paft.cost.shape import read_shape
    from paft.cost.work import Work, sequence_work
    from paft.model.base import base_folder
    from paft.model.policy import Policy
    from paft.process.allocator import keep_freed_memory
    from paft.proof.base import load_base

    keep_freed_memory()
    register_schemas()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = to_config(compose("train", [f"model={model}"]))
    folder = base_folder(config.model)
    base = load_base(folder, config.model)
    vocabulary = base.config.vocab_size
    policy = Policy(base, config.sft.lora).train()
    ids = torch.randint(0, vocabulary, (rows, tokens), generator=torch.Generator().manual_seed(0))
    labels = ids.where(torch.arange(tokens) >= tokens // 2, -100)

    def step() -> None:
        policy.zero_grad()
        (-policy(ids, labels, torch.full((rows,), tokens)).sum() / labels.numel()).backward()

    step()
    whole = min(seconds(step) for _ in range(5))
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        step()
    shape = read_shape(folder / "config.json")
    assert shape is not None
    work = sequence_work(tokens, (tokens + 1) // 2) * rows
    linear = training_flops(shape, Work(work.tokens), config.sft.lora)
    flops = training_flops(shape, work, config.sft.lora)
    return parts(profiler) | {"whole": whole, "linear flops": linear, "flops": flops}


def parts(profiler: Any) -> dict[str, float]:
    """Seconds of each part of the profiled step, and of all of it."""
    averages = profiler.key_averages()
    events = {e.key: e.cpu_time_total / 1e6 for e in averages}
    each = {name: events[node] + events[f"{node}Backward"] for name, node in PARTS.items()}
    return each | {"profiled": sum(e.self_cpu_time_total for e in averages) / 1e6}


def seconds(action: Callable[[], None]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def measure(given: argparse.Namespace) -> Report:
    progress = Progress("step", SECONDS, quick=given.quick)
    progress.next("profile")
    words = ["--child", f"--rows={given.rows}", f"--tokens={given.tokens}"]
    found = run_child(__file__, *words, *(["--quick"] if given.quick else [])).result
    progress.next("arithmetic limit")
    return Report("step", rows_of(found, matrix_peak(), given.rows, given.tokens), found)


def rows_of(found: dict[str, float], peak: Peak, rows: int, tokens: int) -> list[Row]:
    profiled, limit = found["profiled"], found["flops"] / peak.flops_per_second
    table = [
        Row(
            f"step of {rows} x {tokens} tokens",
            f"{found['whole']:.2f} s",
            str(peak),
            f"{limit:.2f} s",
            limit / found["whole"],
        )
    ]
    for name in PARTS:
        note = ""
        if name == "linear layers with LoRA":
            reached = found["linear flops"] / found[name] / peak.flops_per_second
            note = f"{reached:.0%} of the peak while they run"
        table.append(
            Row(
                name,
                f"{found[name]:.2f} s",
                "profiled step",
                f"{profiled:.2f} s",
                found[name] / profiled,
                note=note,
            )
        )
    rest = profiled - sum(found[name] for name in PARTS)
    table.append(Row("all else", f"{rest:.2f} s", "profiled step", f"{profiled:.2f} s", rest / profiled))
    return table


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=170)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = parse(parser)
    if given.child:
        model = "tiny" if given.quick else "smollm2_135m"
        print("\n" + json.dumps(profile_step(model, given.rows, given.tokens)))
    else:
        publish(measure(given), given.out)


if __name__ == "__main__":
    main()

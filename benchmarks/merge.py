"""Merge two LoRA adapters into SmolLM2-135M, whole process: PAFT's methods, copying the checkpoint, mergekit.

    python benchmarks/merge.py

Prints one table and writes benchmarks/merge.json. All contenders run on this machine one after another, two
threads each; only the ratios mean anything. mergekit (extra `parity`) is left out where it is not installed.
"""

import importlib.util
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from paft.compose import register_schemas

ROOT = Path(__file__).parents[1]
METHODS = ("linear", "task_arithmetic", "slerp", "ties", "dare_ties")
REPEATS = 3


def make_inputs(folder: Path) -> Path:
    """The base model's folder; writes two random adapters of rank 16 on all linear layers to `folder`."""
    import torch
    from hydra import compose, initialize_config_dir

    from paft.adapter import Policy, base_fingerprint
    from paft.compose import to_config
    from paft.model import base_folder, load_base

    register_schemas()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = to_config(compose("train"))
    base = base_folder(config.model)
    for seed, name in enumerate(("sft", "preference")):
        torch.manual_seed(seed)
        policy = Policy(load_base(base, config.model), config.sft.lora)
        for _, B, _ in policy.factors():
            torch.nn.init.normal_(B, std=1e-3)
        policy.save(folder / name, {"base": base_fingerprint(config.model), "tokenizer": "", "template": ""})
        # mergekit looks the base up by this field
        path = folder / name / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": str(base)}))
    return base


def timed(command: list[str]) -> dict[str, float]:
    """Seconds (least of `REPEATS`) and peak resident MB of a whole process; raises if it fails."""
    seconds, peak = [], 0.0
    for _ in range(REPEATS):
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        seconds.append(time.perf_counter() - started)
        peak = max(peak, usage.ru_maxrss / 1024)
        if status:
            raise RuntimeError(f"{' '.join(command)} failed with status {status}")
    return {"seconds": round(min(seconds), 2), "peak_mb": round(peak)}


def mergekit_command(base: Path, folder: Path) -> list[str]:
    models = [
        {"model": f"{base}+{folder / n}", "parameters": {"weight": 1.0, "density": 0.5}}
        for n in ("sft", "preference")
    ]
    recipe: dict[str, Any] = {
        "merge_method": "ties",
        "base_model": str(base),
        "dtype": "float32",
        "out_dtype": "bfloat16",
    }
    (folder / "ties.yml").write_text(json.dumps(recipe | {"models": models}))
    tool = str(Path(sys.executable).with_name("mergekit-yaml"))
    return [
        tool,
        str(folder / "ties.yml"),
        str(folder / "mergekit"),
        "--lora-merge-cache",
        str(folder / "cache"),
    ]


def main() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    results: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        # in a child: a process's peak counts the memory of the parent it was forked from
        base = Path(
            subprocess.check_output([sys.executable, __file__, str(folder)], text=True).splitlines()[-1]
        )
        results["copy the files"] = timed(["cp", "-rL", str(base), str(folder / "copy")])
        for method in METHODS:
            words = [
                "--base",
                str(base),
                "--sft",
                str(folder / "sft"),
                "--preference",
                str(folder / "preference"),
            ]
            command = [
                sys.executable,
                "-m",
                "paft.merge",
                "--method",
                method,
                *words,
                "--out",
                str(folder / method),
            ]
            results[f"paft {method}"] = timed(command)
        if importlib.util.find_spec("mergekit"):
            results["mergekit ties (LoRA cache warm)"] = timed(mergekit_command(base, folder))
    width = max(map(len, results))
    for name, result in results.items():
        print(f"{name:{width}}  {result['seconds']:7.2f} s  {result['peak_mb']:7.0f} MB")
    (ROOT / "benchmarks" / "merge.json").write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(make_inputs(Path(sys.argv[1])))
    else:
        main()

"""Everything that one NVIDIA GPU can prove: the same results as the CPU, how fast, in how much memory.

    python benchmarks/gpu.py [check ...] [--device cuda|cpu] [--shape mistral|tiny] [--layers N] [--folder DIR]
                             [--quick] [--out DIR]

Each check runs in a process of its own, on random models made on the spot, and gives rows of one table; a check that
fails is a row that says so, and the exit code is 1 at the end. Without a CUDA device every check is skipped with that
reason. `mistral` has Mistral-7B's widths: 14.5 GB for 32 layers, below --folder. Checks that hold a result to the CPU
have four of its layers; those that need a model that has learnt something take SmolLM2-135M-Instruct. `--quick` is
`--device cpu --shape tiny`: it shows that every check runs, its figures mean nothing. Writes `benchmarks/gpu.json`.
"""

import argparse
import importlib
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from harness.process import run_child
from harness.progress import Progress, new_parser, parse
from measure import Report, Row, publish

CHECKS: dict[str, tuple[str, int]] = {
    "environment": ("checks.environment", 20),
    "tests": ("checks.environment", 120),
    "gradients": ("checks.parity", 90),
    "packing": ("checks.parity", 40),
    "sharded": ("checks.parity", 40),
    "penalty": ("checks.speed", 20),
    "twin": ("checks.runs", 120),
    "resume": ("checks.runs", 90),
    "nf4": ("checks.runs", 60),
    "memory": ("checks.runs", 180),
    "grid": ("checks.runs", 150),
    "throughput": ("checks.speed", 240),
    "peers": ("checks.speed", 240),
    "merging": ("checks.outcome", 400),
    "evaluation": ("checks.outcome", 240),
}
"""Name -> the module whose function of that name it is, and about how many seconds it takes on one H100."""
DEVICE = (
    "import json, torch; there = torch.cuda.is_available(); "
    "print(json.dumps({'name': torch.cuda.get_device_name() if there else None, 'torch': torch.__version__}))"
)


def main() -> None:
    given = parsed()
    if given.child:
        return child(given)
    named = run_child(sys.executable, "-c", DEVICE).result
    device = named["name"] if given.device == "cuda" else None
    missing = given.device == "cuda" and named["name"] is None
    report = Report("gpu", details={"device": device, "shape": given.shape, "layers": given.layers})
    progress = Progress("gpu", [CHECKS[name][1] for name in given.checks], quick=given.quick)
    failed = False
    for name in given.checks:
        progress.next(name)
        if missing:
            note = f"skipped: torch {named['torch']} sees no CUDA device; --device cpu runs it here"
            report.rows.append(Row(name, "-", note=note))
            continue
        try:
            report.rows += checked(name, given)
        except RuntimeError as error:
            failed = True
            print(error, file=sys.stderr)
            report.rows.append(Row(name, "failed", note=str(error).strip().splitlines()[-1]))
    publish(report, given.out, device=device)
    sys.exit(failed)


def checked(name: str, given: argparse.Namespace) -> list[Row]:
    """Run one check in a process and a folder of its own."""
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        words = ("--child", "--device", given.device, "--shape", given.shape, "--folder", folder)
        layers = ("--layers", str(given.layers)) if given.layers else ()
        found = run_child(__file__, name, *words, *layers).result
    return [Row(**row | {"what": f"{name}: {row['what']}"}) for row in found["rows"]]


def child(given: argparse.Namespace) -> None:
    from checks.given import LAYERS, Given

    (name,) = given.checks
    check: Any = getattr(importlib.import_module(CHECKS[name][0]), name)
    rows = check(Given(given.device, given.shape, given.layers or LAYERS[given.shape], given.folder))
    print("\n" + json.dumps({"rows": [asdict(row) for row in rows]}))


def parsed() -> argparse.Namespace:
    parser = new_parser(__doc__)
    parser.add_argument("checks", nargs="*", metavar="check", help=", ".join(CHECKS))
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--shape", choices=["mistral", "tiny"], default="mistral")
    parser.add_argument("--layers", type=int, metavar="N", help="decoder layers (default 32, of tiny 2)")
    parser.add_argument(
        "--folder", type=Path, metavar="DIR", help="where temporary files go (default: the system's)"
    )
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = parse(parser)
    if unknown := [name for name in given.checks if name not in CHECKS]:
        parser.error(f"there is no check {', '.join(unknown)}; there are {', '.join(CHECKS)}")
    given.checks = given.checks or [*CHECKS]
    if given.quick:
        given.device, given.shape = "cpu", "tiny"
    return given


if __name__ == "__main__":
    main()

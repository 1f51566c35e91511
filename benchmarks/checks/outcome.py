"""What comes after training: merges into files, and evaluation against lm-eval's own model."""

import json
import shutil
from pathlib import Path
from typing import Any

from checks.given import Given
from evaluate import same
from harness.process import BENCHMARKS, CONTENDERS, run_child
from measure import Row
from merge import paft

from paft.files.fingerprint import content_sha256

METHODS = ("linear", "task_arithmetic", "slerp", "ties", "dare_ties")
THREADS = (4, 16)
NARROWER = {"mistral": 1, "tiny": 16}
BATCHES = {"mistral": (8, 64), "tiny": (8,)}
QUESTIONS, SHOTS = {"mistral": 200, "tiny": 2}, {"mistral": 25, "tiny": 1}
SPEED = 3.0


def merging(given: Given) -> list[Row]:
    """Every merge of the paper into a random checkpoint of the shape, twice: same bytes, and seconds."""
    layers = str(given.layers if given.shape == "mistral" else 1)
    run_child(CONTENDERS / "mistral_shaped.py", "make", given.folder, layers, str(NARROWER[given.shape]))
    rows = []
    for method in METHODS:
        seconds, found = {}, set()
        for threads in THREADS:
            run = run_child(*paft(method, given.folder), environment={"OMP_NUM_THREADS": str(threads)})
            seconds[threads] = run.seconds
            found.add(
                tuple(content_sha256(path) for path in sorted((given.folder / "paft").glob("*.safetensors")))
            )
            shutil.rmtree(given.folder / "paft")
        few, many = (seconds[threads] for threads in THREADS)
        note = "same bytes" if len(found) == 1 else "OTHER BYTES"
        against = f"{THREADS[0]} threads", f"{few:.1f} s"
        rows.append(Row(f"{method}, {THREADS[1]} threads", f"{many:.1f} s", *against, few / many, note=note))
        if len(found) > 1:
            raise RuntimeError(f"{method}: two runs of one merge wrote other bytes")
    return rows


def evaluation(given: Given) -> list[Row]:
    """Multiple choice after worked questions: PAFT against lm-eval's HFLM, in float32 for the scores, then timed."""
    rows = []
    model = "tiny" if given.shape == "tiny" else "smollm2_135m"
    for dtype in ("float32", "bfloat16"):
        for batch in BATCHES[given.shape] if dtype == "bfloat16" else (8,):
            ours, theirs = (side(given, name, model, dtype, batch) for name in ("paft", "lm-eval"))
            if dtype == "float32":
                note = f"log-likelihoods within {same(theirs['scores'], ours['scores']):.1g}, same answers"
                rows.append(Row("scores, float32", "equal", "lm-eval HFLM", note=note))
                continue
            a, b = (f["tokens"] / f["seconds"] for f in (ours, theirs))
            shown = f"{a:.0f} tokens/s", "lm-eval HFLM", f"{b:.0f} tokens/s"
            rows.append(Row(f"{SHOTS[given.shape]} shots, batch {batch}", *shown, a / b, at_least=SPEED))
    return rows


def side(given: Given, name: str, model: str, dtype: str, batch: int) -> dict[str, Any]:
    out = Path(given.folder / "side.json")
    numbers = (str(n) for n in (QUESTIONS[given.shape], SHOTS[given.shape]))
    words = (name, model, dtype, *numbers, str(out), given.device, str(batch))
    run_child(BENCHMARKS / "evaluate.py", "--side", *words)
    found: dict[str, Any] = json.loads(out.read_text())
    return found

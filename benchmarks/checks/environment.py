"""What the device is and can do, and the tests of the parts that run on it."""

import re
import subprocess
import sys

import torch
from checks.given import Given
from contenders.matrix_peak import SIZES, best
from harness.process import BENCHMARKS
from measure import Row

from paft.device import computed_in

ROOT = BENCHMARKS.parent
TESTS = (
    "losses",
    "layers",
    "pairs",
    "batches",
    "dropout",
    "merge_methods",
    "evaluate",
    "quantize",
    "reference",
)
QUICK_TESTS = ("batches",)
COPIED = {"mistral": 2**31, "tiny": 2**22}
"""Bytes of the array whose copy shows the bandwidth."""


def environment(given: Given) -> list[Row]:
    """Name, peak of the products of a bfloat16 model, and memory bandwidth."""
    dtype = computed_in("bfloat16", given.device)
    sizes = SIZES[:1] if given.shape == "tiny" else (*SIZES, 8192)
    peak = max(best(size, given.device, dtype) for size in sizes)
    bytes_ = COPIED[given.shape]
    array = torch.zeros(bytes_, dtype=torch.uint8, device=given.device)
    target = torch.empty_like(array)
    seconds = given.seconds(lambda: target.copy_(array))
    cuda = torch.cuda.is_available()
    memory = f"{torch.cuda.get_device_properties(0).total_memory / 1e9:.1f} GB" if cuda else ""
    return [
        Row("torch", f"{torch.__version__}, CUDA {torch.version.cuda}", note=memory),
        Row(f"{dtype} product", f"{peak / 1e12:.3g} TFLOP/s"),
        Row("copy, read and written", f"{2 * bytes_ / seconds / 1e9:.3g} GB/s"),
    ]


def tests(given: Given) -> list[Row]:
    """The tests of losses, layers, evaluation and merging under these versions, on the CPU of this machine."""
    names = QUICK_TESTS if given.shape == "tiny" else TESTS
    files = [f"tests/test_{name}.py" for name in names]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    failed = sum(line.startswith(("FAILED", "ERROR")) for line in done.stdout.splitlines())
    dots = len(re.findall(r"\.", "".join(re.findall(r"^[.sxFE]+(?= |$)", done.stdout, re.MULTILINE))))
    what = f"tests of {', '.join(names)}"
    return [Row(what, f"{dots} passed, {failed} failed", "exit code", "0", float(done.returncode), at_most=0)]

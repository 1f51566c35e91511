"""What a process does with NVIDIA's devices beside computing on them: their name, their memory, the same bits twice.

Importing this module loads no torch, and none of its functions starts CUDA.
"""

import gc
import os
import subprocess
import sys
from functools import cache

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
"""Read by cuBLAS when it starts: https://docs.nvidia.com/cuda/cublas/#results-reproducibility."""


@cache
def gpu_name() -> str | None:
    """The first GPU that this process may use, as its driver calls it; None where there is none."""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]
    words = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader", f"--id={first}"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def same_products() -> None:
    """Let cuBLAS add in one order, in this process and its children; to be called before CUDA starts."""
    os.environ.setdefault(WORKSPACE, ":4096:8")


def release_memory() -> None:
    """Give the GPU back what nothing refers to any more: a model in cycles of references, what the allocator keeps.

    Without CUDA at work it does nothing.
    """
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()

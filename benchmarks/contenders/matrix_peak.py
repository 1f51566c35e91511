"""The arithmetic limit: FLOP/s of the best of several matrix products, as one JSON line.

The products are of the type that a bfloat16 model is computed in: bfloat16 wherever the device has such products.

python benchmarks/contenders/matrix_peak.py [cpu|cuda]
"""

import json
import sys
import time

import torch

from paft.device import computed_in

SIZES = (1024, 2048, 3072, 4096)
SECONDS = 1.5
"""For each size; the best single product counts, so that a disturbed one does not."""


def best(size: int, device: str, dtype: str) -> float:
    a, b = (torch.randn(size, size, device=device).to(getattr(torch, dtype)) for _ in range(2))
    least, stop = float("inf"), time.perf_counter() + SECONDS
    while (started := time.perf_counter()) < stop:
        a @ b
        if device == "cuda":
            torch.cuda.synchronize()
        least = min(least, time.perf_counter() - started)
    return 2 * size**3 / least


if __name__ == "__main__":
    device = sys.argv[1] if sys.argv[1:] else "cpu"
    sizes = (*SIZES, 8192) if device == "cuda" else SIZES
    dtype = computed_in("bfloat16", device)
    found = max(best(size, device, dtype) for size in sizes)
    print(json.dumps({"flops_per_second": found, "dtype": dtype, "threads": torch.get_num_threads()}))

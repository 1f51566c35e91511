"""The arithmetic limit: FLOP/s of the best of several bfloat16 matrix products, as one JSON line."""

import json
import time

import torch

SIZES = (1024, 2048, 3072, 4096)
SECONDS = 1.5
"""For each size; the best single product counts, so that a disturbed one does not."""


def best(size: int) -> float:
    a, b = (torch.randn(size, size).bfloat16() for _ in range(2))
    least, stop = float("inf"), time.perf_counter() + SECONDS
    while (started := time.perf_counter()) < stop:
        a @ b
        least = min(least, time.perf_counter() - started)
    return 2 * size**3 / least


if __name__ == "__main__":
    print(json.dumps({"flops_per_second": max(map(best, SIZES)), "threads": torch.get_num_threads()}))

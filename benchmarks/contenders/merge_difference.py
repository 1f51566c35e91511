"""How far two merged models are apart.

    python benchmarks/contenders/merge_difference.py <folder> <folder> <tolerance>

Prints one JSON line: `share`, of all elements, that differ by more than the tolerance, and the `largest` difference.
Fails unless both folders hold the same tensors.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file


def load_tensors(folder: str) -> dict[str, Any]:
    tensors = load_file(Path(folder) / "model.safetensors")
    tensors.pop("lm_head.weight", None)  # tied to the embeddings; not every tool writes it
    return tensors


def main() -> None:
    ours, theirs = map(load_tensors, sys.argv[1:3])
    if ours.keys() != theirs.keys():
        raise ValueError(f"the folders hold different tensors: {sorted(ours.keys() ^ theirs.keys())[:4]}")
    distances = [np.abs(ours[name] - theirs[name]) for name in ours]
    # not <=, so that NaN counts as different
    differ = sum(np.count_nonzero(~(distance <= float(sys.argv[3]))) for distance in distances)
    share = differ / sum(distance.size for distance in distances)
    print(json.dumps({"share": float(share), "largest": float(max(d.max() for d in distances))}))


if __name__ == "__main__":
    main()

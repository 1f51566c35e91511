"""What the stages before a merge by data leave, of random numbers, for the checkpoint of `mistral_shaped.py`.

    python benchmarks/contenders/random_statistics.py <fisher | gram | coefficients> <folder> <layers> <narrower>

Writes `<folder>/<statistic>/<branch>` as the `statistics` stage does, all tensors of all layers, those of one input
once; or `<folder>/coefficients` as the `coefficients` stage does. Gram matrices have full rank and the diagonal 1.
"""

import json
import sys
from pathlib import Path

import torch
from mistral_shaped import BLOCK, LINEAR, RANKS, Shapes, narrowed, write_values

FIRST = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}
"""Layers of one input, and the one whose statistics they have."""


def names(layers: int, narrower: int) -> Shapes:
    """Every linear weight [out, in]."""
    shapes = narrowed(dict(LINEAR), narrower)
    return {f"model.layers.{n}.{name}.weight": shape for n in range(layers) for name, shape in shapes.items()}


def fishers(folder: Path, weights: Shapes) -> None:
    block = BLOCK.square() * 1e-6
    write_values(folder / "statistics.safetensors", weights, torch.float32, lambda n, _: block.roll(n * 7919))
    (folder / "alike.json").write_text("{}")


def grams(folder: Path, weights: Shapes) -> None:
    alike = {}
    for name in weights:
        layer, _, kind = name.removesuffix(".weight").rpartition(".")
        if kind in FIRST:
            alike[name] = f"{layer}.{FIRST[kind]}.weight"
    widths = {name: (shape[1], shape[1]) for name, shape in weights.items() if name not in alike}
    made = {size: gram(size) for size, _ in widths.values()}
    write_values(folder / "statistics.safetensors", widths, torch.float32, lambda _, shape: made[shape[0]])
    (folder / "alike.json").write_text(json.dumps(alike))


def gram(size: int, tokens: int = 64) -> torch.Tensor:
    """Half the second moments of a few random inputs, half the identity; flat."""
    x = BLOCK[: size * tokens].view(tokens, size)
    return (x.T @ x).div_(2 * tokens).fill_diagonal_(1).flatten()


def coefficients(folder: Path, weights: Shapes) -> None:
    drawn = torch.rand(len(weights), 2, generator=torch.Generator().manual_seed(1)).tolist()
    (folder / "coefficients.json").write_text(json.dumps(dict(zip(weights, drawn, strict=True))))


def main(statistic: str, folder: Path, layers: int, narrower: int) -> None:
    weights = names(layers, narrower)
    if statistic == "coefficients":
        (folder / statistic).mkdir()
        coefficients(folder / statistic, weights)
        return
    for branch in RANKS:
        (folder / statistic / branch).mkdir(parents=True)
        {"fisher": fishers, "gram": grams}[statistic](folder / statistic / branch, weights)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))

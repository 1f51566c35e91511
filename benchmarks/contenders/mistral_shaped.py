"""A checkpoint of Mistral-7B's shape and two adapters, all of random numbers, and TIES of one tensor in plain torch.

    python benchmarks/contenders/mistral_shaped.py make <folder> <layers> <narrower>
    python benchmarks/contenders/mistral_shaped.py check <folder> <merged folder>

`make` writes `base` in bfloat16 shards, and float32 adapters `sft` (rank 16) and `preference` (rank 128) on all
linear layers; every width is divided by `narrower`. Numbers come from one normal block, cut at different places.
`check` prints the share of one merged tensor's elements that differ from plain torch.
"""

import json
import math
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors import safe_open

HIDDEN, KEYS, INTERMEDIATE, VOCABULARY = 4096, 1024, 14336, 32000
LINEAR = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (KEYS, HIDDEN),
    "self_attn.v_proj": (KEYS, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INTERMEDIATE, HIDDEN),
    "mlp.up_proj": (INTERMEDIATE, HIDDEN),
    "mlp.down_proj": (HIDDEN, INTERMEDIATE),
}
RANKS = {"sft": 16, "preference": 128}
SHARD = 5 * 10**9
BLOCK = torch.randn(2**23, generator=torch.Generator().manual_seed(0))
CHECKED = "model.layers.0.self_attn.k_proj"
Shapes = dict[str, tuple[int, ...]]
Values = Callable[[int, tuple[int, ...]], torch.Tensor]


def narrowed(shapes: Shapes, by: int) -> Shapes:
    """Every width divided; of an adapter its rank is none."""
    ranks = set(RANKS.values())
    return {name: tuple(n if n in ranks else n // by for n in shape) for name, shape in shapes.items()}


def base_shapes(layers: int) -> Shapes:
    shapes: Shapes = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        shapes |= {f"{prefix}.{name}.weight": shape for name, shape in LINEAR.items()}
        shapes |= {f"{prefix}.{n}.weight": (HIDDEN,) for n in ("input_layernorm", "post_attention_layernorm")}
    return shapes | {"model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCABULARY, HIDDEN)}


def adapter_shapes(layers: int, rank: int) -> Shapes:
    shapes: Shapes = {}
    for layer in range(layers):
        for name, (out, width) in LINEAR.items():
            module = f"base_model.model.model.layers.{layer}.{name}"
            shapes |= {f"{module}.lora_A.weight": (rank, width), f"{module}.lora_B.weight": (out, rank)}
    return shapes


def write(path: Path, shapes: Shapes, dtype: torch.dtype, scale: float) -> None:
    """A safetensors file of multiples of `BLOCK`, each tensor from another place and of another size."""

    def numbers(index: int, _: tuple[int, ...]) -> torch.Tensor:
        return BLOCK.roll(index * 7919) * (scale * (1 + index % 7 / 7))

    write_values(path, shapes, dtype, numbers)


def write_values(path: Path, shapes: Shapes, dtype: torch.dtype, values: Values) -> None:
    """A safetensors file; the `values` of the tensor of each number and shape are repeated as often as it needs."""
    name, header, end = {torch.bfloat16: "BF16", torch.float32: "F32"}[dtype], {}, 0
    for tensor, shape in shapes.items():
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        header[tensor] = {"dtype": name, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for index, shape in enumerate(shapes.values()):
            numbers = values(index, shape).to(dtype)
            for piece in _pieces(math.prod(shape), len(numbers)):
                file.write(numbers[:piece].view(torch.uint8).numpy().data)


def _pieces(count: int, size: int) -> Iterator[int]:
    return (min(size, count - begin) for begin in range(0, count, size))


def make(folder: Path, layers: int, narrower: int) -> None:
    write_base(folder / "base", narrowed(base_shapes(layers), narrower))
    for name, rank in RANKS.items():
        (folder / name).mkdir()
        shapes = narrowed(adapter_shapes(layers, rank), narrower)
        write(folder / name / "adapter_model.safetensors", shapes, torch.float32, 5e-3)
        base = str(folder / "base")
        config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "base_model_name_or_path": base}
        (folder / name / "adapter_config.json").write_text(json.dumps(config))


def write_base(folder: Path, shapes: Shapes) -> None:
    folder.mkdir()
    shards: list[Shapes] = [{}]
    for name, shape in shapes.items():
        if 2 * sum(map(math.prod, shards[-1].values())) > SHARD:
            shards.append({})
        shards[-1][name] = shape
    weight_map: dict[str, str] = {}
    for i, shard in enumerate(shards, 1):
        file = f"model-{i:05}-of-{len(shards):05}.safetensors"
        write(folder / file, shard, torch.bfloat16, 0.02)
        weight_map |= dict.fromkeys(shard, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text('{"model_type": "mistral", "tie_word_embeddings": false}')


def check(folder: Path, merged: Path) -> None:
    deltas = [dense(folder / name) for name in RANKS]
    kept = [
        delta * (delta.abs() >= delta.abs().flatten().topk(delta.numel() // 2).values[-1]) for delta in deltas
    ]
    both = torch.stack(kept)
    agree = torch.where(both.sum(0) >= 0, both > 0, both < 0)
    expected = tensor(folder / "base").float() + (agree * both).sum(0) / agree.sum(0).clamp(min=1)
    differ = (expected.bfloat16() != tensor(merged)).float().mean().item()
    print(
        json.dumps(
            {"share": differ, "moved": (tensor(merged) != tensor(folder / "base")).float().mean().item()}
        )
    )


def dense(adapter: Path) -> torch.Tensor:
    with safe_open(adapter / "adapter_model.safetensors", "pt") as file:
        A, B = (file.get_tensor(f"base_model.model.{CHECKED}.lora_{factor}.weight") for factor in "AB")
    return B @ A


def tensor(folder: Path) -> torch.Tensor:
    with safe_open(min(folder.glob("*.safetensors")), "pt") as file:
        found: torch.Tensor = file.get_tensor(f"{CHECKED}.weight")
    return found


if __name__ == "__main__":
    if sys.argv[1] == "make":
        make(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
    else:
        check(Path(sys.argv[2]), Path(sys.argv[3]))

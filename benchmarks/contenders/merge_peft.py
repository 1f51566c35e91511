"""peft's side of the merge benchmark: two adapters combined and merged into the base, in one process.

python benchmarks/contenders/merge_peft.py <combination_type> <folder> <out> [<float32|bfloat16>]
"""

import sys
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM


def main() -> None:
    combination, folder, out = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    base = AutoModelForCausalLM.from_pretrained(folder / "base")
    model = PeftModel.from_pretrained(base, folder / "sft", adapter_name="sft")
    model.load_adapter(folder / "preference", adapter_name="preference")
    density = None if combination in ("linear", "cat", "svd") else 0.5
    torch.manual_seed(42)
    model.add_weighted_adapter(
        ["sft", "preference"], [1.0, 1.0], "merged", combination_type=combination, density=density
    )
    model.set_adapter("merged")
    model.merge_and_unload(adapter_names=["merged"]).save_pretrained(out)


if __name__ == "__main__":
    main()

"""The inputs of a merge benchmark: a model with two random rank-16 adapters, whole and as a small twin.

    python benchmarks/contenders/merge_inputs.py <folder> <name in conf/model>

Writes `base`, `sft` and `preference`, and the same under `small/`: two layers of the same widths, in float32, on
which results can be compared to the last digits.
"""

import json
import sys
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from paft.command.compose import register_schemas, to_config
from paft.config import LINEAR_MODULES
from paft.model.base import base_folder

ROOT = Path(__file__).parents[2]
SMALL = {"num_hidden_layers": 2, "vocab_size": 512}


def save_adapters(folder: Path) -> None:
    for seed, name in enumerate(("sft", "preference")):
        torch.manual_seed(seed)
        lora = LoraConfig(r=16, lora_alpha=16, target_modules=LINEAR_MODULES, task_type="CAUSAL_LM")
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(folder / "base"), lora)
        for key, parameter in model.named_parameters():
            if "lora_B" in key:
                torch.nn.init.normal_(parameter, std=1e-3)
        model.save_pretrained(str(folder / name))
        # mergekit looks the base up by this field
        path = folder / name / "adapter_config.json"
        path.write_text(
            json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": str(folder / "base")})
        )


def main() -> None:
    folder, name = Path(sys.argv[1]), sys.argv[2]
    register_schemas()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        source = base_folder(to_config(compose("train", [f"model={name}"])).model)
    (folder / "small").mkdir(parents=True)
    (folder / "base").symlink_to(source, target_is_directory=True)
    config = AutoConfig.from_pretrained(source)
    config.update(SMALL | {"layer_types": None} if hasattr(config, "layer_types") else SMALL)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder / "small" / "base")
    save_adapters(folder / "small")
    save_adapters(folder)


if __name__ == "__main__":
    main()

"""TRL's side of a training benchmark: the same rows, model, LoRA, loss and optimizer, in TRL's own trainer.

    python benchmarks/contenders/train_trl.py sft|dpo|orpo <job.json> [<argument of TRL's config>=<JSON value> ...]

The job is what `train_paft.py prepare` wrote; nothing of PAFT is imported. The tokens are handed over as they are,
which spares TRL its own preparation; collator, sampler, loss and optimizer are TRL's. Prints one JSON line: when
each step ended, what it logged, the seconds of each part that is not a step, and the peak memory of a GPU.
"""

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import trl
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

IGNORE = -100
Job = dict[str, Any]


class StepClock(TrainerCallback):
    """When every step ended, on the clock and in processor time, and what it logged."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.processor: list[float] = []
        self.logs: list[dict[str, float]] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.ends.append(time.perf_counter())
        self.processor.append(time.process_time())

    def on_log(self, *args: Any, **kwargs: Any) -> None:
        self.logs += [kwargs["logs"]] if "loss" in kwargs["logs"] else []  # the last call is a summary


class TokenDPOTrainer(trl.DPOTrainer):
    """Takes rows that are tokens already, and times the reference stage where there is one."""

    reference_seconds = 0.0

    def _prepare_dataset(self, dataset: Dataset, *args: Any) -> Dataset:
        return dataset

    def _precompute_ref_logps(self, *args: Any) -> Dataset:
        started = time.perf_counter()
        rows = super()._precompute_ref_logps(*args)
        self.reference_seconds = time.perf_counter() - started
        return rows


def model_of(job: Job) -> PeftModel:
    """The base in its type with a new LoRA; drawn from the job's seed, hence the same factors as PAFT's."""
    base = AutoModelForCausalLM.from_pretrained(job["base"], dtype=getattr(torch, job["dtype"]))
    lora = job["lora"]
    config = LoraConfig(
        r=lora["rank"],
        lora_alpha=lora["alpha"],
        lora_dropout=lora["dropout"],
        target_modules=lora["target_modules"],
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(job["seed"])
    return get_peft_model(base, config)


def arguments(job: Job, out: str, overrides: Job) -> Job:
    """What all three of TRL's configs share: AdamW at a constant rate, the rows in the order given."""
    return {
        "output_dir": out,
        "max_steps": len(job["rows"]) // job["global_batch_size"],
        "per_device_train_batch_size": job["global_batch_size"],
        "learning_rate": job["lr"],
        "lr_scheduler_type": "constant",
        "adam_beta1": job["beta1"],
        "adam_beta2": job["beta2"],
        "weight_decay": job["weight_decay"],
        "max_grad_norm": job["max_grad_norm"],
        "train_sampling_strategy": "sequential",
        "max_length": 1024,
        "use_cpu": True,
        "bf16": job["dtype"] == "bfloat16",  # autocast, TRL's default
        "gradient_checkpointing": False,  # TRL's default is True, which is leaner and slower
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    } | overrides


def sft_trainer(job: Job, settings: Job, common: Job) -> trl.SFTTrainer:
    own: Job = {"dataset_kwargs": {"skip_prepare_dataset": True}} | settings
    return trl.SFTTrainer(args=trl.SFTConfig(**own), train_dataset=Dataset.from_list(job["rows"]), **common)


def dpo_trainer(job: Job, settings: Job, common: Job) -> TokenDPOTrainer:
    own: Job = {"beta": job["beta"], "loss_type": [job["loss"]]} | settings
    return TokenDPOTrainer(args=trl.DPOConfig(**own), train_dataset=Dataset.from_list(job["rows"]), **common)


def orpo_trainer(job: Job, settings: Job, common: Job) -> ORPOTrainer:
    own: Job = {"beta": job["beta"], "remove_unused_columns": False} | settings
    words = Dataset.from_list(
        [{"prompt": "a", "chosen": "b", "rejected": "c"}]
    )  # it tokenises what it is given
    trainer = ORPOTrainer(args=ORPOConfig(**own), train_dataset=words, **common)
    trainer.train_dataset = Dataset.from_list([orpo_row(row) for row in job["rows"]])
    return trainer


def orpo_row(row: dict[str, list[int]]) -> dict[str, list[int]]:
    """The columns that ORPOTrainer's own tokenisation makes."""
    prompt = row["prompt_ids"]
    columns = {"prompt_input_ids": prompt, "prompt_attention_mask": [1] * len(prompt)}
    for name in ("chosen", "rejected"):
        answer = row[f"{name}_ids"]
        columns[f"{name}_input_ids"] = [*prompt, *answer]
        columns[f"{name}_attention_mask"] = [1] * (len(prompt) + len(answer))
        columns[f"{name}_labels"] = [*[IGNORE] * len(prompt), *answer]
    return columns


TRAINERS = {"sft": sft_trainer, "dpo": dpo_trainer, "orpo": orpo_trainer}


def main(objective: str, job: Job, overrides: Job) -> None:
    tokenizer = AutoTokenizer.from_pretrained(job["base"])
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    clock = StepClock()
    common = {"model": model_of(job), "processing_class": tokenizer, "callbacks": [clock]}
    with tempfile.TemporaryDirectory() as out:
        trainer = TRAINERS[objective](job, arguments(job, out, overrides), common)
        trainer.train()
    seconds = {"reference": getattr(trainer, "reference_seconds", 0.0)}
    record = {"ends": clock.ends, "processor": clock.processor, "logs": clock.logs}
    peak = torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_initialized() else 0.0
    print(json.dumps(record | {"seconds": seconds, "device_peak_mb": peak}))


if __name__ == "__main__":
    objective, path, *words = sys.argv[1:]
    pairs = (word.split("=", 1) for word in words)
    main(objective, json.loads(Path(path).read_text()), {name: json.loads(value) for name, value in pairs})

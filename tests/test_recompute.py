"""Whether a training computes its activations twice: by what it would hold of its device."""

from dataclasses import replace
from pathlib import Path

import pytest
from resumable import configured, stage_of

from paft.config import DType, HardwareConfig, LoraConfig, ModelShape, SFTConfig, TrainerConfig
from paft.cost.device_memory import largest_micro_batch, memory_limit, recomputes, training_holds
from paft.cost.flops_and_bytes import Batch, training_memory
from paft.files.jsonfile import write_json
from paft.graph.configs import BranchStage
from paft.model.base import base_folder
from paft.training.recompute import decided, longest_sequence

MISTRAL = ModelShape(
    hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
    num_key_value_heads=8, head_dim=128, vocab_size=32000, tie_word_embeddings=False,
)  # fmt: skip
BATCH = Batch(8192, 2048)
GPU = TrainerConfig(accelerator="gpu", gradient_checkpointing="auto")


def on(tmp_path: Path, gigabytes: float, trainer: TrainerConfig = GPU):
    hardware = HardwareConfig(
        accelerator="gpu", memory_gb=gigabytes, runtime_gb=1.5, fragmentation=0.1, bandwidth_gb_s=2000
    )
    config = replace(configured(tmp_path), trainer=trainer, hardware=hardware)
    return config.running, replace(config.model, dtype=DType.bfloat16)


def decision(tmp_path: Path, gigabytes: float, shape: ModelShape | None = MISTRAL, **trainer) -> bool:
    running, model = on(tmp_path, gigabytes, replace(GPU, **trainer))
    branch = SFTConfig(lora=LoraConfig(rank=16, alpha=16))
    limit = memory_limit(running.hardware)
    return recomputes(running, model, branch, shape, BATCH, limit=limit)


def test_auto_is_by_the_memory_of_the_device(tmp_path):
    assert not decision(tmp_path, 80)
    assert decision(tmp_path, 40)


def test_auto_is_true_exactly_where_the_kept_activations_do_not_fit(tmp_path):
    running, model = on(tmp_path, 80)
    branch = SFTConfig(lora=LoraConfig(rank=16, alpha=16))
    kept = training_memory(MISTRAL, branch.lora, BATCH, item_bytes=2, head_block=2048)
    held = sum(kept.values()) + 0.1 * kept["activations"]
    assert training_holds(running, model, branch, MISTRAL, BATCH, recompute=False) == pytest.approx(held)
    edge = (held + 1.5e9) / 1e9
    assert not decision(tmp_path, edge * 1.001) and decision(tmp_path, edge * 0.999)


def test_what_is_asked_for_stands_and_an_unknown_shape_is_cautious(tmp_path):
    assert decision(tmp_path, 1000, gradient_checkpointing=True)
    assert not decision(tmp_path, 1, gradient_checkpointing=False)
    assert decision(tmp_path, 1000, shape=None)


def test_the_largest_micro_batch_holds_any_rows_of_that_length(tmp_path):
    branch = SFTConfig(global_batch_size=8)
    for size, tokens, pairs, expected in (
        (4, 8192, False, 4096),
        (4, 2048, False, 2048),
        (4, 512, False, 1024),  # a longer row goes alone
        (64, 100_000, False, 8192),  # no more rows than the global batch has
        (4, 100_000, True, 8192),
    ):
        trainer = replace(GPU, micro_batch_size=size, micro_batch_tokens=tokens)
        running, _ = on(tmp_path, 80, trainer)
        assert largest_micro_batch(running, branch, 1024, pairs=pairs) == Batch(expected, 1024)


def test_a_training_decides_by_its_own_rows(tmp_path):
    """The tiny model with rows of 10^6 tokens does not fit 0.1 GB, with rows of 10 it does."""
    for longest, expected in ((1_000_000, True), (10, False)):
        stage, context = training(tmp_path, gigabytes=0.1)
        data = tmp_path / str(longest)
        data.mkdir()
        write_json(data / "stage.json", {"metrics": {"train": {"longest": longest}}})
        assert longest_sequence(data) == longest
        found = decided(context, stage, {"data": data}, base_folder(stage.config.model))
        assert found.running.trainer.gradient_checkpointing is expected
        assert found.running == replace(
            context.running, trainer=replace(context.running.trainer, gradient_checkpointing=expected)
        )


def training(tmp_path: Path, *, gigabytes: float):
    config = configured(tmp_path)
    stage, context = stage_of(config, "sft")
    assert isinstance(stage.config, BranchStage)
    running = replace(
        context.running,
        trainer=replace(config.trainer, gradient_checkpointing="auto"),
        hardware=replace(config.hardware, memory_gb=gigabytes, runtime_gb=0.0),
    )
    return stage, replace(context, running=running)


def test_another_word_is_refused():
    with pytest.raises(ValueError, match="gradient_checkpointing must be true, false or auto, got 'often'"):
        TrainerConfig(gradient_checkpointing="often")

"""Full fine-tuning as a choice: its weights, its penalty, its checkpoints, its stages and what it is refused with."""

import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import train as command
from resumable import configured, stage_of, train
from safetensors.torch import load_file
from tiny import BFLOAT16, MODEL, branch, distance, make, pairs, run, sft_rows
from torch import Tensor
from wandb_file import records

from paft.config import L1Config, L1Method, L1Of, LoraConfig, SFTConfig, Sparsity, Tuning
from paft.delta.statistics import dense, read_adapter
from paft.files.jsonfile import read_object
from paft.forward.batches import sft_tensors
from paft.graph.build import build
from paft.losses import soft_threshold
from paft.model.base import base_folder
from paft.objectives import DPO
from paft.proof.base import load_base
from paft.training.checkpoint import last_checkpoint
from paft.training.proximal import proximal_step

HERE = Path(__file__).parents[1]
FULL = ("sft.tuning=full", "preference.tuning=full", "sft.lr=1e-3", "preference.lr=1e-3")


def full(kind: type, **settings):
    return branch(kind, **({"tuning": Tuning.full, "lr": 1e-3} | settings))


def deltas(module) -> dict[str, Tensor]:
    return {t.name: t.delta.detach().clone() for t in module.backbone.trained}


def stored(module) -> dict[str, Tensor]:
    return {t.name: t.stored.detach().clone() for t in module.backbone.trained}


# --- the weights -------------------------------------------------------------------------------------


def test_every_parameter_is_trained_and_the_base_is_frozen():
    module = make(full(SFTConfig))
    base = load_base(base_folder(MODEL), MODEL)
    assert [t.name for t in module.backbone.trained] == [name for name, _ in base.named_parameters()]
    trainable = {id(p) for p in module.parameters() if p.requires_grad}
    assert trainable == {id(t.delta) for t in module.backbone.trained}


@pytest.mark.parametrize("model", [MODEL, BFLOAT16], ids=lambda m: m.dtype.value)
def test_weights_are_the_base_plus_their_deltas_rounded_once(model):
    module = make(full(SFTConfig), steps=3, model=model)
    before = stored(module)
    run(module, sft_rows(24))
    for trained in module.backbone.trained:
        expected = (before[trained.name].float() + trained.delta).to(trained.stored.dtype)
        assert torch.equal(trained.stored, expected) and trained.delta.dtype is torch.float32


def test_what_bfloat16_cannot_hold_is_not_lost():
    """Steps of 1e-6 are below the rounding of most weights in bfloat16; measured 2e-2 from the deltas of float32."""
    config, rows = full(SFTConfig, lr=1e-6), sft_rows(32)
    modules = [make(config, steps=4, model=model) for model in (BFLOAT16, MODEL)]
    before = stored(modules[0])
    for module in modules:
        run(module, rows)
    assert distance(*map(deltas, modules)) < 0.1
    unmoved = sum(int((stored(modules[0])[n] == w).sum()) for n, w in before.items())
    assert unmoved > 0.5 * sum(w.numel() for w in before.values())


def test_the_reference_is_the_base_and_leaves_no_trace():
    module = make(full(DPO), steps=2)
    fresh = make(full(DPO)).backbone
    run(module, pairs(16))
    tensors, moved = sft_tensors(sft_rows(4), 0), stored(module)
    with torch.no_grad():
        at_start, before = fresh(*tensors), module.backbone(*tensors)
        with module.backbone.reference():
            assert torch.equal(module.backbone(*tensors), at_start)
        assert torch.equal(module.backbone(*tensors), before) and not torch.equal(before, at_start)
    assert all(torch.equal(weight, moved[name]) for name, weight in stored(module).items())


# --- the penalty -------------------------------------------------------------------------------------


def test_penalty_is_the_sum_of_absolute_elements_with_its_sign_as_gradient():
    module = make(full(SFTConfig, l1=L1Config(1e-3)), steps=2)
    run(module, sft_rows(16))
    module.zero_grad()
    penalty = module.penalty()
    penalty.backward()
    expected = 1e-3 * sum(float(d.abs().double().sum()) for d in deltas(module).values())
    assert float(penalty.detach()) == pytest.approx(expected, rel=1e-5)
    for trained in module.backbone.trained:
        torch.testing.assert_close(trained.delta.grad, 1e-3 * trained.delta.detach().sign())


def test_proximal_step_against_the_soft_threshold_in_adamws_metric():
    delta = torch.nn.Parameter(torch.randn(6, 5, generator=torch.Generator().manual_seed(0)))
    optimizer = torch.optim.AdamW([delta], lr=0.1, weight_decay=0.0)
    delta.square().sum().backward()
    optimizer.step()
    z, state = delta.detach().clone(), optimizer.state[delta]
    penalty = proximal_step([delta], optimizer, of=L1Of.delta, weight=2.0)
    metric = (state["exp_avg_sq"] / (1 - 0.999)).sqrt() + 1e-8
    torch.testing.assert_close(delta.detach(), soft_threshold(z, 0.1 * 2.0 / metric))
    assert float(penalty) == pytest.approx(2.0 * float(z.abs().sum()))


def test_proximal_training_gives_elementwise_zeros_and_the_subgradient_does_not():
    shares = {}
    for method in L1Method:
        module = make(full(SFTConfig, l1=L1Config(1e-4, method=method)), steps=8)
        run(module, sft_rows(64))
        weights = [d for name, d in deltas(module).items() if "proj" in name]
        shares[method] = sum(int((d == 0).sum()) for d in weights) / sum(d.numel() for d in weights)
        # single elements, not whole rows and columns as of a LoRA
        some = [d for d in weights if 0 < int((d == 0).sum()) < d.numel()]
        assert bool(some) is (method is L1Method.proximal)
        assert not some or all((d != 0).any(1).float().mean() > 0.5 for d in some)
    assert 0.05 < shares[L1Method.proximal] < 1 and shares[L1Method.subgradient] == 0


def test_a_target_of_exact_zeros_is_approached():
    measured = {}
    for target in (None, 0.8):
        l1 = L1Config(1e-6, method=L1Method.proximal, target_sparsity=target, target_measure=Sparsity.zero)
        module = make(full(SFTConfig, l1=replace(l1, target_gain=20.0)), steps=24)
        run(module, sft_rows(8 * 24))
        found = deltas(module).values()
        measured[target] = sum(float((d == 0).float().mean()) for d in found) / len(found)
    assert measured[None] < 0.3 and measured[0.8] > measured[None] + 0.3


# --- checkpoints -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sft", "preference"])
def test_a_killed_training_goes_on_to_the_same_bytes(tmp_path, name):
    words = [*FULL, "sft.l1.method=proximal", "sft.l1.target_sparsity=0.5"]
    command = [sys.executable, str(HERE / "resumable.py"), str(tmp_path), name, "5", *words]
    path = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, env=path, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    step, checkpoint = last_checkpoint(tmp_path / name)
    assert step == 4
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert state and all(key.endswith("_delta") for key in state)

    config = configured(tmp_path, *words)
    resumed, straight = (train(config, name, tmp_path / at) for at in (name, "straight"))

    one, other = (load_file(tmp_path / at / "delta/delta.safetensors") for at in (name, "straight"))
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    times = {"throughput"}
    assert {k: v for k, v in resumed.items() if k not in times} == {
        k: v for k, v in straight.items() if k not in times
    }


def test_a_training_that_was_only_to_be_scored_is_scored_with_its_weights(tmp_path):
    config = configured(tmp_path, *FULL)
    straight = train(config, "sft", tmp_path / "sft")
    again = train(config, "sft", tmp_path / "sft")  # its last checkpoint is of the last step
    assert again["validation/loss"] == straight["validation/loss"]


# --- stages ------------------------------------------------------------------------------------------


def test_a_stage_keeps_its_delta_and_no_model(tmp_path):
    config = configured(tmp_path, *FULL)
    metrics = train(config, "sft", tmp_path / "out")
    files = {path.name for path in (tmp_path / "out/delta").iterdir()}
    assert {"delta.safetensors", "paft.json", "tokenizer.json", "chat_template.jinja"} <= files
    assert not (tmp_path / "out/adapter").exists()
    found = read_adapter(tmp_path / "out/delta", base_folder(config.model))
    model = load_base(base_folder(config.model), config.model)
    assert found.keys() == {name for name, _ in model.named_parameters()}
    sparsity = read_object(tmp_path / "out/sparsity.json")
    assert sparsity["over_elements"]["numel"] == model.num_parameters()
    assert metrics["sparsity"]["over_elements"] == sparsity["over_elements"]


def test_sequential_training_starts_from_the_base_plus_the_first_delta(tmp_path):
    config = configured(tmp_path, *FULL, "paradigm=sequential", "preference.max_steps=1")
    stage, context = stage_of(config, "preference")
    assert stage.inputs.keys() == {"data", "reference", "sft"}
    first = read_adapter(context.store.path(stage.inputs["sft"]) / "delta", base_folder(config.model))
    module = make(full(DPO), model=config.model, deltas=(context.store.path(stage.inputs["sft"]) / "delta",))
    base = dict(load_base(base_folder(config.model), config.model).named_parameters())
    for name, weight in stored(module).items():
        expected = base[name].float() + dense(first[name]).view_as(weight)
        assert torch.equal(weight, expected.to(weight.dtype))
    assert not any(delta.any() for delta in deltas(module).values())
    train(
        config, "preference", tmp_path / "out"
    )  # policy and reference agree at its start, or it would refuse


@pytest.mark.slow
def test_wandb_is_told_of_the_delta_and_keeps_no_copy(tmp_path):
    words = ("experiment=smoke", "logger=wandb", "paradigm=sft", *FULL[:1], "sft.lr=1e-4", "callbacks=none")
    done = command(*words, f"logs={tmp_path}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (stage,) = (tmp_path / "stages/sft").glob("*/stage.json")
    (file,) = tmp_path.glob("wandb/offline-run-*-sft-*/run-*.wandb")
    (artifact,) = (r.artifact for r in records(file) if r.WhichOneof("record_type") == "artifact")
    assert (artifact.type, artifact.name) == ("delta", f"sft-{stage.parent.name}")
    kept = {entry.path for entry in artifact.manifest.contents}
    assert "paft.json" in kept and "delta.safetensors" not in kept
    assert json.loads(artifact.metadata)["folder"] == str(stage.parent / "delta")


# --- keys and refusals -------------------------------------------------------------------------------


def key_of(tmp_path: Path, *words: str) -> str:
    (stage,) = (s for s in build(configured(tmp_path, *words)).walk() if s.name == "sft")
    return stage.key


def test_keys_know_the_tuning_and_of_full_no_lora(tmp_path):
    plain = key_of(tmp_path)
    assert key_of(tmp_path, "sft.tuning=lora") == plain != key_of(tmp_path, "sft.tuning=full")
    assert key_of(tmp_path, "sft.tuning=full", "sft.lora.rank=3") == key_of(tmp_path, "sft.tuning=full")
    assert SFTConfig(tuning=Tuning.full, lora=LoraConfig(rank=3)).in_effect().lora == LoraConfig()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("sft.tuning=full", "model.quantization=nf4"), r"sft.tuning=full .* set model.quantization=none"),
        (("sft.tuning=full", "sft.l1.of=factors"), "set sft.l1.of=delta, or sft.tuning=lora"),
        (("sft.tuning=full", "merge=ties", "merge.space=core"), "without factors, .* set merge.space=delta"),
        (("sft.tuning=full", "merge.output=adapter", "merge.rank=4"), "leave merge.output=adapter out"),
        (("sft.tuning=full", "merge.output=adapter", "paradigm=sft"), "leave merge.output=adapter out"),
        (("preference.tuning=full", "paradigm=joint"), "paradigm=joint trains one delta"),
    ],
)
def test_what_full_does_not_go_with_is_refused_by_name(tmp_path, words, said):
    with pytest.raises(ValueError, match=said):
        configured(tmp_path, *words)


@pytest.mark.parametrize(
    "words",
    [
        ("sft.tuning=full", "paradigm=preference", "model.quantization=nf4"),
        ("sft.tuning=full", "paradigm=base", "merge.output=adapter"),
        ("sft.tuning=full", "preference.tuning=full", "paradigm=joint"),
        ("sft.tuning=full", "merge=ties", "merge.space=core", "paradigm=sequential"),
    ],
)
def test_what_is_not_read_is_not_refused(tmp_path, words):
    configured(tmp_path, *words)


# --- the command -------------------------------------------------------------------------------------


def test_the_command_says_that_an_option_of_lora_has_no_effect(tmp_path):
    done = command("experiment=smoke", "sft.tuning=full", "sft.lora.rank=8", "plan=true", cwd=tmp_path)
    assert done.returncode == 2
    assert "sft.lora.rank=8 has no effect: sft.tuning=full trains every weight" in done.stderr


def test_a_grid_of_both_tunings_is_one_table(tmp_path):
    words = ("experiment=smoke", "preference.tuning=full", "preference.lr=1e-3", "trainer.progress_bar=false")
    done = command(*words, f"logs={tmp_path}", "-m", "sft.tuning=lora,full", "merge=linear", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "preference.lr=0.001 is high for preference.tuning=full" in done.stdout + done.stderr
    table = pd.read_csv(tmp_path / "report/results.csv")
    assert sorted(table["sft.tuning"]) == ["full", "lora"] and set(table["preference.tuning"]) == {"full"}
    ranks = dict(zip(table["sft.tuning"], table["sft.lora.rank"], strict=True))
    assert ranks["lora"] == 16 and math.isnan(ranks["full"]) and "preference.lora.rank" not in table
    assert "tuning=full" in done.stdout and "lora.rank" not in done.stdout

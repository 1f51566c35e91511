"""Whole models as branches of a merge: every method, mixed with adapters, and the refusals of the command line."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from full_models import save_adapter, save_base, save_tuned, weights_of
from torch import Tensor
from transformers import AutoModelForCausalLM
from whole_weights import WRITTEN_OUT, merged_delta

from paft.config import DType, MergeConfig, Norm
from paft.delta.adapter import read_adapter
from paft.delta.delta import Delta, Dense
from paft.delta.rows import Array
from paft.merge.__main__ import main
from paft.merge.apply import apply_adapters, merge_adapters, variant
from paft.merge.methods import TaskArithmetic
from paft.model.base import byte_tokenizer

Deltas = dict[str, dict[str, Delta]]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("base") / "base")


@pytest.fixture(scope="module", params=["two models", "adapter and model", "model and adapter"])
def branches(base: Path, request: pytest.FixtureRequest) -> dict[str, Path]:
    root = base.parent / request.param.replace(" ", "-")
    folders = {"sft": root / "sft", "preference": root / "preference"}
    for seed, (branch, folder) in enumerate(folders.items()):
        is_adapter = request.param == {"sft": "adapter and model", "preference": "model and adapter"}[branch]
        make = save_adapter if is_adapter else save_tuned
        make(
            base,
            folder,
            seed + 1,
            **({} if is_adapter or seed else {"trained": lambda name: "embed" not in name}),
        )
    return folders


def deltas_of(base: Path, branches: dict[str, Path]) -> Deltas:
    before = weights_of(base)
    deltas: Deltas = {}
    for branch, folder in branches.items():
        if (folder / "adapter_config.json").is_file():
            changes = {n: torch.from_numpy(d.load()[:]) for n, d in read_adapter(folder, base).items()}
        else:
            changes = {n: after - before[n] for n, after in weights_of(folder).items()}
        zero = {name: torch.zeros_like(tensor) for name, tensor in before.items()}
        deltas[branch] = {n: Dense(as_matrix((zero | changes)[n])) for n in zero}
    return deltas


def as_matrix(tensor: Tensor) -> Array:
    return tensor.reshape(len(tensor) if tensor.dim() > 1 else 1, -1).numpy()


def in_memory(base: Path, branches: dict[str, Path], method: MergeConfig) -> dict[str, Tensor]:
    """The merge written out: dense deltas, pure functions."""
    deltas, merged = deltas_of(base, branches), {}
    for name, tensor in weights_of(base).items():
        each = [delta[name] for delta in deltas.values()]
        change = merged_delta(method, name, as_matrix(tensor), each, deltas)
        merged[name] = tensor + torch.from_numpy(change).reshape(tensor.shape)
    return merged


@pytest.mark.parametrize("method", WRITTEN_OUT, ids=variant)
def test_every_method_against_in_memory(
    base: Path, branches: dict[str, Path], tmp_path: Path, method: MergeConfig
) -> None:
    report = merge_adapters(base, branches, method, tmp_path / "out")
    merged, expected = weights_of(tmp_path / "out"), in_memory(base, branches, method)
    assert merged.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(merged[name], tensor, rtol=0, atol=2e-7, msg=lambda m, n=name: f"{n}: {m}")
    moved = [(merged[name] - tensor).double() for name, tensor in weights_of(base).items()]
    assert report["delta_l2"] == pytest.approx(float(sum(d.square().sum() for d in moved)) ** 0.5, rel=1e-4)


def test_norm_of_whole_models_is_brought_to_one(
    base: Path, branches: dict[str, Path], tmp_path: Path
) -> None:
    report = merge_adapters(base, branches, TaskArithmetic(norm=Norm.merged), tmp_path / "out")
    norms = [
        sum(float(np.vdot(d[:], d[:])) for d in delta.values()) ** 0.5
        for delta in deltas_of(base, branches).values()
    ]
    assert report["norm"] == pytest.approx((norms[0] * norms[1]) ** 0.5, rel=1e-5)
    assert report["delta_l2"] == pytest.approx(report["norm"], rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_applied_to_its_base_is_that_model(tmp_path: Path, dtype: torch.dtype) -> None:
    base = save_base(tmp_path / "base", dtype=dtype, save={"max_shard_size": "20KB"})
    tuned = save_tuned(base, tmp_path / "tuned", 1)
    apply_adapters(base, {"sft": tuned}, tmp_path / "out")
    ours, theirs = weights_of(tmp_path / "out"), weights_of(tuned)
    for name, tensor in theirs.items():
        # a + (b - a) may miss b by the last place of float32, which bfloat16 does not have
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=2e-7 if dtype is torch.float32 else 0)
    rows = torch.arange(12).reshape(2, 6)
    logits = [AutoModelForCausalLM.from_pretrained(f)(rows).logits for f in (tmp_path / "out", tuned)]
    torch.testing.assert_close(*logits, rtol=0, atol=1e-5)


def command(base: Path, branches: dict[str, Path], out: Path, *options: str) -> None:
    paths = [f"--{name}={folder}" for name, folder in {"base": base, **branches, "out": out}.items()]
    main(["--method=task_arithmetic", *paths, *options])


def test_command_line_takes_models_and_adapters(
    base: Path, branches: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command(base, branches, tmp_path / "out", f"--dtype={DType.float32.value}")
    assert "logits of the folder are within" in capsys.readouterr().out
    expected = in_memory(base, branches, TaskArithmetic())
    for name, tensor in weights_of(tmp_path / "out").items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=2e-7)


def with_tokenizer(folder: Path, template: str | None) -> Path:
    byte_tokenizer().save_pretrained(folder)
    if template:
        (folder / "chat_template.jinja").write_text(template)
    return folder


def test_tokenizers_of_whole_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = with_tokenizer(save_base(tmp_path / "base", vocab_size=259), None)
    branches = {
        name: with_tokenizer(save_tuned(base, tmp_path / name, seed), f"{{{{ '{name}' }}}}")
        for seed, name in enumerate(["sft", "preference"])
    }
    with pytest.raises(SystemExit):
        command(base, branches, tmp_path / "none")
    assert "different chat templates" in (said := capsys.readouterr().err) and "--tokenizer" in said
    command(base, branches, tmp_path / "out", f"--tokenizer={branches['preference']}", "--no-prove")
    assert (tmp_path / "out/chat_template.jinja").read_text() == "{{ 'preference' }}"
    tokenizer = branches["sft"] / "tokenizer.json"
    content = json.loads(tokenizer.read_text())
    vocabulary: dict[str, Any] = content["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    tokenizer.write_text(json.dumps(content))
    with pytest.raises(SystemExit):
        command(base, branches, tmp_path / "none", f"--tokenizer={base}")
    assert "tokens are not alike" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_a_model_that_is_no_number_is_refused(base: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    tuned = shutil.copytree(base, tmp_path / "tuned")
    tensors = load_file(tuned / "model.safetensors")
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, tuned / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="is not finite after the merge"):
        apply_adapters(base, {"sft": tuned}, tmp_path / "out")

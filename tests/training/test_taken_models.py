"""Whole models taken as branches: from two folders to the table, mixed with an adapter, alone, and refused."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import train
from full_models import save_adapter, save_tuned, weights_of
from safetensors.torch import load_file, save_file

from paft.command.pipeline import context_of, prepare
from paft.config import RunConfig, TinyModel
from paft.delta.checkpoint import read_difference
from paft.delta.statistics import layer_statistics
from paft.graph.build import build
from paft.merge.apply import merge_adapters
from paft.merge.methods import Ties
from paft.model.base import base_folder, byte_tokenizer
from paft.store.store import Store

SMOKE = ("experiment=smoke", "callbacks=none", "trainer.progress_bar=false", "model=local")
Compose = Callable[..., RunConfig]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, two models fine-tuned from it and an adapter."""
    root = tmp_path_factory.mktemp("taken")
    base = shutil.copytree(base_folder(TinyModel(name="tiny", hidden_size=32)), root / "base")
    for seed, name in enumerate(["my-sft", "my-dpo"]):
        save_tuned(base, root / name, seed, size=0.05, trained=lambda name: "norm" not in name)
        byte_tokenizer().save_pretrained(root / name)
    save_adapter(base, root / "my-lora", 3)
    return root


@pytest.fixture
def words(made: Path) -> tuple[str, ...]:
    taken = (f"sft.checkpoint={made / 'my-sft'}", f"preference.checkpoint={made / 'my-dpo'}")
    return (*SMOKE, f"model.path={made / 'base'}", *taken)


def merged_by(compose: Compose, tmp_path: Path, *words: str) -> Path:
    """The folder of the merge stage, run in this process."""
    config = compose(*words, f"logs={tmp_path}")
    cell = build(config)
    context = context_of(config, Store(config.store), cell)
    return context.store.ensure(cell.inputs["model"], context.run)


def test_two_models_become_a_row_of_the_table(made: Path, words: tuple[str, ...], tmp_path: Path) -> None:
    done = train(*words, "merge=ties", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "taken: my-sft" in done.stdout and "logits of the folder are within" in done.stdout
    stages = tmp_path / "logs" / "stages"
    (row,) = csv.DictReader((tmp_path / "logs" / "report" / "results.csv").open())
    assert row["data"] == "taken: my-sft + taken: my-dpo" and row["merge"] == "ties"
    (merged,) = stages.glob("merge/*/model.safetensors")
    folders = {"sft": made / "my-sft", "preference": made / "my-dpo"}
    merge_adapters(made / "base", folders, Ties(), tmp_path / "alone")
    alone = weights_of(tmp_path / "alone")
    assert all(torch.equal(tensor, alone[name]) for name, tensor in load_file(merged).items())
    assert not list(stages.glob("sft/*/*.safetensors"))  # nothing is copied
    (sparsity,) = stages.glob("sft/*/sparsity.json")
    measured = json.loads(sparsity.read_text())
    deltas = read_difference(made / "base", made / "my-sft")
    assert measured["layers"].keys() == deltas.keys()
    for name, delta in deltas.items():
        assert measured["layers"][name] == layer_statistics(torch.from_numpy(delta.load()[:]))


def test_a_model_with_a_chat_template_of_its_own_is_said(
    made: Path, words: tuple[str, ...], compose: Compose, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mine = shutil.copytree(made / "my-sft", tmp_path / "mine")
    (mine / "chat_template.jinja").write_text("{{ messages }}")
    config = compose(*words, f"sft.checkpoint={mine}", f"logs={tmp_path}")
    prepare(config, Store(config.store).missing(build(config)))
    said = [record.message for record in caplog.records if "another chat template" in record.message]
    (line,) = said
    assert line.startswith(f"{mine} has another chat template than data.template=chatml")


def test_a_model_and_an_adapter(made: Path, words: tuple[str, ...], compose: Compose, tmp_path: Path) -> None:
    mixed = ("preference.checkpoint=null", f"preference.adapter={made / 'my-lora'}", "merge=ties")
    merged = merged_by(compose, tmp_path, *words, *mixed)
    folders = {"sft": made / "my-sft", "preference": made / "my-lora"}
    merge_adapters(made / "base", folders, Ties(), tmp_path / "alone")
    alone = weights_of(tmp_path / "alone")
    assert all(torch.equal(tensor, alone[name]) for name, tensor in weights_of(merged).items())


def test_one_model_alone_is_evaluated_as_it_is(
    made: Path, words: tuple[str, ...], compose: Compose, tmp_path: Path
) -> None:
    merged = merged_by(compose, tmp_path, *words, "preference.checkpoint=null", "paradigm=sft")
    for name, tensor in weights_of(made / "my-sft").items():
        torch.testing.assert_close(weights_of(merged)[name], tensor, rtol=0, atol=1e-7)


def test_the_key_is_the_content(made: Path, words: tuple[str, ...], compose: Compose, tmp_path: Path) -> None:
    moved = shutil.copytree(made / "my-sft", tmp_path / "elsewhere")
    here, there = build(compose(*words)), build(compose(*words, f"sft.checkpoint={moved}"))
    assert here.key == there.key
    change(moved)
    assert build(compose(*words, f"sft.checkpoint={moved}")).key != here.key


def change(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.mlp.down_proj.weight"] += 1
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (change, r"sft\.checkpoint=.*mine changed after this run was planned: its sha256 was"),
        (shutil.rmtree, r"sft\.checkpoint=.*mine is gone: a merge reads it again\. Put it back"),
    ],
)
def test_a_model_that_changes_before_the_merge_is_refused(
    made: Path,
    words: tuple[str, ...],
    compose: Compose,
    tmp_path: Path,
    damage: Callable[[Path], None],
    message: str,
) -> None:
    mine = shutil.copytree(made / "my-sft", tmp_path / "mine")
    config = compose(*words, f"sft.checkpoint={mine}", f"logs={tmp_path}")
    cell = build(config)
    context = context_of(config, Store(config.store), cell)
    merge = cell.inputs["model"]
    for branch in merge.inputs.values():
        context.store.ensure(branch, context.run)
    damage(mine)
    with pytest.raises(ValueError, match=message):
        context.store.ensure(merge, context.run)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: save_file({"x": torch.ones(3)}, f / "model.safetensors"), "only .*base holds lm_head"),
        (lambda f: tell(f, num_attention_heads=2), "num_attention_heads=4 in the base and 2 in the other"),
        (lambda f: tell(f, quantization_config={"quant_method": "awq"}), r"is quantised \('awq'\)"),
        (lambda f: shutil.rmtree(f), "is no folder on this disk"),
        (lambda f: rename_weights(f), r"pickles .*python -c .*save_pretrained"),
    ],
)
def test_another_model_is_refused_before_anything_runs(
    made: Path,
    words: tuple[str, ...],
    compose: Compose,
    tmp_path: Path,
    damage: Callable[[Path], None],
    message: str,
) -> None:
    mine = shutil.copytree(made / "my-sft", tmp_path / "mine")
    damage(mine)
    config = compose(*words, f"sft.checkpoint={mine}", f"logs={tmp_path}")
    with pytest.raises(ValueError, match=message):
        prepare(config, Store(config.store).missing(build(config)))


def tell(folder: Path, **settings: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def rename_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")

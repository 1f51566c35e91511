"""Branches that are taken, not trained: from adapter folders to the table, and what is refused before anything runs."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import train
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from paft.chat.template import TEMPLATES
from paft.command.pipeline import context_of, prepare
from paft.config import RunConfig, TinyModel
from paft.graph.build import build, lambda_of
from paft.graph.configs import BranchStage, TakenStage
from paft.graph.stage import Stage
from paft.merge.apply import apply_adapters, merge_adapters
from paft.merge.methods import Ties
from paft.model.base import base_folder, byte_tokenizer
from paft.store.store import Store

SMOKE = ("experiment=smoke", "callbacks=none", "trainer.progress_bar=false")


def save_adapter(base: Path, folder: Path, seed: int, **options: Any) -> Path:
    torch.manual_seed(seed)
    settings = {"r": 4, "lora_alpha": 6, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | options
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(**settings))
    for parameter in (p for p in model.parameters() if p.requires_grad):
        parameter.data += 0.05 * torch.randn(parameter.shape)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base that lies elsewhere than where its adapters were trained, and two adapters by peft."""
    root = tmp_path_factory.mktemp("taken")
    first = shutil.copytree(base_folder(TinyModel(name="tiny", hidden_size=32)), root / "first")
    save_adapter(first, root / "my-sft", 1, use_dora=True)
    save_adapter(first, root / "my-dpo", 2, modules_to_save=["lm_head"], use_rslora=True)
    first.rename(root / "base")
    return root


@pytest.fixture
def words(made: Path) -> tuple[str, ...]:
    taken = (f"sft.adapter={made / 'my-sft'}", f"preference.adapter={made / 'my-dpo'}")
    return (*SMOKE, "model=local", f"model.path={made / 'base'}", *taken)


Compose = Callable[..., RunConfig]


def test_two_adapters_become_a_row_of_the_table(made: Path, words: tuple[str, ...], tmp_path: Path) -> None:
    planned = train(*words, "merge=ties", "plan=true", cwd=tmp_path)
    assert planned.returncode == 0, planned.stderr
    assert "taken: my-sft, adapter" in planned.stdout and "rows of" not in planned.stdout

    done = train(*words, "merge=ties", cwd=tmp_path)

    assert done.returncode == 0, done.stderr
    assert "taken: my-sft" in done.stdout
    named = [line for line in done.stdout.splitlines() if "says that it was trained on" in line]
    assert len(named) == 2 and "the sft adapter" in named[0] and "the base is known as base" in named[0]
    stages = tmp_path / "logs" / "stages"
    assert sorted(path.name for path in stages.iterdir()) == ["evaluate", "merge", "preference", "sft"]
    (row,) = csv.DictReader((tmp_path / "logs" / "report" / "results.csv").open())
    assert row["data"] == "taken: my-sft + taken: my-dpo"
    assert row["sft.adapter"] == "my-sft" and row["merge"] == "ties" and row["lambda"] == ""
    assert "taken: my-sft" in (tmp_path / "logs" / "report" / "index.html").read_text()
    (merged,) = stages.glob("merge/*/model.safetensors")
    adapters = {"sft": made / "my-sft", "preference": made / "my-dpo"}
    merge_adapters(made / "base", adapters, Ties(), tmp_path / "alone")
    alone = load_file(tmp_path / "alone" / "model.safetensors")
    for name, tensor in load_file(merged).items():
        assert torch.equal(tensor, alone[name]), name
    for branch in ("sft", "preference"):
        (folder,) = (path.parent for path in stages.glob(f"{branch}/*/sparsity.json"))
        assert (folder / "adapter" / "adapter_model.safetensors").is_file()
    metrics = json.loads((folder / "stage.json").read_text())["metrics"]
    assert metrics["taken"] == "my-dpo" and metrics["sparsity"]["over_elements"]["l2"] > 0


def test_the_key_is_the_content(made: Path, words: tuple[str, ...], compose: Compose, tmp_path: Path) -> None:
    moved = shutil.copytree(made / "my-sft", tmp_path / "elsewhere")
    (moved / "optimizer.pt").write_bytes(b"of a training that was cut short")
    here, there = build(compose(*words)), build(compose(*words, f"sft.adapter={moved}"))
    assert here.key == there.key
    (moved / "adapter_config.json").write_text((moved / "adapter_config.json").read_text() + "\n")
    assert build(compose(*words, f"sft.adapter={moved}")).key != here.key


def stages_of(config: RunConfig) -> dict[str, Stage]:
    return {stage.name: stage for stage in build(config).walk()}


def test_a_taken_branch_reads_no_rows_and_shares_no_setting(words: tuple[str, ...], compose: Compose) -> None:
    stages = stages_of(compose(*words))
    assert set(stages) == {"sft", "preference", "merge", "evaluate"}
    assert all(isinstance(stages[branch].config, TakenStage) for branch in ("sft", "preference"))
    assert not stages["sft"].kind.trains and lambda_of(stages["evaluate"]) is None
    assert build(compose(*words, "seed=7")).inputs["model"].inputs["sft"].key == stages["sft"].key


def test_one_branch_is_taken_and_the_other_trained(made: Path, compose: Compose) -> None:
    base = ("model=local", f"model.path={made / 'base'}")
    trained = stages_of(compose(*SMOKE, *base))
    half = stages_of(compose(*SMOKE, *base, f"sft.adapter={made / 'my-sft'}"))
    assert isinstance(half["preference"].config, BranchStage)
    assert half["preference"].key == trained["preference"].key


@pytest.mark.parametrize("paradigm", ["sft", "sequential"])
def test_the_result_is_base_and_deltas(
    made: Path, words: tuple[str, ...], compose: Compose, tmp_path: Path, paradigm: str
) -> None:
    words = tuple(word for word in words if paradigm != "sft" or not word.startswith("preference."))
    config = compose(*words, f"paradigm={paradigm}", f"logs={tmp_path}")
    cell = build(config)
    context = context_of(config, Store(config.store), cell)
    folder = context.store.ensure(cell.inputs["model"], context.run)
    adapters = {"sft": made / "my-sft"} | ({"preference": made / "my-dpo"} if paradigm != "sft" else {})
    apply_adapters(made / "base", adapters, tmp_path / "alone", same=("base_model_name_or_path", "revision"))
    alone = load_file(tmp_path / "alone" / "model.safetensors")
    assert all(torch.equal(t, alone[n]) for n, t in load_file(folder / "model.safetensors").items())


def test_preference_trains_on_top_of_a_taken_sft(made: Path, compose: Compose, tmp_path: Path) -> None:
    base = ("model=local", f"model.path={made / 'base'}", "paradigm=sequential")
    config = compose(
        *SMOKE, *base, f"sft.adapter={made / 'my-sft'}", "preference.max_steps=2", f"logs={tmp_path}"
    )
    cell = build(config)
    context = context_of(config, Store(config.store), cell)
    merge = cell.inputs["model"]
    folder = context.store.ensure(merge, context.run)
    own = context.store.path(merge.inputs["preference"]) / "adapter"
    apply_adapters(
        made / "base",
        {"sft": made / "my-sft", "preference": own},
        tmp_path / "alone",
        same=("base_model_name_or_path", "revision", "base"),
    )
    alone = load_file(tmp_path / "alone" / "model.safetensors")
    assert all(torch.equal(t, alone[n]) for n, t in load_file(folder / "model.safetensors").items())


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Hugging Face cache that holds one of the adapters at a commit."""
    snapshot = tmp_path / "cache" / "models--user--my-sft" / "snapshots" / COMMIT
    shutil.copytree(made / "my-sft", snapshot)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    return snapshot


def test_an_adapter_of_the_hub_is_known_by_its_commit(
    made: Path, words: tuple[str, ...], cache: Path, compose: Compose, tmp_path: Path
) -> None:
    config = compose(*words, f"sft.adapter=user/my-sft@{COMMIT}", "offline=true", f"logs={tmp_path}")
    cell = build(config)
    (stage,) = (s for s in cell.walk() if s.name == "sft")
    assert stage.config.title == "user/my-sft" and COMMIT in str(stage.identity)
    prepare(config, Store(config.store).missing(cell))
    context = context_of(config, Store(config.store), cell)
    folder = context.store.ensure(stage, context.run)
    copied = (folder / "adapter" / "adapter_model.safetensors").read_bytes()
    assert copied == (made / "my-sft" / "adapter_model.safetensors").read_bytes()


def test_an_adapter_that_the_hub_does_not_give_is_told_before_anything_runs(
    words: tuple[str, ...], cache: Path, compose: Compose, tmp_path: Path
) -> None:
    config = compose(*words, f"sft.adapter=user/other@{COMMIT}", "offline=true", f"logs={tmp_path}")
    with pytest.raises(ValueError, match=r"user/other at 0123456789ab cannot be had .*; with a folder of it"):
        prepare(config, Store(config.store).missing(build(config)))


# --- what cannot be meant ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("sft.checkpoint=x",), "sft.adapter=.* and sft.checkpoint=x are two answers"),
        (("paradigm=sft",), "preference.adapter=.* is not used by paradigm=sft"),
        (
            ("paradigm=sequential", "sft.adapter=null"),
            "not trained on top of an SFT that is still to be trained",
        ),
        (
            ("sft.adapter=null", "sft.checkpoint=x", "paradigm=sequential"),
            "cannot be part of paradigm=sequential",
        ),
        (("sft.adapter=nowhere",), "sft.adapter=nowhere is no folder on this disk.*user/repo@"),
        (("sft.adapter=user/repo@main",), "sft.adapter must be a 40-digit commit of user/repo, got 'main'"),
        (("sft.adapter=",), "sft.adapter must be a folder, user/repo@commit, or null"),
    ],
)
def test_contradictions_are_refused(
    words: tuple[str, ...], compose: Compose, more: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build(compose(*words, *more))


def test_kinds_are_not_confused(made: Path, words: tuple[str, ...], compose: Compose) -> None:
    with pytest.raises(ValueError, match=r"it is a whole model, which is sft\.checkpoint="):
        build(compose(*words, f"sft.adapter={made / 'base'}"))
    with pytest.raises(ValueError, match=r"is a PEFT adapter, not a whole model; give it as sft\.adapter="):
        build(compose(*words, "sft.adapter=null", f"sft.checkpoint={made / 'my-sft'}"))


@pytest.mark.parametrize("word", ["lambda=1e-3", "sft.lr=1e-3", "preference=orpo", "sft.lora.rank=4"])
def test_a_setting_of_a_training_that_is_none_is_refused(
    words: tuple[str, ...], tmp_path: Path, word: str
) -> None:
    done = train(*words, word, "plan=true", cwd=tmp_path)
    assert done.returncode == 2
    assert f"{word} has no effect: the branch is taken as it is" in done.stderr


def test_another_model_is_refused_before_anything_runs(
    made: Path, words: tuple[str, ...], compose: Compose, tmp_path: Path
) -> None:
    wide = base_folder(TinyModel(name="tiny", hidden_size=64))
    config = compose(*words, f"model.path={wide}", f"logs={tmp_path}")
    with pytest.raises(ValueError, match=r"the base has .*: was it trained on another model"):
        prepare(config, Store(config.store).missing(build(config)))
    assert not (tmp_path / "stages").exists() or not list((tmp_path / "stages").glob("*/*/stage.json"))


def test_an_adapter_whose_own_base_is_here_and_differs_is_refused(
    made: Path, words: tuple[str, ...], compose: Compose, tmp_path: Path
) -> None:
    other = base_folder(TinyModel(name="tiny", hidden_size=32, seed=9))
    adapter = save_adapter(other, tmp_path / "of-another", 3)
    config = compose(*words, f"sft.adapter={adapter}", f"logs={tmp_path}")
    with pytest.raises(ValueError, match=r"the sft adapter .* was trained on .*has other values there"):
        prepare(config, Store(config.store).missing(build(config)))


def with_template(adapter: Path, folder: Path, text: str) -> Path:
    """A copy of an adapter that brings a tokenizer with a chat template."""
    byte_tokenizer().save_pretrained(shutil.copytree(adapter, folder))
    (folder / "chat_template.jinja").write_text(text)
    return folder


def test_a_template_unlike_that_of_a_branch_to_be_trained_is_refused_before_it_is(
    made: Path, compose: Compose, tmp_path: Path
) -> None:
    adapter = with_template(made / "my-sft", tmp_path / "mine", "{{ messages[0].content }}")
    base = ("model=local", f"model.path={made / 'base'}")
    config = compose(*SMOKE, *base, f"sft.adapter={adapter}", f"logs={tmp_path}")
    with pytest.raises(
        ValueError, match=r"mine was trained with another chat template than data\.template=chatml"
    ):
        prepare(config, Store(config.store).missing(build(config)))


def test_a_template_that_is_not_the_evaluations_is_told(
    made: Path, words: tuple[str, ...], compose: Compose, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = (TEMPLATES / "chatml.jinja").read_text()
    for name, text in (("other", "{{ messages[0].content }}"), ("own", own)):
        adapter = with_template(made / "my-sft", tmp_path / name, text)
        config = compose(*words, f"sft.adapter={adapter}", f"logs={tmp_path}")
        prepare(config, Store(config.store).missing(build(config)))
    told = [record.message for record in caplog.records if "another chat template" in record.message]
    assert len(told) == 1 and "other was trained with" in told[0] and "evaluated" in told[0]


def test_a_folder_that_changed_after_the_plan_is_refused(
    made: Path, words: tuple[str, ...], compose: Compose, tmp_path: Path
) -> None:
    mine = shutil.copytree(made / "my-sft", tmp_path / "mine")
    config = compose(*words, f"sft.adapter={mine}", f"logs={tmp_path}")
    cell = build(config)
    shutil.copy(made / "my-dpo" / "adapter_model.safetensors", mine / "adapter_model.safetensors")
    context = context_of(config, Store(config.store), cell)
    (stage,) = (s for s in cell.walk() if s.name == "sft")
    with pytest.raises(ValueError, match="changed after this run was planned"):
        context.store.ensure(stage, context.run)

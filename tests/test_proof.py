"""What was proved of a base: found once, kept for the next time, said in the log and in a plan."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import train
from lm_eval.api.instance import Instance
from small_bases import plain_logps, small_base, small_config, texts

from paft.chat.tokens import IGNORE, Encoded
from paft.config import DType, Template, TinyModel
from paft.data.tokens import read_sft
from paft.evaluate.lm import SparingLM
from paft.forward.batches import sft_tensors
from paft.model.base import base_folder, load_tokenizer
from paft.model.policy import FrozenPolicy
from paft.proof.base import load_base
from paft.proof.record import known, proof_file, proved_paths
from paft.proof.search import shortened
from paft.training.batches import StepLoader

TINY = TinyModel(name="tiny", dtype=DType.bfloat16, hidden_size=32)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "paft" / "bases"


def test_a_base_is_proved_once_for_all_its_types(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "paft")
    folder = base_folder(TINY)
    first = proved_paths(folder, TINY, "cpu")
    (file,) = cache.glob("*.json")
    written = file.stat().st_mtime_ns
    other = TinyModel(name="tiny", dtype=DType.float32, hidden_size=32)
    assert proved_paths(folder, other, "cpu") == first and file.stat().st_mtime_ns == written
    assert proof_file(TINY, "cuda") != file
    found = json.loads(file.read_text())
    assert 0 <= found["largest_difference"] < 1e-5 and found["replaced"] == {} and found["torch"]
    assert len([r for r in caplog.records if "proved" in r.message]) == 1


def test_a_damaged_record_is_made_again(cache: Path) -> None:
    paths = proved_paths(base_folder(TINY), TINY, "cpu")
    proof_file(TINY, "cpu").write_text("{")
    assert known(TINY, "cpu") is None
    assert proved_paths(base_folder(TINY), TINY, "cpu") == paths
    assert known(TINY, "cpu") is not None


def test_a_cache_that_cannot_be_written_keeps_nobody_from_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = base_folder(TINY)
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert proved_paths(folder, TINY, "cpu").packed
    assert "cannot be written" in caplog.text


@pytest.mark.parametrize("kind", ["phi", "stablelm"])
def test_a_cell_on_a_base_of_the_users_and_its_plan(kind: str, tmp_path: Path) -> None:
    small_base(tmp_path / "base", kind)
    words = (
        "experiment=smoke", "model=local", f"model.name={kind}", f"model.path={tmp_path / 'base'}",
        "model.dtype=float32", "sft.lora.target_modules=[q_proj,v_proj]", "preference.lora.target_modules=[q_proj]",
        "logs=logs", "logger=csv", "evaluate.limit=2",
    )  # fmt: skip
    cache = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    planned = train(*words, "plan=true", cwd=tmp_path, **cache)
    assert f"base: {kind} is compared with its own forward first" in planned.stdout, planned.stderr
    done = train(*words, cwd=tmp_path, **cache)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(f"{kind} is within") + done.stdout.count(f"{kind} is within") == 1
    planned = train(*words, "lambda=1e-3", "plan=true", cwd=tmp_path, **cache)
    assert f"base: {kind} is within" in planned.stdout
    for stage in ("reference", "sft", "preference", "evaluate"):
        (record,) = (tmp_path / "logs/stages" / stage).glob("*/stage.json")
        assert 0 <= json.loads(record.read_text())["metrics"]["base_difference"] < 1e-4
    if kind == "stablelm":  # its attention hands nothing on to packed rows
        assert "the plain way takes the place of: packed (" in planned.stdout
    first = next((tmp_path / "logs/stages/sft").glob("*/history.csv")).read_text().splitlines()
    nll = float(first[1].split(",")[first[0].split(",").index("train/nll")])
    assert nll == pytest.approx(first_nll(tmp_path), abs=2e-4)


def first_nll(folder: Path) -> float:
    """The first step's loss by transformers alone, from the rows of the data stage."""
    records = {
        p.parent: json.loads(p.read_text()) for p in (folder / "logs/stages/data").glob("*/stage.json")
    }
    (data,) = (p for p, record in records.items() if record["identity"]["config"]["branch"] == "sft")
    record = json.loads(next((folder / "logs/stages/sft").glob("*/stage.json")).read_text())["identity"][
        "config"
    ]
    loader: Any = StepLoader(
        read_sft(data, "train"),
        global_batch_size=record["branch"]["global_batch_size"],
        steps=1,
        seed=record["seed"],
    )
    (batch,) = loader
    total = torch.tensor(0.0)
    for row, logps in zip(
        batch.rows, plain_logps(folder / "base", [r.input_ids for r in batch.rows]), strict=True
    ):
        total -= logps[torch.tensor(row.labels[1:]) != IGNORE].sum()
    return float(total / batch.num_targets)


def test_of_a_large_base_the_lists_by_layer_are_shortened_too() -> None:
    settings = small_config("smollm3", num_hidden_layers=8)
    short = shortened(settings, 10**10)
    assert len(settings.no_rope_layers) == 8 and len(short.no_rope_layers) == short.num_hidden_layers < 8
    assert shortened(settings, 10**6) is settings


def test_of_a_large_base_the_first_layers_of_every_kind_are_proved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = ["conv", "conv", "conv", "full_attention", "conv", "full_attention"]
    config = small_base(tmp_path, "lfm2", num_hidden_layers=6, layer_types=kinds)
    monkeypatch.setattr("paft.proof.search.WHOLE", 1000)
    base = load_base(tmp_path, config)
    assert shortened(base.config, 10**9).num_hidden_layers == 4 and len(base.model.layers) == 6
    rows = texts(30, 12)
    with torch.no_grad():
        logps = FrozenPolicy(base)(*sft_tensors([Encoded(r, [IGNORE, *r[1:]]) for r in rows], 0))
    for row, found, right in zip(rows, logps, plain_logps(tmp_path, rows), strict=True):
        torch.testing.assert_close(found[1 : len(row)], right, atol=1e-4, rtol=0)


def test_texts_are_generated_one_at_a_time_where_padding_would_change_them(tmp_path: Path) -> None:
    """RWKV reads padding as text: in a batch of unlike prompts its answers would be others."""
    base, answers = load_base(tmp_path, small_base(tmp_path, "rwkv")), []
    tokenizer = load_tokenizer(tmp_path, Template.chatml)
    prompts = ["a", "a much longer question than that", "middling"]
    asked = [
        Instance("generate_until", {}, (p, {"until": ["\n\n"], "max_gen_toks": 8}), i)
        for i, p in enumerate(prompts)
    ]
    for size in (1, 3):
        lm = SparingLM(pretrained=base, tokenizer=tokenizer, device="cpu", batch_size=size)
        answers.append(lm.generate_until(asked, disable_tqdm=True))
    assert answers[0] == answers[1]

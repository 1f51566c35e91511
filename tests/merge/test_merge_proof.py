"""The proof of a merge: what holds is measured, and whatever is not what was merged does not pass."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from test_merge_apply import Q, save_adapter, save_base, weights_of
from transformers import AutoModelForCausalLM

from paft.config import DType
from paft.files.safetensors import read_checkpoint
from paft.merge import logits
from paft.merge.apply import plan_merge, plan_sum, write_model
from paft.merge.logits import load, logits_of, random_rows, widened
from paft.merge.methods import DareTies, Linear, Slerp, Ties
from paft.merge.planned import PlannedMerge
from paft.merge.proof import described, prove_model

METHODS = [Linear(), Ties(density=0.3), DareTies(seed=7), Slerp(t=0.3), Ties(norm="merged")]
BASES = {
    "float32": {"dtype": torch.float32},
    "bfloat16": {"dtype": torch.bfloat16},
    "tied": {"dtype": torch.bfloat16, "tied": True},
    "sharded": {"dtype": torch.bfloat16, "max_shard_size": "20KB"},
}


def adapters_of(base: Path, **options: Any) -> dict[str, Path]:
    return {
        branch: save_adapter(base, base.with_name(f"{base.name}-{branch}"), seed, **options)
        for seed, branch in enumerate(("sft", "preference"), start=1)
    }


def written(merge: PlannedMerge, out: Path) -> dict[str, Any]:
    return write_model(merge, out)


@pytest.fixture(scope="module", params=BASES)
def kind(request, tmp_path_factory) -> tuple[str, Path, dict[str, Path]]:
    """A base as it may be stored, and two adapters of it."""
    base = save_base(tmp_path_factory.mktemp(request.param) / "base", **BASES[request.param])
    return request.param, base, adapters_of(base)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: f"{m.name}-{m.norm.value}")
def test_every_merge_is_within_float32_of_base_plus_delta(kind, tmp_path, method):
    name, base, adapters = kind
    merge = plan_merge(base, adapters, method)

    proof = prove_model(merge, tmp_path, written(merge, tmp_path))

    assert proof["max_logit_difference"] <= proof["bound"] < 1e-3 < proof["logit_change"]
    # bfloat16 has 8 bits: its rounding shows, and is far less than what the merge did
    lost = proof["rounding_logit_difference"]
    assert lost <= proof["bound"] if name == "float32" else proof["bound"] < lost < proof["logit_change"] / 2


def test_rounding_against_peft(kind, tmp_path):
    """peft's own float32 model is the reference that the rounding is measured to."""
    _, base, adapters = kind
    merge = plan_sum(base, {"sft": adapters["sft"]})
    proof = prove_model(merge, tmp_path, written(merge, tmp_path))

    whole = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapters["sft"]
    )
    ours = load(tmp_path, torch.float32, {})
    rows = random_rows(ours)
    apart = float((logits_of(ours, rows) - logits_of(whole, rows)).abs().max())

    assert apart == pytest.approx(proof["rounding_logit_difference"], abs=proof["bound"])


def test_without_room_for_float32_models_stay_in_their_type(kind, tmp_path, monkeypatch):
    _, base, adapters = kind
    monkeypatch.setattr(logits, "ROOM", 0.0)
    merge = plan_merge(base, adapters, Ties())
    loaded: list[torch.dtype] = []
    plain = AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(
        AutoModelForCausalLM,
        "from_pretrained",
        lambda *a, **k: [model := plain(*a, **k), loaded.append(model.dtype)][0],
    )

    proof = prove_model(merge, tmp_path, written(merge, tmp_path))

    assert proof["max_logit_difference"] <= proof["bound"] and proof["rounding_logit_difference"] is None
    assert set(loaded) == {BASES[kind[0]]["dtype"]}


def test_a_merge_stored_in_float32_costs_nothing(tmp_path):
    base = save_base(tmp_path / "base", torch.bfloat16)
    merge = plan_merge(base, adapters_of(base), Ties(dtype=DType.float32))

    proof = prove_model(merge, tmp_path / "out", written(merge, tmp_path / "out"))

    assert proof["rounding_logit_difference"] <= proof["bound"]


# --- what does not pass -------------------------------------------------------------------------------


def edit(out: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    path = out / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})


def swap(tensors: dict[str, torch.Tensor]) -> None:
    other = Q.replace("layers.0", "layers.1")
    tensors[Q], tensors[other] = tensors[other], tensors[Q]


def settings(out: Path, **changes: Any) -> None:
    path = out / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def tie(out: Path) -> None:
    edit(out, lambda tensors: tensors.pop("lm_head.weight"))
    settings(out, tie_word_embeddings=True)


DAMAGE = {
    "one tensor is lost": lambda out: edit(out, lambda t: t.pop(Q)),
    "two tensors are swapped": lambda out: edit(out, swap),
    "one row is the base's": lambda out: edit(out, lambda t: t[Q][3].zero_()),
    "a name is another": lambda out: edit(out, lambda t: t.update({f"{Q}_": t.pop(Q)})),
    "the head is tied": lambda out: tie(out),
    "a setting is another": lambda out: settings(out, rms_norm_eps=0.1),
    "one value is not finite": lambda out: edit(out, lambda t: t[Q][0].fill_(torch.nan)),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_not_the_merge_is_refused(tmp_path, damage):
    base = save_base(tmp_path / "base", torch.bfloat16)
    merge = plan_merge(base, adapters_of(base), Ties())
    report = written(merge, tmp_path / "out")
    prove_model(merge, tmp_path / "out", report)
    DAMAGE[damage](tmp_path / "out")

    with pytest.raises(ValueError, match="is not what was merged: its logits are off by"):
        prove_model(merge, tmp_path / "out", report)


def test_result_that_is_the_base_itself_is_refused(tmp_path):
    base = save_base(tmp_path / "base", torch.bfloat16)
    merge = plan_merge(base, adapters_of(base), Ties())
    report = written(merge, tmp_path / "out")
    shutil.copy(base / "model.safetensors", tmp_path / "out" / "model.safetensors")

    with pytest.raises(ValueError, match="is the base itself, though the merged delta has the norm"):
        prove_model(merge, tmp_path / "out", report)


def test_folder_that_cannot_be_loaded_is_named(tmp_path):
    base = save_base(tmp_path / "base")
    merge = plan_merge(base, adapters_of(base), Ties())
    report = written(merge, tmp_path / "out")
    settings(tmp_path / "out", model_type="nothing")

    with pytest.raises(ValueError, match=r"out cannot be run, though its base can"):
        prove_model(merge, tmp_path / "out", report)


# --- what is said -------------------------------------------------------------------------------------


def test_delta_below_the_stored_type_is_the_base_and_said(tmp_path, caplog):
    base = save_base(tmp_path / "base", torch.bfloat16)
    merge = plan_merge(base, adapters_of(base, size=1e-5), Linear())
    report = written(merge, tmp_path / "out")
    assert report["rounded_back"] == 1 and report["delta_l2"] > 0

    proof = prove_model(merge, tmp_path / "out", report)

    assert "the result is the base itself" in caplog.text and "merge.dtype=float32" in caplog.text
    assert proof["logit_change"] == 0


def test_base_that_is_no_causal_language_model_is_merged_and_not_proved(tmp_path, caplog):
    base = save_base(tmp_path / "base")
    merge = plan_merge(base, adapters_of(base), Linear())
    settings(base, model_type="nothing")

    proof = prove_model(merge, tmp_path / "out", written(merge, tmp_path / "out"))

    assert "does not run" in proof["unproved"] and "not proved" in caplog.text
    assert described(proof).startswith("not proved: ")


def test_a_proof_in_words(tmp_path):
    base = save_base(tmp_path / "base", torch.bfloat16)
    merge = plan_merge(base, adapters_of(base), Linear())

    said = described(prove_model(merge, tmp_path / "out", written(merge, tmp_path / "out")))

    assert "logits of the folder are within" in said and "the stored type costs" in said


# --- parts --------------------------------------------------------------------------------------------


def test_planned_tensors_are_the_written_ones(kind, tmp_path):
    """Asked for alone, in any order, and whole."""
    _, base, adapters = kind
    merge = plan_merge(base, adapters, DareTies())
    written(merge, tmp_path)
    stored = weights_of(tmp_path)

    with merge.weights() as weights:
        for name in reversed(merge.names):
            again = torch.from_numpy(merge.merged(weights[name])).to(stored[name].dtype)
            assert torch.equal(again, stored[name])
            exact = merge.merged(weights[name]) - weights[name][:]
            np.testing.assert_allclose(merge.delta(weights[name]), exact, rtol=0, atol=1e-6)  # of the sum


def test_widened_weights_are_put_back(tmp_path):
    base = save_base(tmp_path / "base", torch.bfloat16, tied=True)
    model = load(base, "auto", {})
    before = {name: p.data_ptr() for name, p in model.named_parameters()}

    with widened(model):
        assert model(input_ids=torch.tensor([[1, 2]])).logits.dtype == torch.float32

    assert {name: p.data_ptr() for name, p in model.named_parameters()} == before
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model(input_ids=torch.tensor([[1, 2]])).logits.dtype == torch.bfloat16


def test_names_stand_in_file_order(kind):
    _, base, adapters = kind
    order = [name for tensors in read_checkpoint(base).values() for name in tensors]
    merge = plan_merge(base, adapters, Linear())

    assert merge.names == [name for name in order if name in {*merge.names}] and len(merge.names) == 4

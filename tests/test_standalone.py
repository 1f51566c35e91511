"""Folders that are given away: plain transformers and peft write the tokens that evaluation scored."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_tokenizers import finished, sentencepiece
from peft import AutoPeftModelForCausalLM
from taught import ITEMS, config, teach, tokenizer_for
from tiny import MODEL
from tokenizers import normalizers
from transformers import AutoTokenizer, GenerationConfig, pipeline

from paft.chat.encode import encode_conversation
from paft.chat.proof import reads_alike
from paft.chat.standalone import GENERATION, brought_tokenizer, copy_tokenizer, write_tokenizer
from paft.config import LoraConfig, Template
from paft.evaluate.lm import SparingLM
from paft.evaluate.stage import score_tasks
from paft.merge.__main__ import main
from paft.model.base import load_tokenizer
from paft.model.policy import Policy
from paft.proof.base import load_base

CHATS = [[{"role": "user", "content": item["request"]}] for item in ITEMS]
CALLS = [item["call"] for item in ITEMS]


def evaluated(folder: Path, tokenizer: Any, chats: list[Any]) -> list[list[int]]:
    """The new tokens of each chat as the evaluation of a model folder generates them."""
    lm = SparingLM(pretrained=load_base(folder, MODEL), tokenizer=tokenizer, batch_size=len(chats))
    prompts = [tokenizer.apply_chat_template(c, tokenize=False, add_generation_prompt=True) for c in chats]
    ids, mask = lm.tok_batch_encode(prompts)
    new = lm._model_generate(ids, ids.shape[1] + 40, [], attention_mask=mask)[:, ids.shape[1] :].tolist()
    return [without_end(row, lm.eot_token_id) for row in new]


def without_end(ids: list[int], *ends: int) -> list[int]:
    return ids[: next((at for at, token in enumerate(ids) if token in ends), len(ids))]


def in_pipeline(folder: Path, chats: list[Any]) -> list[str]:
    generate = pipeline("text-generation", model=str(folder), do_sample=False, max_new_tokens=40)
    return [generate(chat, return_full_text=False)[0]["generated_text"] for chat in chats]


def with_peft(adapter: Path, chats: list[Any]) -> list[list[int]]:
    model, tokenizer = (
        AutoPeftModelForCausalLM.from_pretrained(adapter),
        AutoTokenizer.from_pretrained(adapter),
    )
    settings = GenerationConfig.from_pretrained(adapter, do_sample=False, max_new_tokens=40)
    found = []
    for chat in chats:
        inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt")
        new = model.generate(**inputs, generation_config=settings)[0, inputs["input_ids"].shape[1] :].tolist()
        found.append(without_end(new, *torch.tensor(settings.eos_token_id).flatten().tolist()))
    return found


def trained(base: Path, tokenizer: Any, folder: Path) -> Path:
    """An adapter that changes nothing, so that the model still knows its answers."""
    policy = Policy(load_base(base, MODEL), LoraConfig(rank=2, alpha=2))
    policy.save(folder, {"base": "taught", "tokenizer": "-", "template": "-"})
    write_tokenizer(tokenizer, base, folder)
    return folder


@pytest.mark.parametrize(("template", "adds_bos"), [("chatml", False), ("llama3", True), ("zephyr", True)])
def test_merged_folder_and_adapter_answer_as_they_were_evaluated(
    template: str, adds_bos: bool, tmp_path: Path
) -> None:
    base, out = tmp_path / "base", tmp_path / "out"
    teach(tokenizer_for(template, adds_bos=adds_bos), base)
    tokenizer = load_tokenizer(base, Template(template))
    sft, preference = (trained(base, tokenizer, tmp_path / name) for name in ("sft", "preference"))
    main(["--method=ties", f"--base={base}", f"--sft={sft}", f"--preference={preference}", f"--out={out}"])
    tokens = evaluated(out, tokenizer, CHATS)
    assert [tokenizer.decode(ids) for ids in tokens] == CALLS == in_pipeline(out, CHATS)
    assert with_peft(sft, CHATS) == tokens
    assert score_tasks(load_base(out, MODEL), tokenizer, config(4))[0]["calls"].score == 1.0


def test_stages_of_a_grid_stand_alone(smoke_grid: Any) -> None:
    (adapter,) = smoke_grid.store.glob("preference/*/adapter")
    merged = sorted(path.parent for path in smoke_grid.store.glob("merge/*/config.json"))
    assert merged
    for folder in (adapter, *smoke_grid.store.glob("sft/*/adapter"), *merged):
        written = AutoTokenizer.from_pretrained(folder)
        assert "<|im_start|>' + message['role']" in written.chat_template
        assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == (
            written.convert_tokens_to_ids("<|im_end|>")
        )
    tokens = evaluated(merged[0], AutoTokenizer.from_pretrained(merged[0]), CHATS[:2])
    assert in_pipeline(merged[0], CHATS[:2]) == [written.decode(ids) for ids in tokens]


def llama(folder: Path, legacy: bool) -> Any:
    """Llama's tokenizer: `legacy` writes a space behind each special token too."""
    kind = "always" if legacy else "first"
    core = finished(sentencepiece(kind), "mistral_v3").backend_tokenizer
    folder.mkdir()
    core.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "LlamaTokenizer",
        "legacy": legacy,
        "bos_token": "<s>",
        "eos_token": "</s>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": "another"}))
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return load_tokenizer(folder, Template.zephyr)


@pytest.mark.parametrize("legacy", [True, False])
def test_a_tokenizer_is_read_as_it_was_trained(legacy: bool, tmp_path: Path) -> None:
    """transformers saves Llama's without `legacy`, and reads it back as another one."""
    tokenizer = llama(tmp_path / "base", legacy)
    messages = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "Answer"}]
    row = encode_conversation(tokenizer, messages).input_ids
    write_tokenizer(tokenizer, tmp_path / "base", tmp_path / "adapter")
    written = AutoTokenizer.from_pretrained(tmp_path / "adapter")
    ids = written.apply_chat_template(messages, tokenize=True, return_dict=False)
    assert ids[: len(row)] == row and type(written) is type(tokenizer)
    tokenizer.save_pretrained(tmp_path / "saved")
    assert reads_alike(tokenizer, tmp_path / "adapter")
    assert reads_alike(tokenizer, tmp_path / "saved") is not legacy


def test_a_tokenizer_that_would_be_read_otherwise_is_not_left(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = llama(tmp_path / "base", legacy=False)
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()  # as code of a model's own may
    write_tokenizer(tokenizer, tmp_path / "base", tmp_path / "adapter")
    assert [path.name for path in (tmp_path / "adapter").iterdir()] == ["generation_config.json"]
    assert "reads the tokenizer of" in caplog.text


def test_settings_of_the_base_stay_and_every_end_of_an_answer_is_added(tmp_path: Path) -> None:
    tokenizer = tokenizer_for("llama3")
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"bos_token_id": 7, "eos_token_id": [8, 9]}')
    write_tokenizer(tokenizer, tmp_path, tmp_path / "a")
    ends = sorted({8, 9, tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|eot_id|>")})
    assert json.loads((tmp_path / "a/generation_config.json").read_text()) == {
        "bos_token_id": 7, "eos_token_id": ends
    }  # fmt: skip
    (tmp_path / "generation_config.json").write_text('{"repetition_penalty": 1.05, "eos_token_id": 8}')
    write_tokenizer(tokenizer, tmp_path, tmp_path / "b")
    written = json.loads((tmp_path / "b/generation_config.json").read_text())
    assert written == {"repetition_penalty": 1.05, "eos_token_id": [e for e in ends if e != 9]}


def test_adapters_of_different_templates_are_not_merged(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    folders = [tmp_path / name for name in ("a", "b", "none")]
    for folder, template in zip(folders, ("chatml", "zephyr"), strict=False):
        tokenizer = tokenizer_for(template)
        tokenizer.save_pretrained(tmp_path)
        write_tokenizer(tokenizer, tmp_path, folder)
    with pytest.raises(ValueError, match=r"a and .*b were trained with different chat templates"):
        brought_tokenizer(folders, tmp_path)
    assert brought_tokenizer([folders[2], folders[1]], tmp_path) == folders[1]
    assert brought_tokenizer([folders[2]], tmp_path) is None
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": len(tokenizer) - 1}))
    with pytest.raises(ValueError, match=f"of id {len(tokenizer) - 1}, but"):
        brought_tokenizer([folders[1]], tmp_path)
    (folders[1] / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer.json cannot be read: .*save the tokenizer again"):
        brought_tokenizer([folders[1]], tmp_path)


def test_a_tokenizer_without_generation_settings_adds_its_end_of_turn(tmp_path: Path) -> None:
    """As peft and a user's save_pretrained leave it: the merged model must stop where its template ends a turn."""
    tokenizer = tokenizer_for("llama3")
    assert tokenizer.eos_token != "<|eot_id|>"
    source, out = tmp_path / "adapter", tmp_path / "model"
    tokenizer.save_pretrained(source)
    out.mkdir()
    (out / "config.json").write_text(
        json.dumps({"model_type": "llama", "eos_token_id": tokenizer.eos_token_id})
    )
    copy_tokenizer(source, out)
    ends = json.loads((out / GENERATION).read_text())["eos_token_id"]
    assert ends == sorted([tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|eot_id|>")])

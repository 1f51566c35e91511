"""A model folder as the judge: its answers are those of the model's own forward and generation."""

import shutil
import threading

import pytest
import torch
from tiny import MODEL
from transformers import AutoModelForCausalLM, AutoTokenizer

from paft.config import LocalJudge, Template
from paft.judge.judging import judge_of, local_name
from paft.judge.local import Local
from paft.judge.prompts import Question, top_logprobs
from paft.model.base import base_folder, load_tokenizer

MESSAGES = ({"role": "system", "content": "Judge."}, {"role": "user", "content": "m or M?"})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The tiny base with a chat template."""
    folder = tmp_path_factory.mktemp("judge") / "model"
    shutil.copytree(base_folder(MODEL), folder)
    load_tokenizer(folder, Template.chatml).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def judge(folder) -> Local:
    made = judge_of(LocalJudge(path=str(folder)))
    assert isinstance(made, Local)
    return made


def ask(judge: Local, **sampling):
    return judge.ask(Question(MESSAGES, sampling), threading.Event())


def test_log_probabilities_are_those_of_the_models_forward(folder, judge):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer.apply_chat_template(
        list(MESSAGES), add_generation_prompt=True, return_tensors="pt"
    ).input_ids
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(folder)(ids).logits[0, -1]
    values, tokens = logits.log_softmax(-1).topk(5)

    answer = ask(judge, max_tokens=1, top_logprobs=5)

    given = top_logprobs(answer)
    # the same float32 forward, of which here all positions' logits are made
    assert list(given.values()) == pytest.approx(values.tolist(), abs=1e-5)
    assert list(given) == [tokenizer.decode([token]) for token in tokens]
    assert answer["message"]["content"] == next(iter(given))
    assert answer["usage"] == {"prompt_tokens": ids.shape[1], "completion_tokens": 1}


def test_words_are_those_of_greedy_generation(folder, judge):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer.apply_chat_template(
        list(MESSAGES), add_generation_prompt=True, return_tensors="pt"
    ).input_ids
    greedy = AutoModelForCausalLM.from_pretrained(folder).generate(ids, do_sample=False, max_new_tokens=6)

    answer = ask(judge, max_tokens=6)

    assert answer["message"]["content"] == tokenizer.decode(
        greedy[0, ids.shape[1] :], skip_special_tokens=True
    )


def test_it_is_known_by_its_content(folder, judge, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    assert local_name(LocalJudge(path=str(copy))) == judge.model
    (copy / "generation_config.json").write_text("{}")
    assert local_name(LocalJudge(path=str(copy))) != judge.model


def test_folder_without_a_chat_template_is_refused():
    with pytest.raises(ValueError, match="has no chat template, so it cannot be asked"):
        judge_of(LocalJudge(path=str(base_folder(MODEL))))

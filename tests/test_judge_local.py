"""A model folder as the judge: its answers are those of the model's own forward and generation."""

import math
import shutil
import threading

import pytest
import torch
from tiny import MODEL
from transformers import AutoModelForCausalLM, AutoTokenizer

from paft.config import LocalJudge, Template
from paft.judge.judging import judge_of, name_of
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


def prompt(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    made = tokenizer.apply_chat_template(list(MESSAGES), add_generation_prompt=True, return_tensors="pt")
    return tokenizer, made.input_ids


def ask(judge: Local, **sampling):
    return judge.ask(Question(MESSAGES, sampling), threading.Event())


def test_log_probabilities_are_those_of_the_models_forward(folder, judge):
    tokenizer, ids = prompt(folder)
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(folder)(ids).logits[0, -1]
    values, tokens = logits.softmax(-1).topk(5)
    expected = dict.fromkeys((tokenizer.decode([token]).strip() for token in tokens), 0.0)
    for value, token in zip(values.tolist(), tokens, strict=True):
        expected[tokenizer.decode([token]).strip()] += value

    answer = ask(judge, max_tokens=1, top_logprobs=5)

    given = {token: math.exp(value) for token, value in top_logprobs(answer).items()}
    # the same float32 forward, of which here all positions' logits are made
    assert given == pytest.approx(expected, rel=1e-5)
    assert answer["message"]["content"] == next(iter(expected))
    assert answer["usage"] == {"prompt_tokens": ids.shape[1], "completion_tokens": 1}


def test_words_are_those_of_greedy_generation(folder, judge):
    tokenizer, ids = prompt(folder)
    greedy = AutoModelForCausalLM.from_pretrained(folder).generate(ids, do_sample=False, max_new_tokens=6)

    answer = ask(judge, max_tokens=6)

    words = tokenizer.decode(greedy[0, ids.shape[1] :], skip_special_tokens=True)
    assert len(words) > 1 and answer["message"]["content"] == words


def test_it_is_known_by_its_content(folder, judge, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    assert name_of(LocalJudge(path=str(copy))) == judge.model
    (copy / "generation_config.json").write_text("{}")
    assert name_of(LocalJudge(path=str(copy))) != judge.model


def test_folder_without_a_chat_template_is_refused():
    with pytest.raises(ValueError, match="has no chat template, so it cannot be asked"):
        judge_of(LocalJudge(path=str(base_folder(MODEL))))

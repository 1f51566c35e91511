"""Where versions of libraries differ, the older form gives what the newer one gives, or is refused in words."""

import re
import tomllib
from pathlib import Path

import pytest
import torch
import transformers.utils.chat_template_utils as chat_templates
from chat_tokenizers import tokenizer_of
from tiny import BRANCHES, SAME, distance, gradients, make, move, rows_for, whole_batch
from transformers import PreTrainedModel

from paft import versions
from paft.chat.encode import ChatEncoder
from paft.config import SpecialTokens

ROOT = Path(__file__).parents[1]


def gradient(**settings: bool) -> dict[str, torch.Tensor]:
    module = move(make(BRANCHES["sft"], **settings))
    rows = rows_for(module.config, 4)
    loss, _ = module.micro_loss(list(rows), whole_batch(rows))
    loss.backward()
    assert module.backbone.base.is_gradient_checkpointing == bool(settings)
    return gradients(module)


def test_recomputation_under_its_older_name(monkeypatch):
    plain = gradient()
    if newer := getattr(PreTrainedModel, "activation_checkpointing_enable", None):
        monkeypatch.setattr(PreTrainedModel, "gradient_checkpointing_enable", newer)
        monkeypatch.delattr(PreTrainedModel, "activation_checkpointing_enable")

    assert distance(gradient(gradient_checkpointing=True), plain) < SAME


def test_special_tokens_as_text_are_refused_where_transformers_cannot_read_them(monkeypatch):
    monkeypatch.delattr(chat_templates, "mark_control_tokens", raising=False)

    with pytest.raises(ValueError, match=r"special_tokens_in_text=text needs a transformers that .* got 5"):
        versions.marker()
    with pytest.raises(ValueError, match="set special_tokens_in_text=error or token"):
        ChatEncoder(tokenizer_of("byte level", "chatml"), SpecialTokens.text)


def test_the_oldest_versions_are_the_lowest_that_may_be_installed():
    listed = re.findall(r"^(\w+)==([\d.]+)$", (ROOT / "requirements-oldest.txt").read_text(), re.M)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lowest = dict(re.findall(r"^([\w-]+)>=([\d.]+)", "\n".join(project["dependencies"]), re.M))

    assert {name for name, _ in listed} == {"torch", "transformers"}
    assert all(version.removesuffix(".0") == lowest[name] for name, version in listed)

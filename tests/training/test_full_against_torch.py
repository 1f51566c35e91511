"""Full fine-tuning against plain torch: transformers' own model, every parameter in `torch.optim.AdamW`."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_bases import small_base
from tiny import MODEL, branch, distance, make, rows_for, run, sft_rows
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from paft.config import ModelConfig, SFTConfig, Tuning
from paft.forward.batches import sft_tensors
from paft.losses import mean_nll
from paft.model.base import base_folder
from paft.model.full import FullPolicy
from paft.objectives import DPO
from paft.proof.base import load_base
from paft.training.batches import StepLoader

GRADIENT = 5e-6
"""Relative distance of float32 gradients of every weight, through other kernels and summed in another order; measured
3e-7 to 7e-7, of single tensors up to 5e-6."""
STEPS = 4
MOVED = 1e-4
"""The same of what four steps of AdamW add to the weights: where a gradient is near 0, Adam enlarges its last bits, and
a weight rounds what is added to it where a delta does not; measured 3e-6 and 2e-5."""
LR = 1e-3
KINDS = {
    "llama": {"tie_word_embeddings": False},
    "mistral": {"tie_word_embeddings": True},
    "qwen2": {"tie_word_embeddings": True},
    "gemma2": {},
    "phi": {},
    "cohere": {},
    "gpt2": {},
    "mixtral": {},
}
"""Heads of their own and tied ones, with a cap, a bias, a scale; other norms; Conv1D; experts."""


def plain_model(folder: Path) -> PreTrainedModel:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    return model.eval()


def plain_logps(model: PreTrainedModel, ids: list[int], labels: list[int]) -> Tensor:
    """Sum of the log-probabilities of a row's labels, by the model's own logits."""
    logits = model(torch.tensor([ids]), use_cache=False).logits[0, :-1]
    wanted = torch.tensor(labels[1:])
    picked = F.log_softmax(logits, -1).gather(1, wanted.clamp(min=0)[:, None])[:, 0]
    return (picked * (wanted >= 0)).sum()


def answer(model: PreTrainedModel, prompt: list[int], text: list[int]) -> Tensor:
    return plain_logps(model, prompt + text, [-100] * len(prompt) + text)


def plain_sft(model: PreTrainedModel, rows: list[Any], config: Any) -> Tensor:
    total = sum(plain_logps(model, row.input_ids, row.labels) for row in rows)
    return -total / sum(row.num_labels for row in rows)


def plain_dpo(model: PreTrainedModel, rows: list[Any], config: Any) -> Tensor:
    losses = []
    for row in rows:
        chosen, rejected = (answer(model, row.prompt_ids, a) for a in (row.chosen_ids, row.rejected_ids))
        with torch.no_grad():
            chosen_0, rejected_0 = (
                answer(model.reference, row.prompt_ids, a) for a in (row.chosen_ids, row.rejected_ids)
            )
        losses.append(-F.logsigmoid(config.beta * ((chosen - chosen_0) - (rejected - rejected_0))))
    return torch.stack(losses).mean()


def twin(config: Any, model: ModelConfig, rows: list[Any]) -> dict[str, Tensor]:
    """What the same steps of plain torch add to every parameter."""
    folder = base_folder(model)
    trained, base = plain_model(folder), plain_model(folder)
    object.__setattr__(trained, "reference", base)
    loss_of = plain_sft if isinstance(config, SFTConfig) else plain_dpo
    optimizer = torch.optim.AdamW(
        trained.parameters(), lr=config.lr, betas=(config.beta1, config.beta2), weight_decay=0.0
    )
    for batch in StepLoader(rows, global_batch_size=config.global_batch_size, steps=STEPS, seed=0):
        optimizer.zero_grad()
        loss_of(trained, batch.rows, config).backward()
        optimizer.step()
    before = dict(base.named_parameters())
    return {name: p.detach() - before[name].detach() for name, p in trained.named_parameters()}


def deltas(module: Any) -> dict[str, Tensor]:
    return {t.name: t.delta.detach().clone() for t in module.backbone.trained}


@pytest.mark.parametrize("kind", [SFTConfig, DPO])
def test_trained_weights_against_torch_adamw(kind):
    config = branch(kind, tuning=Tuning.full, lr=LR)
    rows = rows_for(config, 8 * STEPS)
    module = make(config, steps=STEPS, micro_batch_size=4)
    run(module, rows)
    expected = twin(config, MODEL, rows)
    assert distance(deltas(module), expected) < MOVED
    # the weights themselves are the base's plus what was added
    before = dict(plain_model(base_folder(MODEL)).named_parameters())
    for trained in module.backbone.trained:
        torch.testing.assert_close(trained.stored, before[trained.name] + trained.delta, rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_every_weight_against_autograd(tmp_path, kind):
    model, rows = small_base(tmp_path, kind, **KINDS[kind]), sft_rows(6)
    policy = FullPolicy(load_base(tmp_path, model))
    policy.hold_base()
    policy.train()
    mean_nll(policy(*sft_tensors(rows, 0)), sum(row.num_labels for row in rows)).backward()
    policy.refuse_untouched()
    found = {t.name: t.delta.grad for t in policy.trained}

    plain = plain_model(tmp_path)
    plain_sft(plain, rows, None).backward()
    expected = {name: p.grad for name, p in plain.named_parameters()}
    assert found.keys() == expected.keys()
    zeros = {name: torch.zeros_like(p) for name, p in plain.named_parameters()}
    found, expected = ({n: zeros[n] if g is None else g for n, g in gs.items()} for gs in (found, expected))
    assert distance(found, expected) < GRADIENT
    for name in expected:  # none is lost in the size of the others
        if expected[name].any():
            assert distance({name: found[name]}, {name: expected[name]}) < 1e-3, name

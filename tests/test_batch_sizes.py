"""How much goes through a model at once: by memory on a GPU, texts in batches of their own; no score or key knows."""

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from synthetic_store import PAFT
from tiny import MODEL

from paft.config import EvaluateConfig, ModelShape, TaskConfig, Template
from paft.cost.flops_and_bytes import Batch, base_memory, forward_memory, past_share, tokens_that_fit
from paft.evaluate.lm import SparingLM, lm_of
from paft.evaluate.stage import evaluate_model
from paft.forward.limits import MAX_TOKENS, Limits, limits
from paft.forward.loglikelihood import LogLikelihoods
from paft.forward.tree import Row, batches
from paft.graph.build import build
from paft.model.base import base_folder, load_tokenizer
from paft.proof.base import load_base

LLAMA3_8B = ModelShape(
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    vocab_size=128256,
)
CLOSE = 1e-4
"""Sums of up to some hundred float32 terms, padded differently."""

# --- the choice ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("free", [1e9, 8e9, 24e9, 60e9])
def test_tokens_that_fit_take_half_of_the_free_memory_by_the_plans_own_formula(free):
    found = tokens_that_fit(LLAMA3_8B, free, item_bytes=2)

    def taken(tokens: int) -> float:
        base = base_memory(LLAMA3_8B, item_bytes=2)
        return forward_memory(LLAMA3_8B, Batch(tokens, tokens), item_bytes=2) - base

    assert taken(found) <= free / 2 < taken(2 * found) and math.log2(found).is_integer()


def test_memory_that_is_short_makes_small_batches_and_never_none():
    chosen = [tokens_that_fit(LLAMA3_8B, free, item_bytes=2) for free in (0, 1e8, 1e9, 1e10, 1e11)]

    assert chosen[0] == 1 and all(a <= b for a, b in pairwise(chosen)) and chosen[-1] > MAX_TOKENS["cuda"]


def test_a_cached_token_of_grouped_queries_by_hand():
    # 8 + 32 heads of 128, keys and values, beside 2 x 4096 + 3 x 14336 numbers of a new token
    assert past_share(LLAMA3_8B) == pytest.approx(2 * 128 * 40 / 51200)


def test_a_cpu_and_an_unknown_shape_keep_their_rows():
    free = {"free": 60e9, "item_bytes": 2}

    assert limits("cpu", 16, LLAMA3_8B, **free) == Limits(16, 4096) == limits("cuda", 16, None, **free)
    on_gpu = limits("cuda", 16, LLAMA3_8B, **free)
    assert (on_gpu.rows, on_gpu.tokens) == (math.inf, 16_384) and on_gpu.held >= 16_384


@pytest.mark.parametrize("before", [0, 2000])
def test_batches_keep_every_limit_and_lose_no_row(before):
    lengths = [7, 20_000, 300, 300, 40, 40, 40, 12, 3, *[25] * 3000]
    rows = [Row([1] * n, list(range(before, before + n)), [n] * n, []) for n in lengths]
    room = Limits(math.inf, 16_384, 32_768, 0.2)
    cut = list(batches(rows, room))

    assert sorted(len(r.tokens) for batch in cut for r in batch) == sorted(lengths)
    for batch in cut:
        width = len(batch[0].tokens)
        assert len(batch) == 1 or len(batch) * width <= 16_384
        assert len(batch) == 1 or len(batch) * (width + 0.2 * before) <= 32_768
    assert max(map(len, cut)) == (655 if before == 0 else 77)


# --- scores -------------------------------------------------------------------------------------------

FEWSHOT = "Q: one?\nA: yes\n\nQ: two?\nA: no\n\n"


def requests(lm: SparingLM) -> list[Any]:
    """Long and short ones, many of which share a beginning that is worth a pass of its own."""
    texts = [
        (f"{FEWSHOT * 9}Q: item {i}?\nA:", answer) for i in range(12) for answer in (" yes", " no it is")
    ]
    texts += [(f"Q: {'x' * i}?\nA:", " yes") for i in range(1, 60, 7)]
    return [(None, lm.tok_encode(a), lm.tok_encode(b)) for a, b in texts]


def sparing(batch_size: int = 4, **settings: Any) -> SparingLM:
    folder = base_folder(MODEL)
    tokenizer = load_tokenizer(folder, Template.chatml)
    return lm_of(load_base(folder, MODEL), tokenizer, batch_size, "cpu", chats=False, **settings)


def test_log_likelihoods_under_every_limit_against_one_row_at_a_time():
    lm = sparing()
    asked = requests(lm)
    alone = LogLikelihoods(lm.model, limits=Limits(1))(asked, lm.max_length)
    for room in (
        Limits(4),
        Limits(math.inf, 16_384),
        Limits(math.inf, 16_384, 700, 0.5),
        Limits(math.inf, 90, 64, 2),
    ):
        found = LogLikelihoods(lm.model, limits=room)(asked, lm.max_length)
        for (mine, greedy), (theirs, likeliest) in zip(found, alone, strict=True):
            assert mine == pytest.approx(theirs, abs=CLOSE) and greedy == likeliest


GENERATING = EvaluateConfig(
    name="few",
    limit=5,
    batch_size=4,
    tasks={"calls": TaskConfig(task="paft_tool_call", metric="exact_match,none", num_fewshot=1)},
)


def test_an_evaluation_writes_the_same_bytes_in_batches_of_any_size(tmp_path: Path):
    base = base_folder(MODEL)
    written = []
    for size in (None, 1, 2, 5):
        out = tmp_path / str(size)
        out.mkdir()
        config = replace(GENERATING, generation_batch_size=size)
        evaluate_model(base, base, MODEL, Template.chatml, config, out, device="cpu")
        names = ("results.json", "samples.jsonl", "answers.parquet")
        written.append([(out / name).read_bytes() for name in names])

    assert written[1:] == written[:1] * 3


@pytest.mark.parametrize(
    ("settings", "most"),
    [
        ({"do_sample": False}, 3),
        ({}, 3),
        ({"temperature": 0.0}, 3),
        ({"do_sample": True, "temperature": 0.7}, 4),
        ({"temperature": 0.7}, 4),
    ],
)
def test_what_is_drawn_keeps_the_batch_it_depends_on(settings, most, monkeypatch):
    seen: list[int] = []
    plain = SparingLM._generated

    def watched(self: SparingLM, context: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        seen.append(len(context))
        return plain(self, context, *args, **kwargs)

    monkeypatch.setattr(SparingLM, "_generated", watched)
    lm = sparing(4, generation_batch_size=3)
    arguments = {"until": ["\n"], "max_gen_toks": 4} | settings
    asked = [
        Instance(request_type="generate_until", doc={}, arguments=(f"Q: {i}", arguments), idx=i)
        for i in range(8)
    ]
    lm.generate_until(asked, disable_tqdm=True)

    assert max(seen) == most and sum(seen) == 8 and lm.batch_size == 4


# --- keys ---------------------------------------------------------------------------------------------


def test_no_key_knows_of_it(compose):
    def keys(*words: str) -> list[str]:
        return [stage.key for stage in build(compose(*words)).walk()]

    asked = "evaluate.generation_batch_size=64"
    assert keys("experiment=smoke") == keys("experiment=smoke", asked)
    judged = ("experiment=smoke", "evaluate=alpaca_eval", "judge=openai")
    assert keys(*judged) == keys(*judged, asked)


def test_a_size_that_is_none_is_refused():
    with pytest.raises(ValueError, match=r"evaluate\.generation_batch_size must be positive or null, got 0"):
        replace(PAFT.evaluate, generation_batch_size=0)

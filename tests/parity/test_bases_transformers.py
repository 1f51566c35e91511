"""Every base against transformers' plain forward: what training, the reference and evaluation make of its rows."""

from pathlib import Path
from typing import Any

import pytest
import torch
from small_bases import num_parameters, plain_logps, small_base, texts
from torch import Tensor
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from paft.chat.tokens import IGNORE, Encoded, EncodedPair
from paft.config import LocalModel, LoraConfig
from paft.forward.batches import sft_tensors
from paft.forward.loglikelihood import LogLikelihoods
from paft.forward.pairs import answer_logps, pair_tensors
from paft.model.paths import HeadForm, can_share, packs, paths_of
from paft.model.policy import FrozenPolicy, Policy
from paft.proof.base import load_base, prove_base

CLOSE = 1e-4
"""Nats a token: float32 sums in another order are within 2e-5 here, one layer less or a bias forgotten beyond 1e-2."""

# fmt: off
FAST = [  # every path is theirs
    "llama", "mistral", "qwen2", "qwen3", "phi", "phi3", "gpt2", "gpt_neox", "gpt_bigcode", "opt", "starcoder2", "olmo",
    "olmo2", "olmo3", "gemma", "gemma3_text", "cohere", "cohere2", "granite", "glm", "glm4", "persimmon", "biogpt",
    "smollm3", "ernie4_5", "exaone4", "helium", "nanochat", "seed_oss", "arcee", "apertus", "mixtral", "qwen3_moe",
    "olmoe", "dots1", "granitemoe", "codegen", "gptj", "deepseek_v3",
]
SLOWER = [  # some of their paths are the plain ones
    "bloom", "mpt", "falcon", "stablelm", "nemotron", "xglm", "gpt_neox_japanese", "gemma2", "gpt_oss", "llama4_text",
    "bert", "electra", "modernbert-decoder", "bart", "openai-gpt", "minimax", "qwen3_next", "falcon_h1", "mamba",
    "falcon_mamba", "rwkv", "jamba", "bamba", "recurrent_gemma", "nemotron_h", "whisper", "diffllama", "doge",
]
# fmt: on
OWN: dict[str, dict[str, Any]] = {"deepseek_v3": {"num_key_value_heads": 4}}
"""What an architecture asks of its sizes."""


def trained(base: Any, rows: list[list[int]]) -> list[Tensor]:
    tensors = sft_tensors([Encoded(row, [IGNORE, *row[1:]]) for row in rows], 0)
    with torch.no_grad():
        logps = FrozenPolicy(base).train()(*tensors)
    return [logp[1 : len(row)] for logp, row in zip(logps, rows, strict=True)]


def off(found: list[Tensor], right: list[Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(found, right, strict=True))


@pytest.mark.parametrize("kind", FAST + SLOWER)
def test_rows_and_answers_against_plain_transformers(kind: str, tmp_path: Path) -> None:
    config = small_base(tmp_path, kind, **OWN.get(kind, {}))
    rows = texts(50, 21, 44, 60)
    right = plain_logps(tmp_path, rows)

    base = load_base(tmp_path, config)

    assert off(trained(base, rows), right) < CLOSE
    # two answers to one prompt: the reference's layout, then evaluation's requests
    prompt, answers = rows[0][:20], (rows[0][20:], rows[1])
    logps = plain_logps(tmp_path, [prompt + answer for answer in answers])
    wanted = torch.stack([logp[19:].sum() for logp in logps])
    pair = pair_tensors(policy := FrozenPolicy(base), [EncodedPair(prompt, *answers)], 0)
    with torch.no_grad():
        found = torch.cat(answer_logps(policy, pair))
    torch.testing.assert_close(found, wanted, atol=CLOSE * 30, rtol=0)
    requests = [(None, prompt, answer) for answer in answers] + [(None, row[:1], row[1:]) for row in rows]
    scores = torch.tensor([score for score, _ in LogLikelihoods(base, batch_size=4)(requests, 100)])
    wanted = torch.cat([wanted, torch.stack([logp.sum() for logp in right])])
    torch.testing.assert_close(scores, wanted, atol=CLOSE * 60, rtol=0)


# kimi_linear's recurrence is a loop over tokens, minutes for what others do in a second
OTHERS = sorted(set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - {*FAST, *SLOWER, "kimi_linear"})


@pytest.mark.parametrize("kind", OTHERS)
def test_every_other_architecture_is_right_or_refused(kind: str, tmp_path: Path) -> None:
    try:
        size = num_parameters(kind)
        config = small_base(tmp_path, kind) if size < 20_000_000 else None
    except Exception as error:  # its sizes must agree in ways of their own
        pytest.skip(f"not built from these sizes: {error!s:.100}")
    if config is None:
        pytest.skip(f"{size / 1e6:.0f} million parameters that no size here makes fewer")
    try:
        base = load_base(tmp_path, config)
    except ValueError as refusal:
        assert str(refusal).startswith(f"{config.name} ") or kind in str(refusal)
        return
    rows = texts(50, 21, 44, 60)
    assert off(trained(base, rows), plain_logps(tmp_path, rows)) < CLOSE


@pytest.mark.parametrize("kind", ["llama", "phi", "mixtral", "opt", "gptj"])
def test_the_fast_paths_are_taken_where_they_are_right(kind: str, tmp_path: Path) -> None:
    base = load_base(tmp_path, small_base(tmp_path, kind))
    paths = paths_of(base)
    assert paths.head and paths.padded and paths.shared and paths.trunks and paths.generated
    if kind != "gptj":  # its attention is its own
        assert packs(base, 100) and can_share(base, 100)


@pytest.mark.parametrize(
    ("kind", "settings", "form"),
    [
        ("cohere", {"logit_scale": 0.25}, HeadForm(0.25)),
        ("granite", {"logits_scaling": 8.0}, HeadForm(0.125)),
        ("gemma2", {"final_logit_softcapping": 5.0}, HeadForm(1, 5.0)),
        ("falcon_h1", {"lm_head_multiplier": 0.5}, HeadForm(0.5)),
    ],
)
def test_scale_and_cap_of_a_head_belong_to_it(
    kind: str, settings: dict[str, Any], form: HeadForm, tmp_path: Path
) -> None:
    base = load_base(tmp_path, small_base(tmp_path, kind, **settings))
    assert paths_of(base).head == form
    rows = texts(30, 12)
    assert off(trained(base, rows), plain_logps(tmp_path, rows)) < CLOSE


CONV = {"layer_types": ["conv", "full_attention", "conv"]}
HYBRIDS = [("lfm2", CONV), ("qwen3_next", {}), ("minimax", {}), ("jamba", {}), ("mamba", {}), ("rwkv", {})]


@pytest.mark.parametrize(("kind", "settings"), HYBRIDS)
def test_no_text_reads_another_where_layers_do_more_than_attend(
    kind: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    """To the bit: with the lengths kept, nothing of a row may change with the row beside it."""
    base = load_base(tmp_path, small_base(tmp_path, kind, **settings))
    rows = texts(30, 30, 17)
    assert not packs(base, 30) and not can_share(base, 30)
    first = trained(base, rows)
    other = trained(base, [rows[0], rows[1][::-1], rows[2]])
    assert torch.equal(first[0], other[0]) and torch.equal(first[2], other[2])
    pairs = [EncodedPair(rows[0], rows[1], answer) for answer in (rows[2], rows[2][::-1])]
    policy = FrozenPolicy(base)
    with torch.no_grad():
        (chosen, _), (again, _) = (answer_logps(policy, pair_tensors(policy, [p], 0)) for p in pairs)
    assert torch.equal(chosen, again)


NEO = {
    "attention_types": [[["global", "local"], 1]],
    "num_layers": 2,
    "num_hidden_layers": 2,
    "window_size": 16,
}


@pytest.mark.parametrize(
    ("kind", "settings"),
    [("gpt_neo", NEO), ("mistral", {"sliding_window": 16}), ("gemma3_text", {"sliding_window": 16})],
)
def test_rows_longer_than_a_window_do_not_share_a_pass(
    kind: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    base = load_base(tmp_path, small_base(tmp_path, kind, **settings))
    assert not packs(base, 17) and not can_share(base, 17)
    rows = texts(50, 40)
    assert off(trained(base, rows), plain_logps(tmp_path, rows)) < CLOSE


def test_positions_that_depend_on_the_longest_row_keep_rows_apart(tmp_path: Path) -> None:
    """Phi-3 of 128k takes other frequencies for a batch in which one row is longer than it was pre-trained on."""
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 8, "long_factor": [3.0] * 8,
            "original_max_position_embeddings": 32}  # fmt: skip
    base = load_base(
        tmp_path, small_base(tmp_path, "phi3", rope_parameters=rope, original_max_position_embeddings=32)
    )
    rows = texts(50, 20)
    assert packs(base, 32) and not packs(base, 33)
    assert off(trained(base, rows), plain_logps(tmp_path, rows)) < CLOSE


PICKS = [
    (
        "glm_moe_dsa",
        {"num_key_value_heads": 4, "index_topk": 40, "index_n_heads": 4, "index_head_dim": 32},
        40,
    ),
    ("doge", {"keep_window_size": 64}, 64),
    ("big_bird", {"attention_type": "block_sparse", "block_size": 4, "num_random_blocks": 1}, 28),
]


@pytest.mark.parametrize(("kind", "settings", "limit"), PICKS)
def test_texts_beyond_what_an_attention_takes_whole_are_refused(
    kind: str, settings: dict[str, Any], limit: int, tmp_path: Path
) -> None:
    base = load_base(tmp_path, small_base(tmp_path, kind, **settings))
    rows = texts(limit - 1, limit // 2)
    assert off(trained(base, rows), plain_logps(tmp_path, rows)) < CLOSE
    (long,) = texts(limit + 10)
    with pytest.raises(ValueError, match=rf"{kind} is causal up to {limit} tokens only"):
        trained(base, [long])
    with pytest.raises(ValueError, match=rf"{kind} is causal up to {limit} tokens only"):
        LogLikelihoods(base)([(None, long[:1], long[1:])], 200)


LLAMA4 = {"floor_scale": 100, "attn_temperature_tuning": True, "attn_scale": 1.0, "no_rope_layers": [0, 0, 0]}


@pytest.mark.parametrize(("kind", "settings"), [("llama4_text", LLAMA4), ("phimoe", {})])
def test_queries_scaled_by_column_and_routers_with_a_threshold(
    kind: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    """Llama 4 counts columns of a row, not positions; the jitter of Phi's router is at work in evaluation too."""
    base = load_base(tmp_path, small_base(tmp_path, kind, **settings))
    rows = texts(90, 80, 70, 130)
    right = plain_logps(tmp_path, rows)
    assert off(trained(base, rows), right) < CLOSE
    requests = [(None, row[:1], row[1:]) for row in rows]
    scores = torch.tensor([score for score, _ in LogLikelihoods(base, batch_size=4)(requests, 200)])
    torch.testing.assert_close(scores, torch.stack([logp.sum() for logp in right]), atol=CLOSE * 130, rtol=0)


def test_an_attention_whose_package_is_missing_is_named(tmp_path: Path) -> None:
    config = small_base(tmp_path, "llama")
    with pytest.raises(ValueError, match=r"model.attention=flash_attention_2: .* set model.attention=auto"):
        load_base(tmp_path, LocalModel(**(vars(config) | {"attention": "flash_attention_2"})))


def test_what_is_no_causal_language_model_is_refused_in_a_sentence(tmp_path: Path) -> None:
    config = small_base(tmp_path, "bert", is_decoder=False)
    with pytest.raises(ValueError, match=r"bert is no causal language model .* later tokens move"):
        load_base(tmp_path, config)


def test_what_needs_more_than_tokens_is_refused_in_a_sentence(tmp_path: Path) -> None:
    config = small_base(tmp_path, "xmod")
    with pytest.raises(ValueError, match=r"xmod cannot be run on a row of tokens alone: .*language"):
        load_base(tmp_path, config)


def test_a_chosen_attention_is_kept_where_it_is_right_and_replaced_where_not(tmp_path: Path) -> None:
    config = small_base(tmp_path, "gemma2", attn_logit_softcapping=1.0)
    found = prove_base(tmp_path, LocalModel(**(vars(config) | {"attention": "sdpa"})))
    assert found.paths.attention == "eager" and "attention sdpa" in found.replaced
    small_base(tmp_path / "llama", "llama")
    found = prove_base(tmp_path / "llama", LocalModel(**(vars(config) | {"attention": "sdpa"})))
    assert found.paths.attention == "sdpa" and not found.replaced


def test_an_adapter_on_the_head_is_part_of_the_forward(tmp_path: Path) -> None:
    base = load_base(tmp_path, small_base(tmp_path, "llama", tie_word_embeddings=False))
    policy = Policy(base, LoraConfig(rank=2, alpha=2, target_modules=["lm_head"]))
    ((_, B, _),) = policy.factors()
    with torch.no_grad():
        B.normal_()
    rows = texts(20, 9)
    tensors = sft_tensors([Encoded(row, [IGNORE, *row[1:]]) for row in rows], 0)
    logps = policy(*tensors)
    ids = torch.tensor([rows[1]])
    right = policy.peft(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
    torch.testing.assert_close(logps[1, 1:9], right)
    logps.sum().backward()
    policy.refuse_untouched()

"""The fused layers against the libraries' own: peft's LoRA, PyTorch's attention, transformers' RMSNorm."""

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig as PeftLoraConfig
from peft.tuners.lora import Linear
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

from paft.device import CPU, CUDA, FORMS
from paft.model.layers.attention import LONGEST, attention, causal_bias, pack, shared_prompt_bias
from paft.model.layers.dropout import RowDropout, Rows
from paft.model.layers.lora import LoraLinear
from paft.model.layers.norm import fuse_norms
from paft.model.layers.swiglu import fuse_mlps
from paft.model.layers.varlen import varlen

FLOAT32 = {"atol": 1e-5, "rtol": 1e-5}
"""Sums of up to a few hundred float32 products in another order."""


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
    return (scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))).to(dtype)


def lora(kind: type[Linear], dtype: torch.dtype, *, bias: bool = False, dropout: float = 0.0) -> Linear:
    base = nn.Linear(24, 40, bias=bias)
    with torch.no_grad():
        for i, p in enumerate(base.parameters()):
            p.copy_(normal(*p.shape, seed=i, scale=0.2))
    base = base.to(dtype).requires_grad_(False)
    config = PeftLoraConfig(r=4, lora_alpha=6, lora_dropout=dropout)
    layer = kind(base, "default", config, r=4, lora_alpha=6)
    for factors in (layer.lora_A, layer.lora_B):
        factors.float()  # as get_peft_model leaves them
    with torch.no_grad():
        layer.lora_A["default"].weight.copy_(normal(4, 24, seed=3, scale=0.2))
        layer.lora_B["default"].weight.copy_(normal(40, 4, seed=4, scale=0.2))
    return layer


def results(layer: Linear, x: Tensor) -> list[Tensor]:
    """Output, then gradients of the input and of both factors, in float32."""
    x = x.clone().requires_grad_()
    y = layer(x)
    y.backward(normal(*y.shape, seed=9).to(y.dtype))
    factors = layer.lora_A["default"].weight.grad, layer.lora_B["default"].weight.grad
    return [t.float() for t in (y.detach(), x.grad, *factors) if t is not None]


@pytest.mark.parametrize("bias", [False, True])
def test_lora_against_peft_in_float32(bias):
    x = normal(2, 7, 24, seed=5)
    ours, theirs = (results(lora(kind, torch.float32, bias=bias), x) for kind in (LoraLinear, Linear))
    for mine, own in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, own, **FLOAT32)


def test_lora_in_bfloat16_is_as_near_the_truth_as_its_rounding():
    x = normal(2, 7, 24, seed=5).bfloat16()
    truth = results(lora(Linear, torch.bfloat16).float(), x.float())
    for mine, exact in zip(results(lora(LoraLinear, torch.bfloat16), x), truth, strict=True):
        # bfloat16 keeps 8 bits, 2^-9 a rounding; a result here sees up to four of them
        assert (mine - exact).norm() / exact.norm() < 4 * 2**-9


def test_lora_gradients_keep_the_type_of_the_factors():
    layer = lora(LoraLinear, torch.bfloat16)
    layer(normal(3, 24, seed=5, dtype=torch.bfloat16)).sum().backward()
    assert layer.lora_A["default"].weight.grad.dtype == torch.float32


def test_lora_switched_off_is_the_base_layer():
    layer, x = lora(LoraLinear, torch.bfloat16), normal(3, 24, seed=5).bfloat16()
    layer.enable_adapters(False)
    assert torch.equal(layer(x), layer.get_base_layer()(x))


def test_lora_with_dropout_is_that_of_peft():
    x = normal(4, 24, seed=5)
    outputs = []
    for kind in (LoraLinear, Linear):
        torch.manual_seed(0)
        outputs.append(lora(kind, torch.float32, dropout=0.5).train()(x))
    assert torch.equal(*outputs)
    assert not torch.allclose(outputs[0], lora(Linear, torch.float32)(x))


def dropping(layer: Linear, x: Tensor, p: float) -> Linear:
    """The layer with dropout, whose mask for this input is the same for every such layer."""
    rows = Rows(seed=0)
    rows.lay_out(torch.arange(x.shape[1]).expand(x.shape[:2]))
    layer.lora_dropout["default"] = RowDropout(p, "layer", rows)
    return layer.train()


@pytest.mark.parametrize("bias", [False, True])
def test_lora_with_dropout_against_peft_with_the_same_mask(bias):
    x = normal(2, 7, 24, seed=5)
    ours, theirs, plain = (
        results(layer, x)
        for layer in (
            dropping(lora(LoraLinear, torch.float32, bias=bias), x, 0.3),
            dropping(lora(Linear, torch.float32, bias=bias), x, 0.3),
            lora(Linear, torch.float32, bias=bias),
        )
    )
    for mine, own, other in zip(ours, theirs, plain, strict=True):
        torch.testing.assert_close(mine, own, **FLOAT32)
        assert (mine - other).norm() > 0.01 * other.norm()


def test_lora_with_dropout_is_one_product_in_the_base_type():
    """peft's own forward, which multiplies in float32, would keep a float32 input for the backward pass."""
    x = normal(2, 7, 24, seed=5).bfloat16().requires_grad_()
    kept: list[Tensor] = []
    layer = dropping(lora(LoraLinear, torch.bfloat16), x, 0.3)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = layer(x)
    assert "LoraProduct" in type(y.grad_fn).__name__
    assert {t.dtype for t in kept} == {torch.bfloat16, torch.bool}


def test_lora_with_dropout_in_bfloat16_is_as_near_the_truth_as_its_rounding():
    x = normal(2, 7, 24, seed=5).bfloat16()
    truth = results(dropping(lora(Linear, torch.bfloat16).float(), x, 0.3), x.float())
    for mine, exact in zip(
        results(dropping(lora(LoraLinear, torch.bfloat16), x, 0.3), x), truth, strict=True
    ):
        assert (mine - exact).norm() / exact.norm() < 4 * 2**-9


def heads(length: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    sizes = ((2, 6, length, 8), (2, 2, length, 8), (2, 2, length, 8))
    return [normal(*size, seed=i, dtype=dtype).requires_grad_() for i, size in enumerate(sizes)]


@pytest.mark.parametrize("masked", [False, True])
def test_attention_against_scaled_dot_product(masked):
    q, k, v = heads(13)
    segments = torch.tensor(
        [[0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 3, 3, 3], [1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2]]
    )
    mask = shared_prompt_bias(segments, q.dtype) if masked else None
    ours, _ = attention(nn.Module(), q, k, v, mask, scaling=0.3)
    theirs = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, scale=0.3, enable_gqa=True
    ).transpose(1, 2)
    torch.testing.assert_close(ours, theirs, **FLOAT32)
    pull = normal(*ours.shape, seed=7)
    for mine, own in zip(*(torch.autograd.grad(o, (q, k, v), pull) for o in (ours, theirs)), strict=True):
        torch.testing.assert_close(mine, own, **FLOAT32)


@pytest.mark.parametrize("shared", [False, True])
def test_packed_attention_against_scaled_dot_product_of_each_text(shared):
    lengths = [8, 7, 4, 8]  # the first two go together, the others alone
    q, k, v = (t.detach()[:1].requires_grad_() for t in heads(sum(lengths)))
    segments = torch.tensor(
        [[0, 1, 1, 1, 2, 2, 2, 2], [0, 0, 1, 1, 1, 2, 2, 3], [1, 1, 2, 2] + [3] * 4, [1] * 8]
    )
    groups = pack(lengths, segments if shared else None, q.dtype)
    assert [group.tokens for group in groups] == [15, 4, 8]
    ours, _ = attention(nn.Module(), q, k, v, None, scaling=0.3, packed=groups)
    texts, theirs = zip(*(t.split(lengths, dim=2) for t in (q, k, v)), strict=True), []
    for text, row, length in zip(texts, segments, lengths, strict=True):
        bias = shared_prompt_bias(row[None, :length], q.dtype) if shared else causal_bias(length, q.dtype)
        theirs.append(F.scaled_dot_product_attention(*text, attn_mask=bias, scale=0.3, enable_gqa=True))
    expected = torch.cat(theirs, dim=2).transpose(1, 2)
    torch.testing.assert_close(ours, expected, **FLOAT32)
    pull = normal(*ours.shape, seed=7)
    for mine, own in zip(*(torch.autograd.grad(o, (q, k, v), pull) for o in (ours, expected)), strict=True):
        torch.testing.assert_close(mine, own, **FLOAT32)


ROWS = torch.tensor(
    [[0, 0, 0, 1, 1, 2, 2, 9], [1, 1, 2, 2, 2, 2, 9, 9], [0, 1, 1, 1, 1, 1, 1, 1], [0, 0, 9, 9, 9, 9, 9, 9]]
)
"""A prompt and two answers, two answers without a prompt, one answer, a prompt alone; 9 is padding."""
LENGTHS = [7, 6, 8, 2]


@pytest.mark.parametrize("shared", [False, True])
def test_varlen_says_what_the_dense_mask_says(shared):
    """Its numbers taken literally: query i of a text of n queries and m keys sees the first m - n + i + 1 keys."""
    texts = varlen(LENGTHS, ROWS if shared else None)
    total = sum(LENGTHS)
    places = torch.arange(total) if texts.places is None else texts.places
    seen = torch.zeros(total, total, dtype=torch.bool)
    for start, end, first, last in zip(
        texts.queries[:-1], texts.queries[1:], texts.keys[:-1], texts.keys[1:], strict=True
    ):
        for query in range(start, end):
            keys = places[first : last - (end - 1 - query)]
            assert len(keys.unique()) == len(keys)
            seen[query, keys] = True
    dense = [
        (shared_prompt_bias(row[None, :n], torch.float32)[0, 0] if shared else causal_bias(n, torch.float32))
        == 0
        for row, n in zip(ROWS, LENGTHS, strict=True)
    ]
    assert torch.equal(seen, torch.block_diag(*dense).bool())
    assert texts.queries.dtype == texts.keys.dtype == torch.int32
    assert (texts.longest_query, texts.longest_key) == tuple(
        int(ends.diff().max()) for ends in (texts.queries, texts.keys)
    )


def test_varlen_by_hand():
    texts = varlen([7], ROWS[:1])
    assert texts.queries.tolist() == [0, 5, 7] and texts.keys.tolist() == [0, 5, 10]
    assert texts.places is not None and texts.places.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 5, 6]
    assert varlen([3, 1]).queries.tolist() == [0, 3, 4] and varlen([3, 1]).places is None


@pytest.mark.parametrize("shared", [False, True])
def test_varlen_attention_against_scaled_dot_product_of_each_row(shared):
    q, k, v = (t.detach()[:1].requires_grad_() for t in heads(sum(LENGTHS)))
    texts = varlen(LENGTHS, ROWS if shared else None)
    ours, _ = attention(nn.Module(), q, k, v, None, scaling=0.3, packed=texts)
    rows, theirs = zip(*(t.split(LENGTHS, dim=2) for t in (q, k, v)), strict=True), []
    for row, segments, length in zip(rows, ROWS, LENGTHS, strict=True):
        bias = (
            shared_prompt_bias(segments[None, :length], q.dtype) if shared else causal_bias(length, q.dtype)
        )
        theirs.append(F.scaled_dot_product_attention(*row, attn_mask=bias, scale=0.3, enable_gqa=True))
    expected = torch.cat(theirs, dim=2).transpose(1, 2)
    torch.testing.assert_close(ours, expected, **FLOAT32)
    pull = normal(*ours.shape, seed=7)
    for mine, own in zip(*(torch.autograd.grad(o, (q, k, v), pull) for o in (ours, expected)), strict=True):
        torch.testing.assert_close(mine, own, **FLOAT32)


def test_attention_in_bfloat16_is_as_near_the_truth_as_eager():
    q, k, v = heads(50, torch.bfloat16)
    exact = F.scaled_dot_product_attention(
        q.double(), k.double(), v.double(), is_causal=True, enable_gqa=True
    ).transpose(1, 2)
    ours, _ = attention(nn.Module(), q, k, v, None)
    assert (ours.double() - exact).norm() / exact.norm() < 3 * 2**-9  # scores, weights and output are rounded


def test_long_rows_and_half_rows_are_left_to_sdpa():
    q, k, v = (t.detach() for t in heads(LONGEST + 1))
    module = nn.Module()
    module.num_key_value_groups = 3  # how transformers' layers say it
    for queries in (q, q[:, :, -1:]):
        ours, _ = attention(module, queries, k, v, None)
        theirs = F.scaled_dot_product_attention(
            queries, k, v, is_causal=queries.shape[2] > 1, enable_gqa=True
        ).transpose(1, 2)
        assert torch.equal(ours, theirs)


def test_shared_prompt_bias_by_hand():
    bias = shared_prompt_bias(torch.tensor([[0, 1, 2, 2]]), torch.float32)
    seen = (bias == 0)[0, 0].int().tolist()
    assert seen == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 1, 1]]
    assert torch.equal(
        shared_prompt_bias(torch.ones(1, 5), torch.float32)[0, 0], causal_bias(5, torch.float32)
    )


@pytest.mark.parametrize("forms", [CPU, CUDA])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rms_norm_against_transformers(dtype, forms, monkeypatch):
    monkeypatch.setitem(FORMS, "cpu", forms)

    def make() -> LlamaRMSNorm:
        norm = LlamaRMSNorm(24).to(dtype).requires_grad_(False)
        norm.weight.copy_(normal(24, seed=1))
        return norm

    theirs, ours = make(), make()
    fuse_norms(ours)
    pull, outcome = normal(5, 24, seed=2, dtype=dtype), []
    for norm in (ours, theirs):
        x = normal(5, 24, seed=3, dtype=dtype).requires_grad_()
        y = norm(x)
        y.backward(pull)
        outcome.append((y.detach(), x.grad))
    close = FLOAT32 if dtype is torch.float32 else {"atol": 2**-7, "rtol": 2**-7}  # two roundings to 8 bits
    for mine, own in zip(*outcome, strict=True):
        torch.testing.assert_close(mine, own, **close)


def test_a_norm_that_trains_is_left_alone():
    norm = LlamaRMSNorm(8)
    fuse_norms(norm)
    norm(normal(2, 8, seed=1)).sum().backward()
    assert norm.weight.grad is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mlp_against_transformers(dtype):
    theirs, ours = (LlamaMLP(LlamaConfig(hidden_size=32, intermediate_size=40)) for _ in "ab")
    ours.load_state_dict(theirs.state_dict())
    fuse_mlps(ours)
    pull, outcome = normal(5, 32, seed=2, dtype=dtype), []
    for mlp in (ours.to(dtype), theirs.to(dtype)):
        x = normal(5, 32, seed=3, dtype=dtype).requires_grad_()
        y = mlp(x)
        y.backward(pull)
        outcome.append((y.detach(), x.grad, *(p.grad for p in mlp.parameters())))
    for mine, own in zip(*outcome, strict=True):
        assert torch.equal(mine, own)  # the same operations, one of them twice


def test_an_mlp_of_another_formula_is_left_alone():
    mlp = LlamaMLP(LlamaConfig(hidden_size=32, intermediate_size=16, hidden_act="gelu"))
    x = normal(2, 32, seed=1)
    before = mlp(x)
    fuse_mlps(mlp)
    assert torch.equal(mlp(x), before)

"""Small random bases of any architecture that transformers builds from a config, saved as a user's folder would be."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from paft.config import DType, LocalModel
from paft.model.base import byte_tokenizer

# fmt: off
SIZES: dict[str, Any] = dict(
    hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
    head_dim=16, max_position_embeddings=512, bos_token_id=0, eos_token_id=0, pad_token_id=0, is_decoder=True,
    n_embd=64, n_layer=3, n_head=4, n_positions=512, n_ctx=512, n_inner=128, d_model=64, decoder_layers=2,
    encoder_layers=1, decoder_attention_heads=4, decoder_ffn_dim=128, ffn_dim=128, num_layers=3, num_heads=4,
    attention_heads=4, embedding_dim=64, word_embed_proj_dim=64, rotary_dim=8, ffn_hidden_size=128,
    moe_intermediate_size=32, num_experts=4, n_routed_experts=4, num_local_experts=4, num_experts_per_tok=2,
    n_shared_experts=1, shared_expert_intermediate_size=32, n_group=1, topk_group=1,
    q_lora_rank=16, kv_lora_rank=16, qk_nope_head_dim=16, qk_rope_head_dim=16, v_head_dim=16, first_k_dense_replace=1,
    mamba_n_heads=8, mamba_d_head=16, mamba_num_heads=8, mamba_head_dim=16, mamba_n_groups=1, mamba_d_state=8,
    mamba_d_ssm=128, n_groups=1, ssm_state_size=8, state_size=8, expand=2, lru_width=64, attention_window_size=16,
    linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=16, linear_value_head_dim=16,
)
# fmt: on


def small_config(kind: str, **settings: Any) -> Any:
    """A configuration of `kind` with those of `SIZES` that it knows."""
    known = CONFIG_MAPPING[kind]
    keys = set(known().to_dict()) | set(known.attribute_map)
    sizes = {k: v for k, v in (SIZES | {"vocab_size": len(byte_tokenizer())}).items() if k in keys}
    return AutoConfig.for_model(kind, **(sizes | settings))


def num_parameters(kind: str) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in AutoModelForCausalLM.from_config(small_config(kind)).parameters())


def small_model(kind: str, **settings: Any) -> PreTrainedModel:
    """A model of `kind` with weights far from their start: vectors moved, matrices three times as large."""
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(small_config(kind, **settings))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
            elif parameter.ndim == 2:
                parameter.mul_(3)
    return model


def small_base(folder: Path, kind: str, **settings: Any) -> LocalModel:
    """The same saved in `folder`, as a base of the user's."""
    small_model(kind, **settings).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return LocalModel(name=kind, path=str(folder), dtype=DType.float32)


def texts(*lengths: int, seed: int = 99) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, 250, (length,), generator=generator).tolist() for length in lengths]


@torch.no_grad()
def plain_logps(folder: Path, rows: list[list[int]]) -> list[Tensor]:
    """[T - 1] each: log-probability of every token but the first by transformers alone, one row at a time."""
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    logps = []
    for row in rows:
        ids = torch.tensor([row])
        logps.append(
            model(ids, use_cache=False).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        )
    return logps

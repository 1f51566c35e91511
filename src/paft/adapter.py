"""The LoRA backbone the three objectives share: attach, switch off, read factors, save."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Partial
from transformers import PreTrainedModel

from paft.config import LoraConfig, ModelConfig
from paft.delta import LowRank, read_adapter
from paft.layers.attention import AUTO, LONGEST, pack, shared_prompt_bias
from paft.layers.fuse import fuse
from paft.layers.lora import LoraLinear
from paft.losses import IGNORE, label_logps
from paft.quantize import is_quantized
from paft.stage import canonical

ADAPTER = "default"


class Policy(nn.Module):
    """A frozen base with one trainable LoRA; forward gives the log-probability of every label.

    With the adapter switched off it is the reference policy: no second model exists.
    """

    def __init__(self, base: PreTrainedModel, lora: LoraConfig) -> None:
        super().__init__()
        refuse_unknown_targets(base, lora.target_modules)
        peft_config = PeftLoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,  # type: ignore[arg-type]
            lora_dropout=lora.dropout,
            target_modules=lora.target_modules,
            task_type="CAUSAL_LM",
        )
        if not is_quantized(base):  # else peft's own layer for four bits
            peft_config._register_custom_module({nn.Linear: LoraLinear})
        fuse(base)
        # peft keeps the factors in float32 whatever the base's type (autocast_adapter_dtype)
        self.peft = get_peft_model(base, peft_config)
        peft_config.target_modules = sorted(lora.target_modules)  # peft made a set of it, which has no order

    @property
    def base(self) -> PreTrainedModel:
        return cast(PreTrainedModel, self.peft.get_base_model())

    def forward(
        self,
        input_ids_BT: Tensor,
        labels_BT: Tensor,
        lengths_B: Tensor,
        segments_BT: Tensor | None = None,
        positions_BT: Tensor | None = None,
    ) -> Tensor:
        """Float32 [B, T]: log-probability of each label given its past, 0 where there is none.

        `lengths_B` says where a row's padding, on the right, begins; on a CPU it is not forwarded. With
        `segments_BT` and `positions_BT` a row holds several texts that share a prompt; see `paft.training.pairs`.
        """
        if self.packs(input_ids_BT.shape[1]):
            return self._packed(input_ids_BT, labels_BT, lengths_B, segments_BT, positions_BT)
        mask = None if segments_BT is None else shared_prompt_bias(segments_BT, self.base.dtype)
        hidden_BTH = self._hidden(input_ids_BT, attention_mask=mask, position_ids=positions_BT)
        return label_logps(hidden_BTH, labels_BT, self.base.get_output_embeddings().weight)

    def _packed(
        self,
        input_ids_BT: Tensor,
        labels_BT: Tensor,
        lengths_B: Tensor,
        segments_BT: Tensor | None,
        positions_BT: Tensor | None,
    ) -> Tensor:
        """The same with the rows' real tokens end to end in one row, where each sees its own text alone."""
        places_T = torch.arange(input_ids_BT.shape[1])
        real_BT = places_T < lengths_B[:, None]
        places_BT = places_T.expand_as(real_BT) if positions_BT is None else positions_BT
        hidden_1NH = self._hidden(
            input_ids_BT[real_BT][None],
            position_ids=places_BT[real_BT][None],
            attention_mask=torch.empty(1, 1, 0, 0),  # four dimensions: transformers makes none of its own
            packed=pack(lengths_B.tolist(), segments_BT, self.base.dtype),
        )
        wanted_BT = labels_BT.masked_fill(places_T == 0, IGNORE)  # what begins a text has no past
        head_VH = self.base.get_output_embeddings().weight
        logps_1N = label_logps(hidden_1NH, wanted_BT[real_BT][None], head_VH)
        return logps_1N.new_zeros(labels_BT.shape).masked_scatter(real_BT, logps_1N)

    def _hidden(self, input_ids: Tensor, **kwargs: Any) -> Tensor:
        backbone = getattr(self.base, self.base.base_model_prefix)
        hidden: Tensor = backbone(input_ids=input_ids, use_cache=False, **kwargs).last_hidden_state
        return hidden

    def can_share_prompts(self, longest: int) -> bool:
        """Whether rows of up to `longest` tokens may hold two answers to one prompt: the attention takes a mask of
        ours, and looks back over the whole row."""
        takes_mask = self.base.config._attn_implementation in (AUTO, "sdpa", "eager")
        return takes_mask and self._sees_whole_rows(longest)

    def packs(self, longest: int) -> bool:
        """Whether rows of up to `longest` tokens go through the model end to end, without padding."""
        ours = self.base.config._attn_implementation == AUTO and self.base.device.type == "cpu"
        return ours and longest <= LONGEST and self._sees_whole_rows(longest)

    def _sees_whole_rows(self, longest: int) -> bool:
        window = getattr(self.base.config, "sliding_window", None)
        return window is None or longest <= window

    @contextmanager
    def reference(self) -> Iterator[None]:
        """The base policy: adapter off, no gradient."""
        with torch.no_grad(), self.peft.disable_adapter():
            yield

    def factors(self) -> list[tuple[Tensor, Tensor, float]]:
        """(A [r, in], B [out, r], alpha / rank) of every adapted layer, trainable; whole even if stored in shards."""
        return [(whole(A), whole(B), scaling) for A, B, scaling in self.stored_factors()]

    def own_factors(self, *, whole_A: bool = True) -> list[tuple[Tensor, Tensor, float]]:
        """As `factors`, but of sharded ones only this rank's rows of B, and of A too unless `whole_A`.

        A function that is a sum over the rows of B (or of both) is then the sum of the ranks' parts, and its
        gradients go where they belong: summed over ranks for the whole A, kept for a rank's own rows.
        """
        return [
            (_summing_over_shards(A) if whole_A else own_rows(A), own_rows(B), scaling)
            for A, B, scaling in self.stored_factors()
        ]

    def stored_factors(self) -> list[tuple[Tensor, Tensor, float]]:
        """As `factors`, but the parameters themselves, in shards where they are."""
        layers = [m for m in self.peft.modules() if isinstance(m, LoraLayer) and ADAPTER in m.lora_A]
        return [
            (
                cast(Tensor, m.lora_A[ADAPTER].weight),
                cast(Tensor, m.lora_B[ADAPTER].weight),
                m.scaling[ADAPTER],
            )
            for m in layers
        ]

    def save(self, folder: Path, fingerprints: dict[str, str]) -> None:
        """Write a standard PEFT adapter folder, plus paft.json with the base, tokenizer and template it is for.

        On several devices every rank must call it: sharded factors are gathered, and rank 0 writes.
        """
        state = {name: whole(p.detach()).cpu() for name, p in self.peft.named_parameters() if p.requires_grad}
        if dist.is_initialized() and dist.get_rank() > 0:
            return
        self.peft.save_pretrained(
            str(folder), safe_serialization=True, save_embedding_layers=False, state_dict=state
        )
        (folder / "README.md").unlink(missing_ok=True)  # peft's empty model card
        (folder / "paft.json").write_text(json.dumps(fingerprints, indent=1))


def whole(tensor: Tensor) -> Tensor:
    """The full tensor behind a sharded one; any other tensor is itself."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own_rows(tensor: Tensor) -> Tensor:
    """This rank's part of a sharded tensor; any other tensor is itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _summing_over_shards(tensor: Tensor) -> Tensor:
    """The full tensor, whose gradient is the sum of what the ranks of a shard group each send back."""
    if not isinstance(tensor, DTensor):
        return tensor
    return tensor.full_tensor(grad_placements=[Partial() if p.is_shard() else p for p in tensor.placements])


def refuse_unknown_targets(base: PreTrainedModel, target_modules: list[str]) -> None:
    """Every name must match a linear layer: a misspelt one would silently train less."""
    linear = {name.rsplit(".", 1)[-1] for name, m in base.named_modules() if isinstance(m, nn.Linear)}
    unknown = [name for name in target_modules if name not in linear]
    if unknown:
        raise ValueError(
            f"lora.target_modules {unknown} match no linear layer of {base.config.model_type}; "
            f"it has {', '.join(sorted(linear))}"
        )


@torch.no_grad()
def add_deltas(base: PreTrainedModel, folders: list[Path]) -> None:
    """Add adapters' deltas to the base's weights: in float32, cast once."""
    weights = dict(base.named_parameters())
    deltas: dict[str, list[LowRank]] = {}
    for folder in folders:
        for name, low_rank in read_adapter(folder).items():
            deltas.setdefault(name, []).append(low_rank)
    for name, parts in deltas.items():
        weight = weights[name]
        total = torch.stack([part.dense() for part in parts]).sum(0)
        weight.copy_((weight.float() + total).to(weight.dtype))


def text_fingerprint(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def load_adapter(base: PreTrainedModel, folder: Path) -> PeftModel:
    """`base` with a saved adapter on top, for inference."""
    return PeftModel.from_pretrained(base, str(folder))


def base_fingerprint(model: ModelConfig) -> str:
    """What identifies the base model in an adapter folder: its name and a hash of its configuration."""
    return f"{model.name}-{text_fingerprint(json.dumps(canonical(model.as_released()), sort_keys=True))}"

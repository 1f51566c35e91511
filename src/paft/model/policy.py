"""The LoRA backbone the three objectives share: attach, switch off, read factors, save."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, cast

import torch
import torch.distributed as dist
from peft import get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from paft.config import LoraConfig
from paft.delta.statistics import LowRank
from paft.logps import IGNORE, Head, label_logps
from paft.model.adapters import save_fingerprints
from paft.model.architecture import refuse_not_causal
from paft.model.layers.attention import end_to_end, real_places, shared_prompt_bias
from paft.model.layers.dropout import RowDropout, Rows
from paft.model.layers.fuse import fuse
from paft.model.layers.lora import LoraLinear
from paft.model.paths import can_share, outputs_of, packs, pads, paths_of
from paft.model.shards import own_rows, summing_over_shards, whole
from paft.model.targets import in_peft
from paft.private import register_lora

ADAPTER = "default"


class Policy(nn.Module):
    """A frozen base with one trainable LoRA; forward gives the log-probability of every label.

    With the adapter switched off it is the reference policy: no second model exists. In training mode the adapter's
    dropout is on and nothing of the base's own.
    """

    folder = "adapter"
    """Of a branch's stage, where what is trained is saved."""

    def __init__(self, base: PreTrainedModel, lora: LoraConfig, *, seed: int = 0) -> None:
        super().__init__()
        peft_config = in_peft(lora, base)
        register_lora(peft_config, {nn.Linear: LoraLinear})
        if paths_of(base).fused:
            fuse(base)
        # peft keeps the factors in float32 whatever the base's type (autocast_adapter_dtype)
        self.peft = get_peft_model(base, peft_config)
        peft_config.target_modules = sorted(
            peft_config.target_modules or ()
        )  # peft made an unordered set of it
        self.rows = Rows(seed)
        if lora.dropout:
            for name, layer in self._adapted():
                layer.lora_dropout[ADAPTER] = RowDropout(lora.dropout, name, self.rows)

    @property
    def base(self) -> PreTrainedModel:
        return cast(PreTrainedModel, self.peft.get_base_model())

    def train(self, mode: bool = True) -> Self:
        """Training mode for what the adapter adds. A base is frozen as it is evaluated: without its dropout."""
        super().train(False)
        self.training = mode
        for module in self.modules():
            # decoder layers recompute their activations in training mode only; no dropout is left in them
            if isinstance(module, RowDropout | GradientCheckpointingLayer):
                module.training = mode
        return self

    def forward(
        self,
        input_ids_BT: Tensor,
        labels_BT: Tensor,
        lengths_B: Tensor,
        segments_BT: Tensor | None = None,
        positions_BT: Tensor | None = None,
        columns_BT: Tensor | None = None,
    ) -> Tensor:
        """Float32 [B, T]: log-probability of each label given its past, 0 where there is none.

        `lengths_B` says where a row's padding, on the right, begins; it is not forwarded where rows are packed. With
        `segments_BT` and `positions_BT` a row holds several texts that share a prompt; see `paft.forward.pairs`,
        which also says what `columns_BT` are: the place of each token among those that dropout draws for its row.
        Lengths and segments are read on the host, where they had best lie.
        """
        refuse_not_causal(self.base.config, input_ids_BT.shape[1])
        places_T = torch.arange(input_ids_BT.shape[1], device=input_ids_BT.device)
        if columns_BT is None:
            columns_BT = places_T.expand_as(input_ids_BT)
        lengths = lengths_B.tolist()
        if self.packs(input_ids_BT.shape[1]):
            real_N = real_places(lengths, input_ids_BT.shape[1]).to(input_ids_BT.device)
            self.rows.lay_out(columns_BT, real_N)
            return self._packed(input_ids_BT, labels_BT, lengths, real_N, segments_BT, positions_BT)
        self.rows.lay_out(columns_BT)
        if segments_BT is None and not pads(self.base, input_ids_BT.shape[1]):
            return self._one_by_one(input_ids_BT, labels_BT, lengths, columns_BT)
        shared: dict[str, Any] = {}
        if segments_BT is not None:
            mask = shared_prompt_bias(segments_BT.to(input_ids_BT.device), self.base.dtype)
            shared = {"attention_mask": mask, "position_ids": positions_BT}
        outputs, head = self._outputs(input_ids_BT, **shared)
        return label_logps(outputs, labels_BT, head)

    def _one_by_one(
        self, input_ids_BT: Tensor, labels_BT: Tensor, lengths: Sequence[int], columns_BT: Tensor
    ) -> Tensor:
        """The same, each row alone and without its padding."""
        logps_BT = torch.zeros(labels_BT.shape, device=labels_BT.device)
        for i, length in enumerate(lengths):
            self.rows.lay_out(columns_BT[i : i + 1, :length], row=i)
            outputs, head = self._outputs(input_ids_BT[i : i + 1, :length])
            logps_BT[i, :length] = label_logps(outputs, labels_BT[i : i + 1, :length], head)[0]
        return logps_BT

    def _packed(
        self,
        input_ids_BT: Tensor,
        labels_BT: Tensor,
        lengths: Sequence[int],
        real_N: Tensor,
        segments_BT: Tensor | None,
        positions_BT: Tensor | None,
    ) -> Tensor:
        """The same with the rows' real tokens end to end in one row, where each sees its own text alone."""
        device = input_ids_BT.device
        places_T = torch.arange(input_ids_BT.shape[1], device=device)
        places_BT = places_T.expand_as(input_ids_BT) if positions_BT is None else positions_BT
        outputs_1NH, head = self._outputs(
            input_ids_BT.flatten()[real_N][None],
            position_ids=places_BT.flatten()[real_N][None],
            # four dimensions: transformers makes none of its own
            attention_mask=torch.empty(1, 1, 0, 0, device=device),
            packed=end_to_end(lengths, segments_BT, self.base.dtype, device),
        )
        wanted_BT = labels_BT.masked_fill(places_T == 0, IGNORE)  # what begins a text has no past
        logps_1N = label_logps(outputs_1NH, wanted_BT.flatten()[real_N][None], head)
        return logps_1N.new_zeros(labels_BT.numel()).index_copy(0, real_N, logps_1N[0]).view_as(labels_BT)

    def _outputs(self, input_ids: Tensor, **kwargs: Any) -> tuple[Tensor, Head | None]:
        return outputs_of(self.base, input_ids=input_ids, use_cache=False, **kwargs)

    def can_share_prompts(self, longest: int) -> bool:
        """See `paft.model.paths.can_share`."""
        return can_share(self.base, longest)

    def packs(self, longest: int) -> bool:
        """See `paft.model.paths.packs`."""
        return packs(self.base, longest)

    @contextmanager
    def reference(self) -> Iterator[None]:
        """The base policy: adapter off, no gradient."""
        with torch.no_grad(), self.peft.disable_adapter():
            yield

    def factors(self) -> list[LowRank]:
        """(A [r, in], B [out, r], scaling) of every adapted layer, trainable; whole even if stored in shards."""
        return [LowRank(whole(A), whole(B), scaling) for A, B, scaling in self.stored_factors()]

    def own_factors(self, *, whole_A: bool = True) -> list[LowRank]:
        """As `factors`, but of sharded ones only this rank's rows of B, and of A too unless `whole_A`.

        A function that is a sum over the rows of B (or of both) is then the sum of the ranks' parts, and its
        gradients go where they belong: summed over ranks for the whole A, kept for a rank's own rows.
        """
        return [
            LowRank(summing_over_shards(A) if whole_A else own_rows(A), own_rows(B), scaling)
            for A, B, scaling in self.stored_factors()
        ]

    def stored_factors(self) -> list[LowRank]:
        """As `factors`, but the parameters themselves, in shards where they are."""
        layers: list[Any] = [layer for _, layer in self._adapted()]
        return [
            LowRank(m.lora_A[ADAPTER].weight, m.lora_B[ADAPTER].weight, m.scaling[ADAPTER]) for m in layers
        ]

    def deltas(self) -> Iterable[LowRank | Tensor]:
        """What is added to each weight, whole: a product of factors, or a float32 matrix."""
        return self.factors()

    def stored_deltas(self) -> Sequence[LowRank | Tensor]:
        """The same of the parameters themselves, in shards where they are."""
        return self.stored_factors()

    def own_deltas(self, *, whole_A: bool = True) -> Sequence[LowRank | Tensor]:
        """As `own_factors`; of matrices this rank's rows."""
        return self.own_factors(whole_A=whole_A)

    def hold_base(self) -> None:
        """Called once, when every parameter is where it stays."""

    def follow(self) -> None:
        """Called when the trained parameters have moved: what is made of them follows; here nothing is."""

    def _adapted(self) -> list[tuple[str, LoraLayer]]:
        """The adapted layers under the base's names."""
        layers = self.base.named_modules()
        return [(name, m) for name, m in layers if isinstance(m, LoraLayer) and ADAPTER in m.lora_A]

    def adapted_weights(self) -> list[str]:
        """Names of the adapted weights in the base."""
        return [f"{name}.weight" for name, _ in self._adapted()]

    def refuse_untouched(self) -> None:
        """After a backward pass: raise `ValueError` where the model reads a layer's weight but never calls it, so that
        an adapter there would stay at zero. Single experts may be left out of a batch; all layers of a name may not."""
        touched: dict[str, bool] = {}
        for name, layer in self._adapted():
            kind, factor = name.rpartition(".")[2], cast(Tensor, layer.lora_B[ADAPTER].weight)
            touched[kind] = touched.get(kind, False) or factor.grad is not None
        if unused := [kind for kind, used in touched.items() if not used]:
            raise ValueError(
                f"lora.target_modules {unused} get no gradient: {self.base.config.model_type} never calls these layers "
                "as they are. Leave them out of lora.target_modules"
            )

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
        save_fingerprints(folder, fingerprints)


class FrozenPolicy(Policy):
    """A base without an adapter: the reference policy itself."""

    def __init__(self, base: PreTrainedModel) -> None:
        nn.Module.__init__(self)
        if paths_of(base).fused:
            fuse(base)
        self.frozen = base
        self.rows = Rows(0)

    @property
    def base(self) -> PreTrainedModel:
        return self.frozen

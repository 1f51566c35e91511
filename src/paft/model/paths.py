"""Which of PAFT's fast paths a base takes: each only where it gives the base's own result (`paft.proof`)."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from paft.device import Packing, forms_on
from paft.logps import Head
from paft.model.architecture import same_positions, sees_whole_rows
from paft.model.layers.attention import AUTO, LONGEST
from paft.private import attention_of


@dataclass(frozen=True)
class HeadForm:
    """How a base makes logits of its output head's: see `paft.logps.Head`."""

    scale: float = 1.0
    cap: float | None = None


@dataclass(frozen=True)
class FastPaths:
    """How a base is run. The defaults are the plain way: transformers' own forward, one row at a time."""

    attention: str = "eager"
    """transformers' `attn_implementation`."""
    fused: bool = False
    """Known norms and gated MLPs as one autograd node each."""
    head: HeadForm | None = None
    """Logits from the last hidden states, a block of tokens at a time; None: whole, by the base's own forward."""
    padded: bool = False
    """Rows of unlike length in one batch, padding on the right and no mask."""
    packed: bool = False
    """Rows end to end in one, where `packs` allows it."""
    shared: bool = False
    """Texts that begin alike share their beginning under a mask of ours, where `can_share` allows it."""
    trunks: bool = False
    """Keys and values of a shared beginning are kept for many texts, in evaluation."""
    generated: bool = False
    """Rows of unlike length in one batch of generation, padding on the left."""


PLAIN = FastPaths()


def take(base: PreTrainedModel, paths: FastPaths) -> PreTrainedModel:
    """Note on the base which paths it takes; it must have been loaded with `paths.attention`."""
    base.paft_paths = paths  # type: ignore[assignment]
    return base


def paths_of(base: nn.Module) -> FastPaths:
    """What `take` noted; the plain way for a model that was not loaded by `paft.model.base.load_base`."""
    return getattr(base, "paft_paths", PLAIN)


def head_of(base: PreTrainedModel) -> Head | None:
    """The output head to be applied to the last hidden states; None where the base makes its own logits."""
    form, head = paths_of(base).head, base.get_output_embeddings()
    if (
        form is None or type(head) is not nn.Linear
    ):  # an adapter on the head is part of the model's own forward
        return None
    return Head(head.weight, head.bias, form.scale, form.cap)


def can_share(base: PreTrainedModel, longest: int) -> bool:
    """Whether texts of up to `longest` tokens may share what they begin with, under a mask of ours."""
    takes_mask = attention_of(base) in (AUTO, "sdpa", "eager")
    return takes_mask and paths_of(base).shared and _mix(base, longest)


def packs(base: PreTrainedModel, longest: int) -> bool:
    """Whether texts of up to `longest` tokens go through the model end to end, without padding."""
    grouped = forms_on(base.device.type).packing is Packing.groups
    short = longest <= LONGEST or not grouped
    return attention_of(base) == AUTO and short and paths_of(base).packed and _mix(base, longest)


def pads(base: PreTrainedModel, longest: int) -> bool:
    """Whether texts of up to `longest` tokens make one batch, padded on the right."""
    return paths_of(base).padded and longest <= same_positions(base.config)


def _mix(base: PreTrainedModel, longest: int) -> bool:
    return sees_whole_rows(base.config, longest) and longest <= same_positions(base.config)


def outputs_of(base: PreTrainedModel, **inputs: Any) -> tuple[Tensor, Head | None]:
    """(last hidden states, the head they are for), or (logits, None) of a base that makes its own."""
    head = head_of(base)
    return (base(**inputs).logits, None) if head is None else (last_hidden(base, **inputs), head)


def last_hidden(base: PreTrainedModel, **inputs: Any) -> Tensor:
    """[B, T, H] of the base without its head."""
    hidden: Tensor = getattr(base, base.base_model_prefix)(**inputs).last_hidden_state
    return hidden

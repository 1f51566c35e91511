"""Which form of the arithmetic applies on which kind of device: said here alone, and asked everywhere else.

Forms of one thing give the same result up to rounding; tests hold each of CUDA's, or its twin on a CPU, to the CPU's.
Loads no torch.
"""

from dataclasses import dataclass
from enum import Enum


class Packing(Enum):
    """How the texts of a packed row attend each to itself alone."""

    groups = "groups"
    """Texts of like length in one product of matrices, for rows of up to `paft.model.layers.attention.LONGEST`."""
    varlen = "varlen"
    """One kernel that is told where each text begins, for rows of any length."""


@dataclass(frozen=True)
class Forms:
    """What applies on one kind of device."""

    head_block: int
    """Tokens whose vocabulary-sized logits exist at once while log-probabilities are formed."""
    softmax_rows: int
    """Of these, how many go through the softmax together: on a CPU their float32 copy stays in its cache."""
    delta_rows: int
    """Rows of a delta that exist at once where all its values are asked for."""
    packing: Packing
    fused_adamw: bool
    """One kernel for all parameters' steps."""
    own_norm: bool
    """RMSNorm as PAFT's node, else as PyTorch's function, which is one kernel where it is fused."""


CPU = Forms(
    head_block=512,
    softmax_rows=16,
    delta_rows=512,
    packing=Packing.groups,
    fused_adamw=False,
    own_norm=True,
)
CUDA = Forms(
    head_block=2048,
    softmax_rows=2048,
    delta_rows=32_768,  # whole matrices, but for a vocabulary's: a launch for 512 rows takes longer than its product
    packing=Packing.varlen,
    fused_adamw=True,
    own_norm=False,
)
FORMS = {"cpu": CPU, "cuda": CUDA}


def forms_on(kind: str) -> Forms:
    """Of a `torch.device.type`; a kind that nobody has written for is taken for a CPU."""
    return FORMS.get(kind, CPU)

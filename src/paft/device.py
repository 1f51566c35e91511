"""Which form of the arithmetic applies on which kind of device: said here alone, and asked everywhere else.

Forms of one thing give the same result up to rounding; tests hold each of CUDA's, or its twin on a CPU, to the CPU's.
Loads no torch.
"""

from dataclasses import dataclass
from enum import Enum
from functools import cache
from pathlib import Path


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


WIDE = ("avx512bw", "avx512vl", "avx512dq"), ("avx_ne_convert", "avx_vnni", "avx_vnni_int8"), ("bf16",)
"""What a processor must have, all of one line: oneDNN multiplies bfloat16 matrices with it (x86, newer x86, Arm)."""


def computed_in(dtype: str, kind: str) -> str:
    """The type that a model stored as `dtype` is loaded in, and multiplied in, on a kind of device: its own, but
    `float32` for `bfloat16` on a processor that has no such products.

    PyTorch's own take a hundred times as long there. Every bfloat16 number is a float32 number, so that no weight
    changes; activations are rounded less, and the model takes twice the memory.
    """
    return "float32" if (dtype, kind) == ("bfloat16", "cpu") and not multiplies_bfloat16() else dtype


@cache
def multiplies_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this processor has fast bfloat16 products; False where the system does not say."""
    try:
        first = cpuinfo.read_text().split("\n\n", 1)[0]
    except OSError:
        return False
    told = [line.split(":", 1)[1] for line in first.splitlines() if line.startswith(("flags", "Features"))]
    return any({*needed} <= {*" ".join(told).split()} for needed in WIDE)

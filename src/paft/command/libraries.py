"""What is said and loaded before the libraries of some stages run."""

import logging
from collections.abc import Iterable

from paft.config import Quantization
from paft.graph.stage import Stage


def in_four_bits(stages: Iterable[Stage]) -> bool:
    """Whether one of them trains on a base in four bits."""
    return any(stage.config.model.quantization is Quantization.nf4 for stage in stages)


def quiet_libraries(stages: Iterable[Stage]) -> None:
    """Before libraries are imported: what they say of themselves, and no user of these stages can act on.

    peft and lm-eval import bitsandbytes wherever it is installed; its advice is for bases in four bits.
    """
    logging.getLogger("bitsandbytes").setLevel(logging.NOTSET if in_four_bits(stages) else logging.CRITICAL)
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    logging.getLogger("matplotlib.font_manager").setLevel(logging.WARNING)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # each of its attempts to reach the hub

"""Where the versions of libraries that PAFT works with differ: torch 2.11 to 2.15, transformers 5.17 to the last 5.

Each difference is one function, which asks the library for the newer form and takes the older one without it. All else
that PAFT takes of them has the same name and meaning throughout. Libraries load when a function is called.
"""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def recompute_layers(base: "PreTrainedModel") -> None:
    """Gradient checkpointing of every layer; transformers renamed what switches it on."""
    enable = getattr(base, "activation_checkpointing_enable", None) or base.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def marker() -> Callable[[Any, re.Pattern[str]], Any]:
    """What puts marks around the special tokens in a text, or in texts in lists and objects, so that they are read as
    text. Raises `ValueError` where transformers does not know of such marks."""
    try:
        from transformers.utils.chat_template_utils import mark_control_tokens
    except ImportError:
        from transformers import __version__

        raise ValueError(
            f"special_tokens_in_text=text needs a transformers that can read special tokens as text, as 5.23 does, got "
            f"{__version__}; install it, or set special_tokens_in_text=error or token"
        ) from None
    return mark_control_tokens

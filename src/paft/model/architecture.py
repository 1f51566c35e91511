"""What is known of a base from its configuration alone, and of the families whose layers have a form of ours.

A base that is in no table here works as well, the plain way: what it takes of ours is proved (`paft.proof`).
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from paft.config import ModelConfig
from paft.files.jsonfile import read_object


@dataclass(frozen=True)
class Family:
    """transformers' classes of one family of models that compute what ours do."""

    norm: str
    """weight * (x / rms(x)), rounded before the weight is applied."""
    mlp: str
    """down(act(gate(x)) * up(x))."""


FAMILIES = (
    Family("LlamaRMSNorm", "LlamaMLP"),
    Family("MistralRMSNorm", "MistralMLP"),
    Family("Qwen2RMSNorm", "Qwen2MLP"),
    Family("Qwen3RMSNorm", "Qwen3MLP"),
)
PICKED = re.compile(r"^(index_topk|keep_window_size)$")
"""Settings of attention that looks at so many keys of its choice."""
LAYER_KINDS = ("layer_types", "layers_block_type", "attention_layers", "block_types")
"""Where configurations list what each layer is."""
LOOK_BACK = {"full_attention", "sliding_attention", "chunked_attention", "attention", "global", "local"}
WINDOW = re.compile(r"^(?!.*(layers|pattern|experts|feed_forward)).*(window|chunk|local|index_topk)")
"""Settings that may bound how far a layer looks back; one that means something else costs speed and nothing more."""


def require_known(folder: Path, config: ModelConfig) -> Path:
    """The folder. Raises `ValueError` for a model that transformers knows no causal language model of."""
    settings = read_object(folder / "config.json")
    name, own = settings.get("model_type"), settings.get("auto_map") or {}
    if name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or (
        config.trust_remote_code and "AutoModelForCausalLM" in own
    ):
        return folder
    brings = " It brings Python code of its own: model.trust_remote_code=true runs it." if own else ""
    raise ValueError(
        f"{folder}/config.json has model_type={name!r:.60}, of which transformers {transformers.__version__} knows no "
        f"causal language model; choose another base, or a version of transformers that knows it.{brings}"
    )


def sees_whole_rows(config: Any, longest: int) -> bool:
    """Whether every layer of a model looks back over all of a text of `longest` tokens, and by attention alone.

    Only then may texts share a forward pass: lie end to end in one row, or share what they begin with. A window
    shorter than the text would count from another text's tokens; convolutions, recurrences and linear attention
    carry their state into the next text.
    """
    text = config.get_text_config(decoder=True)
    kinds = {str(kind) for name in LAYER_KINDS for kind in (getattr(text, name, None) or ())}
    limits = [v for k, v in vars(text).items() if WINDOW.search(k) and type(v) is int and v > 0]
    if getattr(
        text, "attn_temperature_tuning", False
    ):  # Llama 4 scales queries by their column, not their position
        return False
    return kinds <= LOOK_BACK and longest <= min(limits, default=longest)


def same_positions(config: Any) -> float:
    """Tokens up to which the rotary embedding of a text does not depend on the longest text of its batch.

    `longrope` (Phi-3 of 128k) and `dynamic` take other frequencies for all of a batch in which one text is longer.
    """
    text = config.get_text_config(decoder=True)
    given = getattr(text, "rope_parameters", None) or {}
    ropes = [
        given,
        *(rope for rope in given.values() if isinstance(rope, dict)),
    ]  # some have one for each kind
    if not any(rope.get("rope_type") in ("longrope", "dynamic") for rope in ropes):
        return math.inf
    settings = [*ropes, vars(text)]
    firsts = [first for s in settings if (first := s.get("original_max_position_embeddings"))]
    return float(min(firsts, default=text.max_position_embeddings))


def refuse_not_causal(config: Any, longest: int) -> None:
    """Raise `ValueError` for a text longer than an attention that picks its keys, or blocks of them, can take whole.

    In transformers' forms of it the choice looks at later tokens too (DeepSeek's indexer, Doge, BigBird).
    """
    text = config.get_text_config(decoder=True)
    limits = [v for k, v in vars(text).items() if PICKED.search(k) and type(v) is int and v > 0]
    if getattr(text, "attention_type", None) == "block_sparse":
        limits.append((5 + 2 * text.num_random_blocks) * text.block_size)
    if blocks := getattr(text, "index_topk_blocks", None):
        limits.append(blocks * text.index_block_size)
    if limits and longest > min(limits):
        raise ValueError(
            f"{text.model_type} is causal up to {min(limits)} tokens only, where its attention begins to pick its "
            f"keys, got {longest}; set data.sft.max_length and data.preference.max_length, or leave the task out"
        )

"""What a base model can be given: token ids that its embedding holds, and as many of them as it has positions."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from paft.config import Source
from paft.files.jsonfile import read_object

log = logging.getLogger("paft")

POSITIONS = ("max_position_embeddings", "n_positions", "max_target_positions", "max_seq_len", "n_ctx")
"""What architectures call the longest text they were made for."""
OFFSET = ("roberta", "xlm-roberta", "camembert", "data2vec-text", "xmod")
"""Architectures whose first position is behind that of their padding token."""


def refuse_tokens_without_embedding(vocabulary: Mapping[str, int], folder: Path) -> None:
    """Raise `ValueError` if a tokenizer's vocabulary has a token for which the model in `folder` has no embedding.

    An embedding with more rows than there are tokens is none of that. Nothing is said of a folder without
    config.json.
    """
    rows = embedding_rows(folder)
    token, largest = max(vocabulary.items(), key=lambda item: item[1])
    if rows is not None and largest >= rows:
        raise ValueError(
            f"the tokenizer for {folder} has the token {token!r} of id {largest}, but the model's embedding has "
            f"{rows} rows (vocab_size in config.json); remove the added tokens from the tokenizer, or save the model "
            f"after model.resize_token_embeddings({largest + 1})"
        )


def embedding_rows(folder: Path) -> int | None:
    """How many ids the model in `folder` has embeddings for, by its config.json; None where that does not say."""
    rows = _settings(folder).get("vocab_size")
    return rows if isinstance(rows, int) else None


def max_positions(folder: Path) -> int | None:
    """The longest text in tokens that the model in `folder` was made for; None where it has no such limit."""
    settings = _with_defaults(folder)
    declared = (settings[name] for name in POSITIONS if isinstance(settings.get(name), int))
    positions = next((positions for positions in declared if positions > 1), None)
    if positions is not None and str(settings.get("model_type")).startswith(OFFSET):
        return positions - (settings.get("pad_token_id") or 0) - 1
    return positions


def within(source: Source, positions: int | None) -> Source:
    """The source with rows of at most `positions` tokens: longer ones are cut or refused as `too_long` says."""
    if positions is None or source.max_length <= positions:
        return source
    log.warning(
        "max_length=%d is more than the %d positions of the model: rows may have %d tokens",
        source.max_length, positions, positions,
    )  # fmt: skip
    return replace(
        source, max_length=positions, max_prompt_length=min(source.max_prompt_length, positions - 1)
    )


def _with_defaults(folder: Path) -> dict[str, Any]:
    """config.json with what its architecture takes for granted, where transformers knows it."""
    from transformers import CONFIG_MAPPING

    settings = _settings(folder)
    kind = str(settings.get("model_type"))
    if kind not in CONFIG_MAPPING:
        return settings
    usual = CONFIG_MAPPING[kind]()
    return usual.to_dict() | usual.get_text_config(decoder=True).to_dict() | settings


def _settings(folder: Path) -> dict[str, Any]:
    """config.json, of the language model alone where there are several."""
    path = folder / "config.json"
    settings = read_object(path) if path.is_file() else {}
    return settings | (settings.get("text_config") or {})

"""What makes a folder of weights stand alone: the tokenizer with the template that was trained, and where answers end.

Importing this module loads neither torch nor transformers: `python -m paft.merge` copies what the adapters brought.
"""

import shutil
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paft.data.chat_template import stop_ids, with_bos
from paft.store.jsonfile import read_object, write_json
from paft.store.replacing import replacing

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

GENERATION, TEMPLATE = "generation_config.json", "chat_template.jinja"
TOKENIZER_FILES = (
    "tokenizer*", TEMPLATE, "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt",
    "merges.txt", "*.model", "*.tiktoken", "tokenization_*.py",
)  # fmt: skip


def write_tokenizer(tokenizer: "PreTrainedTokenizerBase", base: Path, folder: Path) -> None:
    """Write the tokenizer with its chat template, and the base's generation_config with every end of an answer.

    With them alone transformers reads a chat, and ends an answer, as training and evaluation do.
    """
    tokenizer.save_pretrained(str(folder))
    (folder / TEMPLATE).write_text(with_bos(tokenizer), encoding="utf-8")
    write_json(folder / GENERATION, _generation_config(base, stop_ids(tokenizer)))


def _generation_config(base: Path, ends: list[int]) -> dict[str, Any]:
    """The base's settings, or what transformers takes from its config.json where it has none."""
    if (base / GENERATION).is_file():
        settings = read_object(base / GENERATION)
    else:
        config = read_object(base / "config.json")
        config |= config.get("text_config") or {}
        names = ("bos_token_id", "eos_token_id", "pad_token_id")
        settings = {name: config[name] for name in names if config.get(name) is not None}
    settings.pop("_from_model_config", None)  # which lets older transformers read config.json in its place
    own = settings.get("eos_token_id")
    found = sorted({*(own if isinstance(own, list) else [own]), *ends} - {None})
    return settings | {"eos_token_id": found[0] if len(found) == 1 else found}


def brought_tokenizer(adapters: Iterable[Path]) -> Path | None:
    """The adapter folder whose tokenizer goes out with a merge of them; None if none has a chat template.

    Raises `ValueError` where two have different ones: one model answers in one template.
    """
    templates = [(folder, text) for folder in adapters if (text := _template(folder)) is not None]
    for (a, first), (b, second) in pairwise(templates):
        if first != second:
            raise ValueError(
                f"{a} and {b} were trained with different chat templates, so no merge of them answers in "
                "either; train both with one, or remove the tokenizer files from the one that is not to be used"
            )
    return templates[0][0] if templates else None


def copy_tokenizer(source: Path, out: Path) -> None:
    """The tokenizer and generation_config of one folder in place of those of another."""
    (out / TEMPLATE).unlink(missing_ok=True)  # it would be read before a template in tokenizer_config.json
    files = {path for pattern in (*TOKENIZER_FILES, GENERATION) for path in source.glob(pattern)}
    for path in sorted(path for path in files if path.is_file()):
        with path.open("rb") as read, replacing(out / path.name) as written:
            shutil.copyfileobj(read, written)


def _template(folder: Path) -> Any:
    """The chat template of a folder with a tokenizer, as transformers finds it."""
    if (folder / TEMPLATE).is_file():
        return (folder / TEMPLATE).read_text(encoding="utf-8")
    config = folder / "tokenizer_config.json"
    return read_object(config).get("chat_template") if config.is_file() else None

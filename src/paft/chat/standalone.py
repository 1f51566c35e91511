"""What makes a folder of weights stand alone: the tokenizer with the template that was trained, and where answers end.

Importing this module loads neither torch nor transformers: `python -m paft.merge` copies what the adapters brought.
"""

import logging
import shutil
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paft.chat.limits import refuse_tokens_without_embedding
from paft.chat.proof import reads_alike
from paft.chat.template import stop_ids, with_bos
from paft.chat.vocabulary import vocabulary_of
from paft.files.jsonfile import read_object, write_json
from paft.files.replacing import replacing

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger("paft")

GENERATION, TEMPLATE, CONFIG = "generation_config.json", "chat_template.jinja", "tokenizer_config.json"
TOKENIZER_FILES = (
    "tokenizer*", TEMPLATE, "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt",
    "merges.txt", "*.model", "*.tiktoken", "tokenization_*.py",
)  # fmt: skip


def write_tokenizer(
    tokenizer: "PreTrainedTokenizerBase", base: Path, folder: Path, *, trust_remote_code: bool = False
) -> None:
    """Write the base's tokenizer with the template of `tokenizer`, and generation_config with every end of an answer.

    With them alone transformers reads a chat, and ends an answer, as training and evaluation do. Files are the base's
    own: what transformers saves of a tokenizer is not always read as it was (the `legacy` of Llama's is lost). Where a
    folder without config.json would be read otherwise too, no tokenizer is left in it, and a warning says so.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / GENERATION, _generation_config(base, stop_ids(tokenizer)))
    copy_files(base, folder, TOKENIZER_FILES)
    (folder / TEMPLATE).write_text(with_bos(tokenizer), encoding="utf-8")
    settings = _tokenizer_config(base, tokenizer)
    kinds = dict.fromkeys((settings.get("tokenizer_class"), type(tokenizer).__name__))
    for kind in (kind for kind in kinds if kind):
        write_json(folder / CONFIG, settings | {"tokenizer_class": kind})
        if reads_alike(tokenizer, folder, trust_remote_code=trust_remote_code):
            return
    log.warning(
        "transformers reads the tokenizer of %s otherwise without its config.json: not in %s", base, folder
    )
    for path in _files(folder, TOKENIZER_FILES):
        path.unlink()


def _tokenizer_config(base: Path, tokenizer: "PreTrainedTokenizerBase") -> dict[str, Any]:
    """The base's, without a chat template and with the special tokens that the tokenizer was given."""
    settings = read_object(base / CONFIG) if (base / CONFIG).is_file() else {}
    settings.pop("chat_template", None)
    given = {
        name: str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)
    }
    return settings | {name: token for name, token in given.items() if settings.get(name) is None}


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
    eos = settings.get("eos_token_id")
    ids = sorted({*(eos if isinstance(eos, list) else [eos]), *ends} - {None})
    return settings | {"eos_token_id": ids[0] if len(ids) == 1 else ids}


def brought_tokenizer(adapters: Iterable[Path], base: Path) -> Path | None:
    """`tokenizer_folder` of adapters from anywhere. Raises `ValueError` also for a tokenizer larger than the embedding
    of `base`."""
    brought = tokenizer_folder(adapters)
    if brought is not None and (brought / "tokenizer.json").is_file():
        refuse_tokens_without_embedding(vocabulary_of(brought / "tokenizer.json"), base)
    return brought


def tokenizer_folder(adapters: Iterable[Path]) -> Path | None:
    """The adapter folder whose tokenizer goes out with a merge of them; None if none has a chat template.

    Raises `ValueError` where two have different ones, as one model answers in one template.
    """
    templates = [(folder, text) for folder in adapters if (text := template_of(folder)) is not None]
    for (a, first), (b, second) in pairwise(templates):
        if first != second:
            raise ValueError(
                f"{a} and {b} were trained with different chat templates, so no merge of them answers in "
                "either; train both with one, remove the tokenizer files from the one that is not to be used, or say "
                "which it is with --tokenizer of python -m paft.merge"
            )
    return templates[0][0] if templates else None


def copy_tokenizer(source: Path, out: Path) -> None:
    """The tokenizer and generation_config of one folder in place of those of another.

    Where there is a template and no generation_config, the end of its turns is added to the other's.
    """
    (out / TEMPLATE).unlink(missing_ok=True)  # it would be read before a template in tokenizer_config.json
    copy_files(source, out, (*TOKENIZER_FILES, GENERATION))
    if not (source / GENERATION).is_file():
        from transformers import AutoTokenizer

        write_json(out / GENERATION, _generation_config(out, stop_ids(AutoTokenizer.from_pretrained(out))))


def copy_files(source: Path, out: Path, patterns: Iterable[str]) -> None:
    for path in _files(source, patterns):
        with path.open("rb") as read, replacing(out / path.name) as written:
            shutil.copyfileobj(read, written)


def _files(folder: Path, patterns: Iterable[str]) -> list[Path]:
    files = {path for pattern in patterns for path in folder.glob(pattern)}
    return sorted(path for path in files if path.is_file())


def template_of(folder: Path) -> Any:
    """The chat template of a folder with a tokenizer, as transformers finds it."""
    if (folder / TEMPLATE).is_file():
        return (folder / TEMPLATE).read_text(encoding="utf-8")
    return read_object(folder / CONFIG).get("chat_template") if (folder / CONFIG).is_file() else None

"""Whether tokenizers of branches mean the same ids as the base's and as each other's. Loads no torch."""

from collections.abc import Mapping
from itertools import combinations
from pathlib import Path

from tokenizers import Tokenizer

from paft.chat.limits import embedding_rows

FILE = "tokenizer.json"


def vocabulary_of(path: Path) -> dict[str, int]:
    """Token -> id of a tokenizer.json. Raises `ValueError` for a file that is none."""
    try:
        return dict(Tokenizer.from_file(str(path)).get_vocab())
    except Exception as error:  # tokenizers has no type of its own
        raise ValueError(f"{path} cannot be read: {error}; save the tokenizer again") from None


def refuse_other_vocabulary(base: Path, folders: Mapping[str, Path]) -> None:
    """Raise `ValueError` naming tokens and ids, where an adapter or a model brings a tokenizer with ids that the
    base has no embedding for, or with another token under an id of the base's or of another branch's."""
    brought = {
        f"the {branch} {_kind(folder)} {folder}": vocabulary_of(folder / FILE)
        for branch, folder in folders.items()
        if (folder / FILE).is_file()
    }
    rows = embedding_rows(base)
    for owner, vocabulary in brought.items():
        beyond = sorted((i, token) for token, i in vocabulary.items() if rows is not None and i >= rows)
        if beyond:
            raise ValueError(
                f"{owner} has a larger vocabulary than {base}: {len(beyond)} tokens have ids from {rows} on, where the "
                f"base's embedding ends ({_some(beyond)}). Give a base that was resized as the adapter's was: "
                f"model.resize_token_embeddings({beyond[-1][0] + 1}), then save_pretrained"
            )
    if brought and (base / FILE).is_file():
        brought = {f"the base {base}": vocabulary_of(base / FILE)} | brought
    for (owner, one), (other, two) in combinations(brought.items(), 2):
        if apart := _differences(one, two):
            raise ValueError(
                f"{owner} and {other} have different tokenizers: {len(apart)} tokens are not alike, as "
                f"{', '.join(apart[:3])}. No merge of them reads either's texts; train with one tokenizer"
            )


def _kind(folder: Path) -> str:
    return "model" if (folder / "config.json").is_file() else "adapter"


def _differences(one: Mapping[str, int], two: Mapping[str, int]) -> list[str]:
    """Tokens of both with another id, and ids of both with another token; tokens that one of them adds are none."""
    moved = [
        f"{token!r} is {one[token]} and {two[token]}"
        for token in sorted(one.keys() & two.keys())
        if one[token] != two[token]
    ]
    first, second = ({i: token for token, i in vocabulary.items()} for vocabulary in (one, two))
    shared = sorted(first.keys() & second.keys())
    return moved + [f"{i} is {first[i]!r} and {second[i]!r}" for i in shared if first[i] != second[i]]


def _some(tokens: list[tuple[int, str]]) -> str:
    return ", ".join(f"{token!r} {i}" for i, token in tokens[:3]) + ", ..." * (len(tokens) > 3)

"""Whether two folders' tokenizers give a token the same id, so that rows of their embeddings mean the same."""

from pathlib import Path

from tokenizers import Tokenizer

FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
"""Where a vocabulary may stand, the first that both folders hold."""


def difference_of_vocabularies(a: Path, b: Path) -> str | None:
    """The first token or id that two folders understand otherwise, in words; None where one has no tokenizer.

    Tokens that only one of them has are no difference as long as the other gives their ids to none.
    """
    name = next((name for name in FILES if (a / name).is_file() and (b / name).is_file()), None)
    if name is None or (a / name).read_bytes() == (b / name).read_bytes():
        return None
    if name != FILES[0]:
        return f"{name} of {a} and of {b} differ"
    ours, theirs = read_vocabulary(a / name), read_vocabulary(b / name)
    tokens = {number: token for token, number in theirs.items()}
    for token, number in sorted(ours.items(), key=lambda item: item[1]):
        if theirs.get(token, number) != number:
            return f"token {token!r:.60} has id {number} in {a} and {theirs[token]} in {b}"
        if tokens.get(number, token) != token:
            return f"id {number} is {token!r:.60} in {a} and {tokens[number]!r:.60} in {b}"
    return None


def read_vocabulary(path: Path) -> dict[str, int]:
    """Token -> id of a tokenizer.json, added tokens included. Raises `ValueError` for a file that is none."""
    try:
        return dict(Tokenizer.from_file(str(path)).get_vocab())
    except Exception as error:  # tokenizers has no type of its own
        raise ValueError(f"{path} cannot be read: {error}; save the tokenizer again") from None

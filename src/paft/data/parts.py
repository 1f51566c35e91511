"""The content of a message: a text, or a list of typed parts whose texts are joined as chat templates join them."""

from collections.abc import Iterator, Mapping
from typing import Any

from paft.data.fields import FLAGS, is_blank, learnt

TEXTS = ("text", "value")
"""Names of the text in a part: of OpenAI and transformers, and of LLaMA-Factory."""


def joined(content: Any, name: str) -> Any:
    """The text of a content that is a list of text parts; any other content as it is.

    Raises `ValueError` naming a part of another type, as an image.
    """
    if not isinstance(content, list) or not content:
        return content
    return "".join(_text(part, f"{name}[{at}]") for at, part in enumerate(content))


def _text(part: Any, name: str) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind != "text":
        got = f"of type {kind!r:.40}" if kind else type(part).__name__
        raise ValueError(f"field {name!r} must be a part of type 'text', got {got}; only text is read")
    said = {
        key: value for key, value in part.items() if key != "type" and not (key in FLAGS or is_blank(value))
    }
    texts = [said.pop(key) for key in TEXTS if key in said]
    if said:
        raise ValueError(
            f"field '{name}.{next(iter(said))!s:.40}' is not used; remove it if the text is right without"
        )
    if len(texts) > 1 or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"field {name!r} must hold one text, as `text` or `value`")
    return str(texts[0]) if texts else ""


def flags(message: Mapping[str, Any], at: str) -> Iterator[bool]:
    """What the flags of a message and of its parts say of it. Raises `ValueError` as `learnt`."""
    content = message.get("content")
    parts = content if isinstance(content, list) else []
    places = [(message, f"{at}."), *((part, f"{at}.content[{n}].") for n, part in enumerate(parts))]
    for fields, place in places:
        said = learnt(fields, place) if isinstance(fields, Mapping) else None
        if said is not None:
            yield said

"""Texts of a row."""


def as_text(value: object, name: str) -> str:
    """`value`, if it is a text of more than white space. Raises `ValueError` naming the field for anything else."""
    if value is None:
        raise ValueError(f"field {name!r} is missing")
    if not isinstance(value, str):
        raise ValueError(f"field {name!r} must be text, got {type(value).__name__}")
    if not value.strip():
        raise ValueError(f"field {name!r} is empty")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"field {name!r} holds half a surrogate pair at character {error.start + 1}, which is no text; "
            "write the whole character or remove it"
        ) from None
    return value

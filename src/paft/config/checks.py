"""The shape of a range error, and which fields no stage key holds."""

import re
from dataclasses import field
from typing import Any


def require(ok: bool, name: str, value: object, allowed: str) -> None:
    """Raise the one shape of range error: the key, what is allowed, what was given."""
    if not ok:
        raise ValueError(f"{name} must be {allowed}, got {value!r}")


def incidental(default: Any) -> Any:
    """A field that cannot change a result, hence no part of any stage key."""
    return field(default=default, metadata={"identity": False})


def require_pinned(name: str, repo: str, revision: str) -> None:
    """Branches and tags move; a stage key must not."""
    if not re.fullmatch(r"[0-9a-f]{40}", revision):
        raise ValueError(
            f"{name} must be a 40-digit commit of {repo}, got {revision!r}; "
            f"branches move. Copy one from huggingface.co/{repo}/commits"
        )

"""What can be made again at any time, and is kept for all stores of a user: `$XDG_CACHE_HOME/paft`."""

import os
from pathlib import Path


def cache_folder(name: str) -> Path:
    """A folder of the cache, which need not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "paft" / name

"""A store that may only be read, in words."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)


@contextmanager
def naming_unwritable(what: str, root: Path) -> Iterator[None]:
    """Inside, an error that comes of a store below `root` that may not be written becomes a `ValueError`."""
    try:
        yield
    except OSError as error:
        if error.errno not in DENIED or not Path(error.filename or "").is_relative_to(root):
            raise
        raise ValueError(
            f"{what} is not in the store {root}, and that may not be written ({error.strerror}: {error.filename}); "
            "give a store of your own with store=..., copying what is finished to it, or the right to write to this one"
        ) from None

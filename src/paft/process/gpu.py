"""Which of this machine's GPUs a process computes on, where it needs one and is given several.

Jobs that start together (`hydra/launcher=joblib`, several terminals) each take one that no other has. A lock tells; it
is the kernel's, and goes with its owner, however that ends.
"""

import logging
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from filelock import FileLock, Timeout

log = logging.getLogger("paft")

_held: list[FileLock] = []
"""As long as this process lives."""


@cache
def take_gpu(folder: Path) -> None:
    """Make `cuda` mean a GPU that no other process took in this `folder`, as long as there is one; once a process."""
    import torch

    count = torch.cuda.device_count()
    names = [str(torch.cuda.get_device_properties(number).uuid) for number in range(count)]
    number, lock = first_free(names, folder)
    if lock is not None:
        _held.append(lock)
    if count > 1:
        torch.cuda.set_device(number)
        log.info("computing on GPU %d of %d", number, count)


def has_gpu() -> bool:
    """Whether this process took a GPU that no other may take."""
    return bool(_held)


def first_free(names: Sequence[str], folder: Path) -> tuple[int, FileLock | None]:
    """The place of the first GPU whose lock is free, and the lock, held.

    Where all are taken, or the folder may not be written, there is no lock, and the place follows from the process.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for number, name in enumerate(names):
            lock = FileLock(folder / f"{name}.lock", blocking=False)
            try:
                lock.acquire()
            except Timeout:
                continue
            return number, lock
    except OSError as error:
        log.warning(
            "%s cannot be written (%s): other runs may compute on the same GPU", folder, error.strerror
        )
    return os.getpid() % len(names), None

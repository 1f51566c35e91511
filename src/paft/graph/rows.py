"""What the rows of a user's files are known by in a stage key: their contents, in order, not where they lie."""

import hashlib
from collections.abc import Callable
from pathlib import Path

from paft.config import BadRows, DemoSource, FileSource, HubSource, RowFormat, Source
from paft.files.fingerprint import file_sha256
from paft.files.listed import joint_sha256, listed_files

TEXTS_ALONE = ("HuggingFaceH4/ultrachat_200k", "HuggingFaceH4/ultrafeedback_binarized")
"""Data sets of the hub without tools, reasoning or typed parts."""


def splits_of(source: FileSource) -> list[str]:
    return ["train", "validation"] if source.validation_path else ["train"]


def dropped_more(source: Source) -> bool:
    """Whether rows that are read now were left out of this source when only texts were read."""
    of_texts = isinstance(source, HubSource) and source.repo in TEXTS_ALONE
    read_alike = source.format in (RowFormat.gsm8k, RowFormat.hh)
    return (
        source.bad_rows is BadRows.drop
        and not isinstance(source, DemoSource)
        and not of_texts
        and not read_alike
    )


def rows_sha256(source: FileSource, split: str, read: Callable[[Path], str] = file_sha256) -> str:
    """Hex sha256 of the file of a split, of its several files in order, or of a mixture's files and shares.

    Raises `ValueError` for what is no file.
    """
    if split == "validation" or not source.mix:
        return joint_sha256(listed_files(source.names(split)), read)
    parts = [f"{share!r} {joint_sha256(listed_files([path]), read)}" for path, share in source.shares.items()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()

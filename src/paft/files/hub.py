"""Folders of the Hugging Face hub, and in one sentence what cannot be had of it. Importing this loads none of it."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from paft.files.diskfull import is_full

PINNED = re.compile(r"([\w.-]+/[\w.-]+)@(.*)")
"""`user/repo@commit`"""
PATTERNS = ("*.json", "*.safetensors", "tokenizer*", "*.model", "*.jinja", "*.txt")
"""The files of a model or an adapter that are read."""
LOGIN = "`hf auth login` tells this machine who you are"


def folder_of(place: str, *, offline: bool) -> Path:
    """A folder on this disk, or that of `user/repo@commit` in the Hugging Face cache, fetched first if need be.

    Raises `ValueError` for what cannot be had.
    """
    match = PINNED.fullmatch(place)
    if match is None or os.path.exists(place):
        return Path(place)
    return download(match[1], match[2], PATTERNS, "with a folder of it on this disk", offline=offline)


def download(repo: str, revision: str, patterns: Sequence[str], instead: str, *, offline: bool) -> Path:
    """The cached folder of a repository at a commit. Raises `ValueError` with `instead` for what cannot be had."""
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            repo, revision=revision, allow_patterns=list(patterns), local_files_only=offline
        )
    except (OSError, ValueError) as error:
        raise unavailable(f"{repo} at {revision:.12}", repo, error, instead) from None
    return Path(folder)


def unavailable(what: str, repo: str, error: Exception, otherwise: str) -> ValueError:
    """The error to raise for `what` of a repository: why it cannot be had, and `otherwise` what to do instead.

    An error of a full disk is given back by raising it.
    """
    if is_full(error):
        raise error
    return ValueError(f"{what} cannot be had from the Hugging Face hub: {_why(repo, error)}; {otherwise}")


def _why(repo: str, error: Exception) -> str:
    """By the name of the error: importing the libraries' own takes seconds, and both have one of each kind."""
    names = {kind.__name__ for kind in type(error).__mro__}
    text = str(error)
    if "GatedRepoError" in names or "gated" in text:
        return f"its owner must grant access, asked for at huggingface.co/{repo}, and {LOGIN}"
    if "RevisionNotFoundError" in names:
        return "the repository has no such commit"
    if names & {"RepositoryNotFoundError", "DatasetNotFoundError"}:
        return f"there is no such repository, or it is private and {LOGIN}"
    if names & {"LocalEntryNotFoundError", "OfflineModeIsEnabled", "ConnectionError"}:
        return (
            "it is not in the cache of this machine, and the hub cannot be reached or is not asked (offline)"
        )
    first = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first}".rstrip(": ")

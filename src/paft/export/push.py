"""An exported folder on the Hugging Face hub."""

import os
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id

TOKEN = "HF_TOKEN"


def refuse_unpushable(repo: str) -> None:
    """Raise `ValueError` for a name that no repository has, and where the environment holds no token."""
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ValueError(f"--push must name a repository as user/name, got {repo!r:.100}: {error}") from None
    if "/" not in repo:
        raise ValueError(f"--push must name a repository as user/name, got {repo!r:.100}")
    if not os.environ.get(TOKEN):
        raise ValueError(
            f"--push needs a token with write access in the environment: {TOKEN}=... (huggingface.co/settings/tokens); "
            "it is read there alone, and never printed"
        )


def push(folder: Path, repo: str, *, public: bool) -> str:
    """Upload a folder, into a new repository where there is none; returns its address.

    A new repository is private unless `public`; one that is there stays what it is. Raises `ValueError` for what the
    hub refuses.
    """
    api = HfApi(token=os.environ[TOKEN])
    try:
        made = api.create_repo(repo, private=not public, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Upload by PAFT")
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        raise ValueError(
            f"the hub did not take {folder} as {repo}: {type(error).__name__}: {first:.300}. The folder is whole; "
            "upload it again with `hf upload`"
        ) from None
    return str(made)

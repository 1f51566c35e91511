"""The instructions of an evaluation and the answers that a model's are compared with."""

from pathlib import Path

from paft.config.judge import REPO, Reference
from paft.files.hub import unavailable
from paft.judge.outputs import Row, read_outputs

FILE = "alpaca_eval_gpt4_baseline.json"


def reference_file(reference: Reference, *, offline: bool = False) -> Path:
    """Where they are. Raises `ValueError` saying what to do where they cannot be had."""
    if reference.file is not None:
        return Path(reference.file)
    from huggingface_hub import hf_hub_download

    try:
        return Path(
            hf_hub_download(
                REPO, FILE, repo_type="dataset", revision=reference.revision, local_files_only=offline
            )
        )
    except (OSError, ValueError) as error:
        instead = "with a copy on this disk: evaluate.reference.file=..."
        raise unavailable(f"{FILE} of {REPO}", f"datasets/{REPO}", error, instead) from None


def read_reference(
    reference: Reference, limit: int | None = None, *, offline: bool = False
) -> dict[str, Row]:
    """Instruction -> row with the reference's `output`; the first `limit` of them."""
    rows = read_outputs(reference_file(reference, offline=offline), "evaluate.reference.file")
    return dict(list(rows.items())[:limit])

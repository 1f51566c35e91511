"""A merged model or adapter as a folder of its own: what of a stage's folder leaves the store, under which licence."""

import shutil
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download, metadata_load

from paft.config import HubModel, ModelConfig
from paft.files.replacing import replacing

INTERNAL = ("stage.json", "merge.json", "paft.json", "README.md")
"""Files of the store; and a card that is none of ours."""
LEGAL = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")
"""What a base's makers want to go along with it."""


def copy_model(merged: Path, out: Path) -> None:
    """Every file of the merged folder that is the model's, byte for byte; of a merge into an adapter, the adapter's."""
    source = merged / "adapter" if (merged / "adapter").is_dir() else merged
    for path in sorted(source.iterdir()):
        if path.is_file() and path.name not in INTERNAL:
            _copy(path, out)


def copy_legal(base: Path, out: Path) -> None:
    """The licence and notices that lie beside the base's weights."""
    for path in sorted({p for pattern in LEGAL for p in base.glob(pattern) if p.is_file()}):
        _copy(path, out)


def _copy(path: Path, out: Path) -> None:
    with path.open("rb") as source, replacing(out / path.name) as target:
        shutil.copyfileobj(source, target, 2**22)


def licence_of(model: ModelConfig, base: Path, *, offline: bool) -> str | None:
    """What the base's own model card says, in its folder or at the same commit of the hub; None where none says."""
    card = base / "README.md"
    if not card.is_file() and isinstance(model, HubModel):
        try:
            found = hf_hub_download(
                model.repo, "README.md", revision=model.revision, local_files_only=offline
            )
        except (OSError, ValueError):
            return None
        card = Path(found)
    stated: Any = (_metadata(card) or {}).get("license")
    return str(stated) if stated else None


def _metadata(card: Path) -> dict[str, Any] | None:
    try:
        return metadata_load(card)
    except Exception:  # no card, or YAML that is broken in one of many ways
        return None

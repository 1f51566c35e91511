"""Which folder an evaluation loads."""

import shutil
from collections.abc import Mapping
from pathlib import Path

from paft.config import DType
from paft.merge.apply import apply_adapters


def model_folder(inputs: Mapping[str, Path], base: Path, here: Path, dtype: DType | None) -> Path:
    """The folder to load. One adapter of a whole merge is added to the base first, in a folder that goes with the run's
    other leftovers: its scores are those of the weights that are loaded from it anywhere."""
    folder = inputs.get("model", base)
    if not (folder / "adapter").is_dir():
        return folder
    shutil.rmtree(here, ignore_errors=True)
    apply_adapters(base, {"merged": folder / "adapter"}, here, dtype)
    return here

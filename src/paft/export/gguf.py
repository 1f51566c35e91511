"""GGUF for llama.cpp, by its own converter where that is installed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

CONVERTER = "convert_hf_to_gguf.py"
HOW = "git clone https://github.com/ggml-org/llama.cpp, install its requirements, and set LLAMA_CPP to its folder"


def converter() -> Path:
    """llama.cpp's script, in `$LLAMA_CPP` or on PATH. Raises `ValueError` with how to get it."""
    folder = os.environ.get("LLAMA_CPP")
    named = Path(folder) / CONVERTER if folder else None
    found = named if named and named.is_file() else shutil.which(CONVERTER)
    if not found:
        where = f"{folder} (LLAMA_CPP) and PATH" if folder else "PATH"
        raise ValueError(f"--gguf needs llama.cpp's {CONVERTER}, which {where} does not hold: {HOW}")
    return Path(found)


def convert(script: Path, folder: Path) -> Path:
    """Write `<folder>/model.gguf`. Raises `ValueError` with the converter's last line if it fails."""
    out = folder / "model.gguf"
    done = subprocess.run(
        [sys.executable, str(script), str(folder), "--outfile", str(out)], capture_output=True, text=True
    )
    if done.returncode != 0 or not out.is_file():
        last = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "it wrote no file")
        raise ValueError(f"{script} cannot convert this model: {last.strip():.300}")
    return out

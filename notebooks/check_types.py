"""Type-check the code of the notebooks.

    python notebooks/check_types.py [NOTEBOOK ...]     # by default all of this folder

The code cells of a notebook are one module to mypy, under the project's settings, but functions need no annotations.
A line of a message is one of that module: code cells one after another, an empty line after each.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent


def module_of(notebook: Path) -> str:
    """The Python code of its cells; a line for IPython alone, such as `%matplotlib inline`, becomes a comment."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    lines = [
        line
        for cell in cells
        if cell["cell_type"] == "code"
        for line in [*"".join(cell["source"]).splitlines(), ""]
    ]
    return "\n".join(f"# {line}" if line.startswith(("%", "!")) else line for line in lines) + "\n"


def main(words: list[str]) -> int:
    """mypy's exit code: 0 where it has nothing to say."""
    notebooks = [Path(word).resolve() for word in words] or sorted(HERE.glob("*.ipynb"))
    with tempfile.TemporaryDirectory() as folder:
        modules = [Path(folder) / f"{notebook.stem}.py" for notebook in notebooks]
        for notebook, module in zip(notebooks, modules, strict=True):
            module.write_text(module_of(notebook), encoding="utf-8")
        mypy = [sys.executable, "-m", "mypy", "--allow-untyped-defs", *map(str, modules)]
        return subprocess.run(mypy, cwd=HERE.parent, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

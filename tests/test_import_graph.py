"""The plan of the house: which package may import which. Imports inside functions count, for they hide no arrow."""

import ast
from pathlib import Path

SRC = Path(__file__).parents[1] / "src/paft"
FLOORS = """
files private process versions device
config
chat delta graph
cost store
logps
losses model
objectives forward data
proof merge tracking
judge
training evaluate
callbacks
plan report
export
command
study
__main__
"""
"""A package imports from floors above its own line and from none below or beside it.

The last line are the entry points, `python -m paft.<package>`: whatever package they are in, nothing imports them.
"""


def rooms() -> dict[str, set[str]]:
    """Package (or module of the top level) -> those it imports."""
    arrows: dict[str, set[str]] = {}
    for path in SRC.rglob("*.py"):
        room = (
            "__main__" if path.name == "__main__.py" else path.relative_to(SRC).parts[0].removesuffix(".py")
        )
        names = arrows.setdefault(room, set())
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: imports are absolute"
                modules = (
                    [f"paft.{a.name}" for a in node.names] if node.module == "paft" else [str(node.module)]
                )
            names |= {_room(m) for m in modules if m.startswith("paft.")} - {room}
    arrows.pop("__init__")
    return arrows


def _room(module: str) -> str:
    parts = module.split(".")
    return parts[-1] if parts[-1] == "__main__" else parts[1]


def test_no_package_imports_one_of_its_own_floor_or_higher():
    floor = {room: n for n, line in enumerate(FLOORS.strip().splitlines()) for room in line.split()}
    arrows = rooms()
    assert set(arrows) == set(floor)
    wrong = [f"{a} -> {b}" for a, names in arrows.items() for b in names if floor[b] >= floor[a]]
    assert not sorted(wrong)

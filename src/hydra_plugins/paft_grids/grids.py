"""A Hydra sweeper for several grids at once: hydra/sweeper=grids.

Hydra's own takes the product of everything; the rows of a table are the union of several products. What the command
line says holds in every grid, and goes before what a grid says of the same key. Hydra looks for plugins in the package
`hydra_plugins` alone.
"""

from collections.abc import Mapping, Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

from paft.private import BasicSweeper

Grids = Mapping[str, Mapping[str, str]]
"""A grid's name -> its keys, each with values as on the command line."""


class GridsSweeper(BasicSweeper):
    """The jobs of `union`, launched as Hydra's own sweeper launches."""

    def __init__(
        self, grids: Grids, params: Mapping[str, str] | None = None, max_batch_size: int | None = None
    ) -> None:
        super().__init__(max_batch_size, dict(params or {}))
        self.grids = grids

    def split_arguments(  # type: ignore[override]  # static there, and called on the instance
        self, overrides: list[Override], max_batch_size: int | None
    ) -> list[list[list[str]]]:
        return [*self.split_overrides_to_chunks(union(self.grids, overrides), max_batch_size)]


def union(grids: Grids, overrides: Sequence[Override]) -> list[list[str]]:
    """Every combination of each grid with the overrides, in order, each once."""
    parser = OverridesParser.create()
    found: dict[tuple[str, ...], None] = {}
    for grid in grids.values():
        own = parser.parse_overrides([f"{key!s}={values}" for key, values in grid.items()])
        (batch,) = BasicSweeper.split_arguments([*own, *overrides], max_batch_size=None)
        found |= dict.fromkeys(map(tuple, batch))
    return [list(words) for words in found]

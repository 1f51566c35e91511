"""A merge that looks at data, by itself: what its stage does once the stages before it have left their statistics.

    python benchmarks/contenders/merge_by_data.py <method> <folder> <merged folder>

`<folder>` holds `base`, `sft`, `preference`, and what `random_statistics.py` writes. Loads no torch.
"""

import sys
from pathlib import Path

from paft.config import Statistic
from paft.merge.apply import plan_merge, write_model
from paft.merge.methods import METHODS


def main(name: str, folder: Path, out: Path) -> None:
    method, adapters = METHODS[name](), {branch: folder / branch for branch in ("sft", "preference")}
    needs = method.needs
    assert needs is not None, f"{name} looks at no data; python -m paft.merge does it"
    inputs = {f"{branch}_statistics": folder / needs.value / branch for branch in adapters}
    if needs is Statistic.coefficients:
        inputs = {needs.value: folder / needs.value}
    write_model(plan_merge(folder / "base", adapters, method, inputs=inputs), out)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))

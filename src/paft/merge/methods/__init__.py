"""The merge methods, one file each: its options, its formula, and the same as a function of arrays.

The functions take deltas and give the merged delta, float32 numpy arrays. Defaults are mergekit's, except that a
density is always the caller's. A file put here is a method: see `paft.merge.method`.
"""

from importlib import import_module
from pkgutil import iter_modules

from paft.config.merge import METHODS

# the paper's in the order of its Table 1, which is then that of the registry
# isort: off
from paft.merge.methods.slerp import Slerp
from paft.merge.methods.task_arithmetic import TaskArithmetic, plain_sum, task_arithmetic
from paft.merge.methods.ties import Ties, magnitude, ties
from paft.merge.methods.dare import DareLinear, DareTies, dare_linear, dare_ties
from paft.merge.methods.linear import Linear, linear
from paft.merge.slerp import slerp

# and beyond it; an entry's place is its colour
from paft.merge.methods.breadcrumbs import Breadcrumbs, BreadcrumbsTies
from paft.merge.methods.della import Della, DellaLinear
from paft.merge.methods.ram import Ram, RamPlus
from paft.merge.methods.wudi import Wudi
from paft.merge.methods.tsv import Tsv
from paft.merge.methods.iso import Iso
from paft.merge.methods.fisher import Fisher
from paft.merge.methods.learned import Learned
from paft.merge.methods.regmean import RegMean
from paft.merge.methods.model_stock import ModelStock
from paft.merge.methods.sce import Sce

# isort: on

for module in iter_modules(__path__):
    import_module(f"{__name__}.{module.name}")

__all__ = [
    "METHODS",
    "Breadcrumbs",
    "BreadcrumbsTies",
    "DareLinear",
    "DareTies",
    "Della",
    "DellaLinear",
    "Fisher",
    "Iso",
    "Learned",
    "Linear",
    "ModelStock",
    "Ram",
    "RamPlus",
    "RegMean",
    "Sce",
    "Slerp",
    "TaskArithmetic",
    "Ties",
    "Tsv",
    "Wudi",
    "dare_linear",
    "dare_ties",
    "linear",
    "magnitude",
    "plain_sum",
    "slerp",
    "task_arithmetic",
    "ties",
]

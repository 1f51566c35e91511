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

# isort: on

for module in iter_modules(__path__):
    import_module(f"{__name__}.{module.name}")

__all__ = [
    "METHODS",
    "DareLinear",
    "DareTies",
    "Linear",
    "Slerp",
    "TaskArithmetic",
    "Ties",
    "dare_linear",
    "dare_ties",
    "linear",
    "magnitude",
    "plain_sum",
    "slerp",
    "task_arithmetic",
    "ties",
]

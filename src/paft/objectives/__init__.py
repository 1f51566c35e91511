"""The preference objectives, one file each: its options and its loss. A file put here is an objective.

Loads no torch: a plan knows every objective. See `paft.objectives.objective`.
"""

from importlib import import_module
from pkgutil import iter_modules

from paft.config.training import OBJECTIVES

# the paper's first, which is then the order of the registry
# isort: off
from paft.objectives.dpo import DPO, DPOLoss, FDivergence, ReferenceFrom
from paft.objectives.orpo import ORPO, NLLScope
from paft.objectives.simpo import SimPO
from paft.objectives.cpo import CPO
from paft.objectives.kto import KTO, KTOLoss

# isort: on

for module in iter_modules(__path__):
    import_module(f"{__name__}.{module.name}")

__all__ = [
    "CPO",
    "DPO",
    "KTO",
    "OBJECTIVES",
    "ORPO",
    "DPOLoss",
    "FDivergence",
    "KTOLoss",
    "NLLScope",
    "ReferenceFrom",
    "SimPO",
]

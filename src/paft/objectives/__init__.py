"""The preference objectives, one file each: its options and its loss. A file put here is an objective.

Loads no torch: a plan knows every objective. See `paft.objectives.objective`.
"""

from importlib import import_module
from pkgutil import iter_modules

from paft.config.training import OBJECTIVES
from paft.objectives.dpo import DPO, DPOLoss, ReferenceFrom
from paft.objectives.orpo import ORPO, NLLScope

for module in iter_modules(__path__):
    import_module(f"{__name__}.{module.name}")

__all__ = ["DPO", "OBJECTIVES", "ORPO", "DPOLoss", "NLLScope", "ReferenceFrom"]

"""The objectives as pure functions in float32: SFT, preference losses and the L1 penalty.

Log-probabilities are natural logarithms. A suffix names a tensor's axes: B rows, T tokens, V vocabulary.
"""

from paft.chat.tokens import IGNORE
from paft.logps import sequence_logps
from paft.losses.likelihood import mean_nll, sft_loss
from paft.losses.odds_ratio import log1mexp, odds_ratio_loss, orpo_loss
from paft.losses.preference import contrastive_loss, dpo_loss
from paft.losses.sparsity import l1_penalty, soft_threshold
from paft.losses.unpaired import kto_loss, reference_point

__all__ = [
    "IGNORE",
    "contrastive_loss",
    "dpo_loss",
    "kto_loss",
    "l1_penalty",
    "log1mexp",
    "mean_nll",
    "odds_ratio_loss",
    "orpo_loss",
    "reference_point",
    "sequence_logps",
    "sft_loss",
    "soft_threshold",
]

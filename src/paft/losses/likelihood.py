"""Likelihood of answers. Shapes: B rows, T tokens, H hidden, V vocabulary; labels are token ids, -100 where none."""

from torch import Tensor

from paft.chat.tokens import IGNORE
from paft.logps import Head, label_logps


def mean_nll(logps: Tensor, num_tokens: int) -> Tensor:
    """Negative log-likelihood per label, of log-probabilities that are 0 where there is no label: float32 scalar.

    With the count of the global batch, the losses of its micro-batches add up to the loss of the whole.
    """
    return -logps.sum() / num_tokens


def sft_loss(
    outputs: Tensor, labels_BT: Tensor, head: Head | Tensor | None = None, *, num_tokens: int | None = None
) -> Tensor:
    """Mean negative log-likelihood per label: float32 scalar.

    `num_tokens` divides in place of this batch's own number of labels; see `mean_nll`.
    """
    if num_tokens is None:
        num_tokens = int((labels_BT[:, 1:] != IGNORE).sum())
    return mean_nll(label_logps(outputs, labels_BT, head), max(num_tokens, 1))

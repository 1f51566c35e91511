"""Every layer of a frozen base that has a form of ours takes it."""

from torch import nn

from paft.model.layers.norm import fuse_norms
from paft.model.layers.swapped import swap_back
from paft.model.layers.swiglu import fuse_mlps


def fuse(base: nn.Module) -> None:
    """Let the base's known norms and gated MLPs compute themselves in one node each; peft swaps linear layers."""
    fuse_norms(base)
    fuse_mlps(base)


def unfuse(base: nn.Module) -> None:
    """Give every layer its own forward back."""
    for module in base.modules():
        swap_back(module)

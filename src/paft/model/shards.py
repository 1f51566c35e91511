"""Tensors that lie in shards on several devices: the whole, a rank's own part. Any other tensor is itself."""

from torch import Tensor
from torch.distributed.tensor import DTensor, Partial


def whole(tensor: Tensor) -> Tensor:
    """The full tensor behind a sharded one; any other tensor is itself."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own_rows(tensor: Tensor) -> Tensor:
    """This rank's part of a sharded tensor; any other tensor is itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def summing_over_shards(tensor: Tensor) -> Tensor:
    """The full tensor, whose gradient is the sum of what the ranks of a shard group each send back."""
    if not isinstance(tensor, DTensor):
        return tensor
    return tensor.full_tensor(grad_placements=[Partial() if p.is_shard() else p for p in tensor.placements])

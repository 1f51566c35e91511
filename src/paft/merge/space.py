"""Other spaces than the weights' own to merge deltas in: `merge.space`.

Two deltas s_i B_i A_i span few directions. In core space both are small matrices in one pair of bases, in KnOTS's they
share a left basis and differ in their right factors; either way what is merged there is a merged delta of low rank.
KnOTS's is defined of whole deltas as well, by their own singular values, and so are the methods of singular vectors.
"""

import re
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from paft.config import Normalize, Space
from paft.config.checks import UNLESS_DEFAULT
from paft.delta.delta import Delta, Dense, Factors, is_zero, zero_delta
from paft.delta.rows import Array, Rows, blocks_of
from paft.merge.combine import added
from paft.merge.method import Adapters, Method, Plan, TensorMerge, WeightedMerge
from paft.merge.sparsify import everything
from paft.merge.stream import Weight

Wide = NDArray[np.float64]
Matrix = NDArray[np.floating[Any]]
"""Float64 where it is small, float32 where it is as large as a tensor."""
SMALL = 1e-5
"""Singular values of deltas side by side that KnOTS takes for 0."""


class Cores(NamedTuple):
    """Deltas as `left` M_i `right`, without loss."""

    left: Matrix
    """[out, k], orthonormal columns."""
    middles: Sequence[Matrix]
    """M_i [k, l] of each branch."""
    right: Matrix | None
    """[l, in], orthonormal rows; None is the identity."""

    def delta(self, middle: Matrix) -> Factors | Dense:
        """What a merged M is as a delta."""
        left = (self.left @ middle).astype(np.float32)
        return Dense(left) if self.right is None else Factors(self.right.astype(np.float32), left, 1.0)


def plan_of(method: Method, adapters: Adapters) -> Plan:
    """How each tensor is merged, in the method's space and by its weights."""
    if isinstance(method, WeightedMerge) and method.weights_by:
        return _by_name(method, adapters)
    plan = method.plan(adapters)
    if isinstance(method, CoreMerge) or method.space in (Space.delta, Space.full):
        return plan
    return _through(core_space if method.space is Space.core else knots_space, plan)


def _by_name(method: WeightedMerge, adapters: Adapters) -> Plan:
    """The same method once for each pattern of `weights_by`, and once for what none of them is found in."""

    def with_weights(weights: list[float]) -> Plan:
        alike = copy(method)  # with all that it holds beside its fields
        alike.weights, alike.weights_by = weights, {}
        return plan_of(alike, adapters)

    others = with_weights(method.weights)
    plans = {re.compile(pattern): with_weights(w) for pattern, w in method.weights_by.items()}

    def plan(name: str, deltas: Sequence[Delta], base: Rows) -> TensorMerge:
        mine = next((mine for pattern, mine in plans.items() if pattern.search(name)), others)
        return mine(name, deltas, base)

    return plan


def core_space(deltas: Sequence[Delta], name: str = "a tensor") -> Cores:
    """M_i = U^T delta_i V, in the left singular vectors U of all s_i B_i and the right ones V of all A_i (2509.17786,
    section 3). Raises `ValueError` for a delta that is no product of factors."""
    factors = low_rank(deltas, name)
    Bs, As = [f.scaling * f.B.astype(np.float64) for f in factors], [f.A.astype(np.float64) for f in factors]
    left, right = _svd(np.concatenate(Bs, 1))[0], _svd(np.concatenate(As, 0))[2]
    return Cores(left, [(left.T @ B) @ (A @ right.T) for B, A in zip(Bs, As, strict=True)], right)


def knots_space(deltas: Sequence[Delta], name: str = "a tensor") -> Cores:
    """M_i = Sigma V_i of [delta_1 | delta_2] = U Sigma [V_1 | V_2], each as wide as the tensor (2410.19735, section 4).

    Directions with a singular value up to 1e-5 are left out, as by its authors. In float64 through the factors of
    low-rank deltas, in float32 of others.
    """
    if not all(isinstance(delta, Factors) for delta in deltas):
        left, sizes, rows = _svd(np.concatenate([delta[:] for delta in deltas], 1))
        kept = sizes > SMALL
        return Cores(left[:, kept], np.split(sizes[kept, None] * rows[kept], len(deltas), axis=1), None)
    cores = core_space(deltas, name)
    inner, sizes, _ = _svd(np.concatenate(cores.middles, 1))
    inner = inner[:, sizes > SMALL]
    right = cores.right
    assert right is not None
    beside = [inner.T @ middle @ right for middle in cores.middles]
    return Cores(cores.left @ inner, beside, np.eye(right.shape[1]))


def low_rank(deltas: Sequence[Delta], name: str) -> list[Factors]:
    factors = [delta for delta in deltas if isinstance(delta, Factors)]
    if len(factors) < len(deltas):
        raise ValueError(
            f"merge.space=core is made of the factors of LoRA deltas: a branch changes {name} otherwise (all weights, "
            "a whole model, DoRA or modules_to_save); set merge.space=delta or merge.space=svd"
        )
    return factors


def _through(space: Any, plan: Plan) -> Plan:
    def merged(name: str, deltas: Sequence[Delta], base: Rows) -> TensorMerge:
        if not is_matrix(base):
            return plan(name, deltas, base)  # a vector is its own direction
        cores: Cores = space(deltas, name)
        if not cores.middles[0].size:
            return as_whole(deltas, zero_delta(deltas[0].shape))
        middles = [Dense(middle.astype(np.float32)) for middle in cores.middles]
        tensor = plan(name, middles, np.zeros(middles[0].shape, np.float32))
        return as_whole(deltas, cores.delta(rows_merged(tensor)), tensor.linear)

    return merged


def rows_merged(tensor: TensorMerge) -> Array:
    """All rows of a merge that needs no base."""
    return np.concatenate(
        [tensor.merge(rows, d, np.zeros_like(d[0])) for rows, d in blocks_of(*tensor.deltas)]
    )


def merge_tensor(method: Method, deltas: Sequence[Delta | Array], *, name: str = "weight") -> Array:
    """The merged delta of one tensor, float32 [out, in], by a method that looks at no other tensor.

    Arrays are deltas of any rank; `name` is what seeded methods draw by.
    """
    read = [Dense(d) if isinstance(d, np.ndarray) else d for d in deltas]
    branches: Adapters = {branch: {} for branch in ("sft", "preference")[: len(read)]}
    return rows_merged(plan_of(method, branches)(name, read, np.zeros(read[0].shape, np.float32)))


def as_whole(deltas: Sequence[Delta], result: Delta, linear: bool | None = None) -> TensorMerge:
    """The merge of `deltas` whose result is known; only its rows are still to be taken."""
    only_result = [0.0] * len(deltas) + [1.0]
    keep = [everything] * len(only_result)
    return TensorMerge([*deltas, result], lambda d, _: d[-1], keep, linear, only_result)


def is_matrix(base: Rows) -> bool:
    """Whether a tensor of the base has two dimensions: biases, norms and stacked experts, which count as matrices
    elsewhere, have not."""
    return len(base.stored.shape if isinstance(base, Weight) else base.shape) == 2


def _svd(matrix: Matrix) -> tuple[Matrix, Matrix, Matrix]:
    """Thin; of a matrix without columns or rows too."""
    left, sizes, right = np.linalg.svd(matrix, full_matrices=False)
    return left, sizes, right


@dataclass
class CoreMerge(WeightedMerge):
    """A method of singular values and vectors: it says `merge_cores`, of the small matrices of core space.

    Core space keeps every product of the deltas, so such a method is that of whole weights, at (r1 + r2)^3 a tensor.
    Deltas that are no products of factors are merged as whole weights, in float32; of tensors that are no matrices the
    mean of those that change is taken, as by the methods' authors.
    """

    spaces: ClassVar[tuple[Space, ...]] = (Space.core,)

    space: Space = field(default=Space.core, metadata=UNLESS_DEFAULT)
    """These methods work in core space only, where it equals whole weights."""

    def plan(self, adapters: Adapters) -> Plan:
        def plan(name: str, deltas: Sequence[Delta], base: Rows) -> TensorMerge:
            if all(isinstance(delta, Factors) for delta in deltas):
                cores = core_space(deltas, name)
                weighted = [w * middle for w, middle in zip(self.weights, cores.middles, strict=True)]
                return as_whole(deltas, cores.delta(self.scale * self.merge_cores(weighted)))
            changed = [(w, d) for w, d in zip(self.weights, deltas, strict=True) if not is_zero(d)]
            if not is_matrix(base):
                return _mean_of(deltas, self.weights, self.scale / len(changed))
            merged = self.merge_whole([np.float32(w) * d[:] for w, d in changed])
            return as_whole(deltas, Dense(merged.astype(np.float32, copy=False), self.scale))

        return plan

    def merge_cores(self, cores: Sequence[Matrix]) -> Matrix:
        """One matrix [k, l] of the weighted ones of the branches, of their type."""
        raise NotImplementedError(f"{type(self).__name__} must say how it merges core matrices")

    def merge_whole(self, deltas: Sequence[Array]) -> Matrix:
        """The same of the weighted deltas themselves, [out, in], of the branches that change the tensor."""
        return self.merge_cores(deltas)


def _mean_of(deltas: Sequence[Delta], weights: Sequence[float], scale: float) -> TensorMerge:
    shares = [scale * weight for weight in weights]
    keep = [everything] * len(shares)
    return TensorMerge(deltas, lambda d, _: added(d, shares, Normalize.none, 1.0), keep, coefficients=shares)

"""Deltas of every kind against the same one as an array."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from paft.delta.delta import Delta, Dense, Factors, inner, zero_delta
from paft.delta.rows import blocks_of, matrix_shape
from paft.delta.stored import StoredDifference, StoredFactors, StoredSum, StoredTensor
from paft.files.safetensors import read_header

SHAPES = {(): (1, 1), (5,): (1, 5), (3, 4): (3, 4), (2, 3, 4): (2, 12), (0, 3): (0, 3)}


@pytest.mark.parametrize(("shape", "expected"), SHAPES.items())
def test_a_tensor_of_any_shape_is_a_matrix(shape: tuple[int, ...], expected: tuple[int, int]) -> None:
    assert matrix_shape(shape) == expected
    assert math.prod(expected) == math.prod(shape)


@pytest.fixture
def tensors(tmp_path: Path) -> dict[str, StoredTensor]:
    torch.manual_seed(0)
    made = {
        "A": torch.randn(3, 50),
        "B": torch.randn(40, 3),
        "one": torch.randn(40, 50),
        "bias": torch.randn(7),
    }
    made |= {"other": (made["one"] + torch.randn(40, 50)).bfloat16(), "stack": torch.randn(4, 5, 6)}
    save_file(made, tmp_path / "file.safetensors")
    header = read_header(tmp_path / "file.safetensors")
    return {name: StoredTensor(tmp_path / "file.safetensors", stored) for name, stored in header.items()}


def kinds(tensors: dict[str, StoredTensor]) -> dict[str, tuple[Delta, np.ndarray]]:
    A, B, one, other = (tensors[name][:] for name in ("A", "B", "one", "other"))
    path = tensors["A"].path
    factors = StoredFactors(path, tensors["A"].stored, tensors["B"].stored, 0.5)
    turned = StoredFactors(path, tensors["A"].stored, tensors["B"].stored, 0.5, transposed=True)
    difference = StoredDifference(tensors["other"], tensors["one"])
    return {
        "factors": (factors.load(), 0.5 * B @ A),
        "scaled factors": (factors.scaled(3.0).load(), 1.5 * B @ A),
        "transposed factors": (turned.load(), (0.5 * B @ A).T),
        "difference": (difference.load(), other - one),
        "scaled difference": (difference.scaled(-2.0).load(), -2.0 * (other - one)),
        "tensor": (StoredDifference(tensors["bias"], None, 2.0).load(), 2 * tensors["bias"][:]),
        "sum": (StoredSum([factors, difference]).scaled(2.0).load(), B @ A + 2 * (other - one)),
        "array": (Dense(one), one),
        "zero": (zero_delta((40, 50)), np.zeros((40, 50), np.float32)),
    }


def test_rows_and_dense_against_the_array(tensors: dict[str, StoredTensor]) -> None:
    for name, (delta, expected) in kinds(tensors).items():
        assert delta.shape == expected.shape, name
        np.testing.assert_allclose(delta[:], expected, atol=1e-5, err_msg=name)
        np.testing.assert_array_equal(
            delta.dense(np.empty(expected.size, np.float32)), delta[:], err_msg=name
        )
        some = slice(1, 3) if len(expected) > 3 else slice(0, 1)
        np.testing.assert_allclose(delta[some], expected[some], atol=1e-5, err_msg=name)
        rows = [block for _, (block,) in blocks_of(delta)]
        np.testing.assert_allclose(np.concatenate(rows), expected, atol=1e-5, err_msg=name)


def test_inner_products_against_the_arrays(tensors: dict[str, StoredTensor]) -> None:
    whole = {n: (d, e) for n, (d, e) in kinds(tensors).items() if e.shape == (40, 50)}
    for a, one in whole.values():
        for b, other in whole.values():
            expected = float(np.vdot(one.astype(np.float64), other.astype(np.float64)))
            # factors are multiplied in float64, arrays were in float32
            assert inner(a, b) == pytest.approx(expected, rel=1e-5, abs=1e-3)


def test_factors_are_multiplied_without_their_delta() -> None:
    long = Factors(np.ones((1, 2**20), np.float32), np.ones((2**20, 1), np.float32), 0.5)  # 4 TB dense
    assert inner(long, long) == 2.0**38


def test_a_file_that_was_cut_short_is_refused(tensors: dict[str, StoredTensor]) -> None:
    path = tensors["one"].path
    path.write_bytes(path.read_bytes()[:-100])
    last = max(tensors.values(), key=lambda tensor: tensor.stored.end)
    with pytest.raises(ValueError, match="was cut short"):
        last[:]

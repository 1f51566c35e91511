"""Stored bits as float32 and back, against torch."""

import numpy as np
import pytest
import torch

from paft.delta.rows import LIMITS, decode, encode, fits

TYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}


def bits_of(tensor: torch.Tensor) -> np.ndarray:
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


@pytest.mark.parametrize("dtype", TYPES)
def test_decode_against_torch(dtype: str) -> None:
    stored = torch.randn(10_000, generator=torch.Generator().manual_seed(0)).to(TYPES[dtype])
    assert np.array_equal(decode(bits_of(stored), dtype), stored.float().numpy())


@pytest.mark.parametrize("dtype", TYPES)
def test_encode_against_torch(dtype: str) -> None:
    """Values of every exponent, those half way between two bfloat16 numbers, and signed zeros."""
    raw = torch.randint(-(2**31), 2**31, (100_000,), generator=torch.Generator().manual_seed(0)).to(
        torch.int32
    )
    halfway = (raw & ~0xFFFF) | 0x8000
    values = torch.cat([raw, halfway, torch.tensor([0, -(2**31)])]).to(torch.int32).view(torch.float32)
    values = values[values.abs() < LIMITS[dtype]]
    assert np.array_equal(encode(values.numpy(), dtype), bits_of(values.to(TYPES[dtype])))


@pytest.mark.parametrize("dtype", TYPES)
def test_fits_says_what_torch_stores_as_finite(dtype: str) -> None:
    limit = np.float32(LIMITS[dtype])
    for value in (limit, np.nextafter(limit, np.float32(0)), np.float32(np.nan), np.float32(1)):
        stored = torch.tensor([value, 0.5]).to(TYPES[dtype])
        assert fits(np.array([value, 0.5], np.float32), dtype) == bool(stored.isfinite().all())
        assert fits(np.array([0.5, -value], np.float32), dtype) == bool(stored.isfinite().all())

"""Recorded numbers: other implementations' true outputs, and our own, so that no change goes unnoticed."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from whole_weights import slerp_full

from paft.delta.rows import Array
from paft.merge.methods import dare_linear, dare_ties, linear, task_arithmetic, ties
from paft.merge.slerp import slerp
from paft.merge.sparsify import magnitude_threshold, trim

VECTORS = Path(__file__).resolve().parents[1] / "../shared/data/golden_merge_vectors.json"
OWN = Path(__file__).parent / "golden/merge.json"
TOLERANCE = {"rtol": 0, "atol": 1e-6}
"""The vectors are rounded to 7 decimals."""

needs_vectors = pytest.mark.skipif(not VECTORS.is_file(), reason=f"{VECTORS.name} is not there")


def load() -> tuple[Array, list[Array], dict[str, Array], dict[str, list[list[float]]]]:
    data = json.loads(VECTORS.read_text())
    cases = {name: array(values) for name, values in data["cases"].items()}
    return array(data["base"]), [array(data["delta1"]), array(data["delta2"])], cases, data


def array(values: list[list[float]]) -> Array:
    return np.array(values, np.float32)


# fmt: off
PEFT_TIES = {"elect_on": "unweighted", "normalize": "count"}
WHOLE: dict[str, Callable[[list[Array], list[Array]], Array]] = {
    "mergekit linear w=.3,.7 normalize": lambda d, m: linear(d, [.3, .7]),
    "mergekit linear w=2,1 normalize": lambda d, m: linear(d, [2, 1]),
    "mergekit task_arithmetic w=1,1": lambda d, m: task_arithmetic(d, [1, 1]),
    "mergekit task_arithmetic w=.6,.3 lambda=.5": lambda d, m: task_arithmetic(d, [.6, .3], scale=.5),
    "mergekit task_arithmetic normalize w=.6,.3": lambda d, m: linear(d, [.6, .3]),
    "mergekit ties w=1,1 density .5": lambda d, m: ties(d, [1, 1], density=.5),
    "mergekit ties w=.7,.3 density .5,.75 lambda .7":
        lambda d, m: ties(d, [.7, .3], density=[.5, .75], scale=.7),
    "mergekit ties w=.7,.3 density .5 normalize=False":
        lambda d, m: ties(d, [.7, .3], density=.5, normalize="none"),
    "mergekit dare_ties w=.6,.4 density .5 seed0": lambda d, m: dare_ties(d, [.6, .4], density=.5, masks=m),
    "mergekit dare_linear w=.6,.4 density .5 seed0":
        lambda d, m: dare_linear(d, [.6, .4], density=.5, masks=m),
}
DELTA: dict[str, Callable[[list[Array], list[Array]], Array]] = {
    "nuslerp delta-space t=.3 (cos=-0.17534) [delta only]": lambda d, m: slerp(d, .3),
    "peft ties w=.7,.3 density .5 [delta only]": lambda d, m: ties(d, [.7, .3], density=.5, **PEFT_TIES),
    "peft ties frequency w=.7,.3 density .5 [delta]":
        lambda d, m: ties(d, [.7, .3], density=.5, election="count", **PEFT_TIES),
    "peft dare_linear w=.7,.3 density .5 seed0 [delta]":
        lambda d, m: dare_linear(d, [.7, .3], density=.5, masks=m, rescale="inverse_density"),
    "peft dare_ties w=.7,.3 density .5 seed0 [delta]":
        lambda d, m: dare_ties(d, [.7, .3], density=.5, masks=m, rescale="inverse_density", **PEFT_TIES),
}
# fmt: on
MASKS = "bernoulli masks seed0 density .5"
SLERP_ARC = "mergekit slerp t=.3 full weights (cos=0.97246)"
SLERP_LINE = "mergekit slerp t=.3 small deltas -> lerp (cos=0.999988)"
REFERENCE = "reference TIES global K=.25 d=16 dis-mean [delta]"


@needs_vectors
def test_every_recorded_case_is_tested() -> None:
    _, _, cases, _ = load()
    assert cases.keys() == {*WHOLE, *DELTA, MASKS, SLERP_ARC, SLERP_LINE, REFERENCE}


@needs_vectors
@pytest.mark.parametrize("name", WHOLE)
def test_merged_weights_against_mergekit_vectors(name: str) -> None:
    base, deltas, cases, _ = load()
    merged = base + WHOLE[name](deltas, list(cases[MASKS]))
    torch.testing.assert_close(merged, cases[name], **TOLERANCE)


@needs_vectors
@pytest.mark.parametrize("name", DELTA)
def test_merged_delta_against_nuslerp_and_peft_vectors(name: str) -> None:
    _, deltas, cases, _ = load()
    merged = DELTA[name](deltas, list(cases[MASKS]))
    torch.testing.assert_close(merged, cases[name], **TOLERANCE)


@needs_vectors
@pytest.mark.parametrize(("name", "shrink"), [(SLERP_ARC, 1.0), (SLERP_LINE, 0.02)])
def test_full_slerp_against_mergekit_vectors(name: str, shrink: float) -> None:
    base, deltas, cases, _ = load()
    merged = base + slerp_full(base, [shrink * delta for delta in deltas], 0.3)
    torch.testing.assert_close(merged, cases[name], **TOLERANCE)


@needs_vectors
def test_global_ties_against_the_reference_vector() -> None:
    _, deltas, cases, data = load()
    extra = array(data["ref_extra_tensor"])
    flat = [np.concatenate([delta.ravel(), more])[None] for delta, more in zip(deltas, extra, strict=True)]
    kept = [trim(delta, magnitude_threshold(lambda delta=delta: [delta], 0.25)) for delta in flat]
    merged = ties(kept, [1, 1], density=1, elect_on="unweighted", normalize="count")
    torch.testing.assert_close(merged[0], cases[REFERENCE], **TOLERANCE)


def our_numbers() -> dict[str, Array]:
    """All six functions on a fixed pair whose values are multiples of 1/256."""
    generator = torch.Generator().manual_seed(7)
    deltas = [(torch.randint(-64, 65, (4, 6), generator=generator) / 256).numpy() for _ in range(2)]
    weights = [0.75, 0.5]

    def drawn() -> list[np.random.RandomState]:
        return [np.random.RandomState(seed) for seed in (1, 2)]

    return {
        "linear": linear(deltas, weights),
        "task_arithmetic": task_arithmetic(deltas, weights, scale=0.5),
        "slerp": slerp(deltas, 0.25),
        "ties": ties(deltas, weights, density=[0.5, 0.75]),
        "dare_ties": dare_ties(deltas, weights, density=0.5, generators=drawn()),
        "dare_linear": dare_linear(
            deltas, weights, density=0.5, generators=drawn(), rescale="inverse_density"
        ),
    }


@pytest.mark.parametrize("name", ["linear", "task_arithmetic", "slerp", "ties", "dare_ties", "dare_linear"])
def test_our_numbers_have_not_moved(name: str) -> None:
    """If they moved on purpose: raise the merge stage's version, run this file as a script to record anew."""
    recorded = array(json.loads(OWN.read_text())[name])
    # exact arithmetic but for one division or sine, whose last bit may differ between processors
    torch.testing.assert_close(our_numbers()[name], recorded, rtol=2e-7, atol=0)


if __name__ == "__main__":
    rows = (f' "{name}": {json.dumps(values.tolist())}' for name, values in our_numbers().items())
    OWN.write_text("{\n" + ",\n".join(rows) + "\n}\n")

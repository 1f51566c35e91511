"""Deltas of full fine-tuning on disk: written, read some rows at a time, and merged as the same whole models are."""

from pathlib import Path

import numpy as np
import pytest
import torch
from every_merge import may_refuse
from full_models import save_adapter, save_base, weights_of
from safetensors.torch import load_file, save_file
from scipy.sparse import csr_matrix
from tiny import MODEL
from torch import Tensor
from transformers import AutoModelForCausalLM

from paft.config import SFTConfig
from paft.delta.adapter import NAMES_OF_BASE, read_adapter
from paft.delta.full import FILE, StoredSparse, read_full_delta, save_full_delta, trained_folder
from paft.delta.statistics import dense, measured
from paft.delta.statistics import read_adapter as in_memory
from paft.graph.taken import taken
from paft.merge.apply import merge_adapters
from paft.merge.mergekit.written import mergekit_config
from paft.merge.methods import METHODS

SHAPES = {"wide": (40, 96), "tall": (96, 40), "vector": (64,), "stacked": (3, 8, 16)}


def drawn(shape: tuple[int, ...], share: float, seed: int) -> Tensor:
    """Random values of which about `share` are not zero."""
    generator = torch.Generator().manual_seed(seed)
    kept = torch.rand(shape, generator=generator) < share
    return torch.randn(shape, generator=generator) * kept


@pytest.mark.parametrize("share", [0.0, 0.05, 0.4, 1.0])
def test_what_is_read_is_what_was_written(tmp_path, share):
    deltas = {name: drawn(shape, share, i) for i, (name, shape) in enumerate(SHAPES.items())}
    save_full_delta(deltas, tmp_path)
    for name, stored in read_full_delta(tmp_path).items():
        matrix = deltas[name].reshape(stored.shape).numpy()
        loaded = stored.load()
        for rows in (slice(0, 1), slice(1, 3), slice(None)):
            assert np.array_equal(loaded[rows], matrix[rows])
        assert np.array_equal(stored.scaled(0.5).load()[:], matrix * np.float32(0.5))


def test_sparse_parts_against_scipy(tmp_path):
    delta = drawn((40, 96), 0.1, 0)
    save_full_delta({"w": delta}, tmp_path)
    parts, csr = load_file(tmp_path / FILE), csr_matrix(delta.numpy())
    assert parts["w.crow_indices"].tolist() == csr.indptr.tolist()
    assert parts["w.col_indices"].tolist() == csr.indices.tolist()
    assert np.array_equal(parts["w.values"].numpy(), csr.data)
    assert parts["w.shape"].tolist() == [40, 96]


@pytest.mark.parametrize("share", [0.1, 0.45, 0.55, 0.9])
def test_the_smaller_form_is_stored(tmp_path, share):
    delta = drawn((200, 200), share, 0)
    save_full_delta({"w": delta}, tmp_path)
    (stored,) = read_full_delta(tmp_path).values()
    assert isinstance(stored, StoredSparse) is (share < 0.5)
    size = (tmp_path / FILE).stat().st_size
    assert size < 1000 + min(4 * delta.numel(), 8 * (int((delta != 0).sum()) + 200))


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("col_indices", lambda t: t + 90),
        ("col_indices", lambda t: t - 90),
        ("col_indices", lambda t: t.long()),
        ("crow_indices", lambda t: t.flip(0)),
        ("crow_indices", lambda t: t * 2),
        ("crow_indices", lambda t: t[:5]),
        ("values", lambda t: t.half()),
        ("values", lambda t: t[:5]),
        ("shape", lambda t: t * 3),
        ("shape", lambda t: t[:1]),
        ("shape", None),
    ],
)
def test_a_damaged_sparse_matrix_is_refused(tmp_path, part, value):
    save_full_delta({"w": drawn((40, 96), 0.1, 0)}, tmp_path)
    parts = load_file(tmp_path / FILE)
    changed = {f"w.{part}": value(parts.pop(f"w.{part}")).contiguous()} if value else {}
    if not value:
        parts.pop(f"w.{part}")
    save_file(parts | changed, tmp_path / FILE)
    with pytest.raises(ValueError, match="train it again"):
        read_adapter(tmp_path)


def test_statistics_count_zeros_and_merges_leave_them_out(tmp_path):
    base = save_base(tmp_path / "base")
    weights = weights_of(base)
    deltas = {name: torch.zeros_like(w) for name, w in weights.items()}
    deltas["lm_head.weight"] = drawn(tuple(weights["lm_head.weight"].shape), 0.2, 1)
    save_full_delta(deltas, tmp_path / "delta")
    assert list(read_adapter(tmp_path / "delta", base)) == ["lm_head.weight"]
    layers = measured(read_adapter(tmp_path / "delta"))["layers"]
    assert layers.keys() == weights.keys()
    assert layers["model.norm.weight"]["share_zero"] == 1.0
    expected = float((deltas["lm_head.weight"] == 0).float().mean())
    assert layers["lm_head.weight"]["share_zero"] == pytest.approx(expected)


def test_nan_and_another_base_are_refused(tmp_path):
    base = save_base(tmp_path / "base")
    save_full_delta({"lm_head.weight": torch.full((64, 32), torch.nan)}, tmp_path / "nan")
    with pytest.raises(ValueError, match="diverged"):
        read_adapter(tmp_path / "nan", base)
    save_full_delta({"lm_head.weight": torch.ones(64, 31)}, tmp_path / "other")
    with pytest.raises(ValueError, match="trained on another model"):
        read_adapter(tmp_path / "other", base)
    save_full_delta({"lm_tail.weight": torch.ones(64, 32)}, tmp_path / "unknown")
    with pytest.raises(ValueError, match="does not hold"):
        read_adapter(tmp_path / "unknown", base)


def test_the_folder_of_a_branch(tmp_path):
    assert trained_folder(tmp_path).name == "adapter"
    (tmp_path / "delta").mkdir()
    assert trained_folder(tmp_path).name == "delta"


# --- merged ------------------------------------------------------------------------------------------


def whole_and_delta(base: Path, at: Path, share: float, seed: int) -> tuple[Path, Path]:
    """A float32 model and its exact difference from the base: what is added is rounded by the sum."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    deltas = {}
    with torch.no_grad():
        for i, (name, p) in enumerate(model.named_parameters()):
            before = p.clone()
            p += 0.01 * drawn(tuple(p.shape), share, 100 * seed + i)
            deltas[name] = p - before
    model.save_pretrained(at / "model")
    save_full_delta(deltas, at / "delta")
    (at / "delta/paft.json").write_text("{}")
    return at / "model", at / "delta"


WHOLE = [
    name
    for name, m in METHODS.items()
    if m.needs is None and m().space.value in ("delta", "full") and not may_refuse(m())
]


@pytest.fixture(scope="module", params=[False, True], ids=["own head", "tied"])
def branches(request, tmp_path_factory) -> tuple[Path, dict[str, Path], dict[str, Path]]:
    """(base in bfloat16, the branches as models, as deltas): one sparse, one not."""
    at = tmp_path_factory.mktemp("branches")
    base = save_base(at / "base", dtype=torch.bfloat16, tie_word_embeddings=request.param)
    sft = whole_and_delta(base, at / "sft", 0.1, 1)
    preference = whole_and_delta(base, at / "preference", 1.0, 2)
    models, deltas = ({"sft": s, "preference": p} for s, p in zip(sft, preference, strict=True))
    return base, models, deltas


@pytest.mark.parametrize("method", WHOLE)
def test_merged_deltas_are_the_bytes_of_merged_models(branches, tmp_path, method):
    base, models, deltas = branches
    of_models = merge_adapters(base, models, METHODS[method](), tmp_path / "models")
    of_deltas = merge_adapters(base, deltas, METHODS[method](), tmp_path / "deltas")
    assert of_deltas == of_models
    one, other = ((tmp_path / n / "model.safetensors").read_bytes() for n in ("models", "deltas"))
    assert one == other


def test_one_of_each_is_the_merge_of_the_model_and_the_adapter(branches, tmp_path):
    base, models, deltas = branches
    adapter = save_adapter(base, tmp_path / "adapter", 3)
    for name, folder in (("model", models["sft"]), ("delta", deltas["sft"])):
        mixed = {"sft": folder, "preference": adapter}
        merge_adapters(base, mixed, METHODS["ties"](), tmp_path / name, same=NAMES_OF_BASE)
    one, other = ((tmp_path / n / "model.safetensors").read_bytes() for n in ("model", "delta"))
    assert one == other


def test_what_else_takes_adapters_says_that_it_does_not_take_deltas(branches, tmp_path):
    base, _, deltas = branches
    with pytest.raises(ValueError, match="delta of full fine-tuning; merge it here"):
        mergekit_config(base, deltas, METHODS["ties"]())
    with pytest.raises(ValueError, match="is not a PEFT adapter folder"):
        taken("sft", SFTConfig(adapter=str(deltas["sft"])), MODEL)


def test_in_memory_a_delta_is_its_matrix(branches):
    base, _, deltas = branches
    found = in_memory(deltas["sft"], base)
    written = load_file(deltas["sft"] / FILE)
    name = "model.layers.0.mlp.up_proj.weight"
    rows = torch.arange(48).repeat_interleave(written[f"{name}.crow_indices"].diff())
    expected = torch.zeros(48, 32)
    expected[rows, written[f"{name}.col_indices"].long()] = written[f"{name}.values"]
    assert torch.equal(dense(found[name]), expected)

"""Model Stock and SCE where the two deltas make nothing of them: refused with the number, computed here by torch."""

import json
import math
import re
from pathlib import Path

import pytest
import torch
from conftest import train
from test_merge_apply import save_adapter, save_base

from paft.delta.statistics import read_adapter
from paft.merge.apply import merge_adapters
from paft.merge.methods import ModelStock, Sce


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("base"))


def adapters_of(base: Path, folder: Path, sizes: tuple[float, float]) -> dict[str, Path]:
    pairs = zip(("sft", "preference"), sizes, strict=True)
    return {name: save_adapter(base, folder / name, n, size) for n, (name, size) in enumerate(pairs, 1)}


def flat(folder: Path) -> torch.Tensor:
    deltas = read_adapter(folder)
    return torch.cat([deltas[name].dense().double().reshape(-1) for name in sorted(deltas)])


def test_model_stock_of_orthogonal_deltas_says_their_cosine_and_t(base, tmp_path):
    adapters = adapters_of(base, tmp_path, (0.1, 0.2))
    cosine = float(torch.nn.functional.cosine_similarity(*map(flat, adapters.values()), dim=0))

    with pytest.raises(ValueError, match=r"t = 2 cos / \(1 \+ cos\)") as refused:
        merge_adapters(base, adapters, ModelStock(), tmp_path / "out")

    stated = f"the cosine of these two is {cosine:.4f}, so t = {2 * cosine / (1 + cosine):.4f}"
    assert stated in str(refused.value) and abs(cosine) < 0.05
    assert "merge=linear" in str(refused.value) and not (tmp_path / "out").exists()


def test_sce_of_unequal_norms_says_them_and_the_weight(base, tmp_path):
    adapters = adapters_of(base, tmp_path, (0.02, 0.1))
    squares = [float(flat(folder).square().sum()) for folder in adapters.values()]

    with pytest.raises(ValueError, match="merge=sce weighs") as refused:
        merge_adapters(base, adapters, Sce(), tmp_path / "out")

    times = math.sqrt(squares[1] / squares[0])
    assert f"one {times:.3g} times the other" in str(refused.value)
    assert f"the sft delta would have a weight of {squares[0] / sum(squares):.2g}" in str(refused.value)
    assert not (tmp_path / "out").exists()
    merge_adapters(base, adapters, Sce(norm="branches"), tmp_path / "out")  # the remedy that it names


@pytest.mark.parametrize("share", [0.3, 0.36])
def test_the_bound_is_a_tenth(base, tmp_path, share):
    """Of the weights of SCE: norms of 0.3 and 1 give 0.083, of 0.36 and 1 0.115."""
    adapters = adapters_of(base, tmp_path, (0.1, 0.1))
    config = adapters["sft"] / "adapter_config.json"
    settings = json.loads(config.read_text())
    first, second = (float(flat(folder).norm()) for folder in adapters.values())
    config.write_text(json.dumps(settings | {"lora_alpha": settings["lora_alpha"] * share * second / first}))
    if share**2 / (1 + share**2) < 0.1:
        with pytest.raises(ValueError, match=r"would have a weight of 0\.083"):
            merge_adapters(base, adapters, Sce(), tmp_path / "out")
    else:
        merge_adapters(base, adapters, Sce(), tmp_path / "out")


def test_a_refused_merge_ends_neither_its_grid_nor_its_trainings(tmp_path):
    words = ("experiment=smoke", "-m", "merge=model_stock,linear", "logs=logs", "evaluate.limit=1")
    done = train(*words, cwd=tmp_path)

    assert done.returncode == 2 and "Traceback" not in done.stderr
    said = r"#0 .*: merge=model_stock keeps t = .* so t = -?0\.0\d+ and the result would be the base"
    assert len(re.findall(said, done.stderr)) == 2  # when it happened, and after the table
    records = [json.loads(f.read_text()) for f in (tmp_path / "logs/stages").glob("*/*/stage.json")]
    made = [(r["stage"], r["identity"]["config"].get("method", {}).get("type")) for r in records]
    assert {*made} >= {("preference", None), ("merge", "Linear"), ("evaluate", None)}
    assert ("merge", "ModelStock") not in made


def test_a_single_run_keeps_what_was_trained_for_a_refused_merge(tmp_path):
    done = train("experiment=smoke", "merge=model_stock", "logs=logs", cwd=tmp_path)

    assert done.returncode == 2 and "error: merge=model_stock keeps t" in done.stderr
    assert {p.parent.parent.name for p in tmp_path.glob("logs/stages/*/*/stage.json")} == {
        *("data", "sft", "reference", "preference")
    }

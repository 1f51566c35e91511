"""A merge of ours as a mergekit YAML: mergekit, and we ourselves, make the same model of it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from full_models import save_adapter, save_base, save_tuned, weights_of
from test_mergekit_yaml_against_mergekit import with_mergekit, with_paft

from paft.config import DType, Election, ElectOn, MergeConfig, Norm, Normalize, Rescale, Scope, Space
from paft.merge.__main__ import main
from paft.merge.apply import merge_adapters, variant
from paft.merge.mergekit.written import write_config
from paft.merge.methods import DareLinear, DareTies, Linear, Slerp, TaskArithmetic, Ties
from paft.merge.methods.breadcrumbs import Breadcrumbs, BreadcrumbsTies
from paft.merge.methods.della import Della, DellaLinear
from paft.merge.methods.ram import Ram, RamPlus
from paft.merge.methods.sce import Sce

WEIGHTS = {"weights": [0.7, 0.4], "scale": 0.9}
WRITTEN = [
    Linear(**WEIGHTS),
    Linear(weights=[2, 1], normalize=False),
    TaskArithmetic(**WEIGHTS),
    Slerp(t=0.3),
    Slerp(t=0.3, space=Space.full),
    Ties(**WEIGHTS, density=0.5, preference_density=0.25),
    Ties(density=0.3, normalize=Normalize.none, elect_on=ElectOn.unweighted),
    DareLinear(**WEIGHTS, density=1),
    DareTies(**WEIGHTS, density=1, normalize=Normalize.weights),
    Breadcrumbs(**WEIGHTS, density=0.5, preference_density=0.25, gamma=0.02),
    BreadcrumbsTies(**WEIGHTS, density=0.3, normalize=Normalize.weights),
    Della(**WEIGHTS, density=1),
    DellaLinear(**WEIGHTS, density=1, epsilon=0.1),
    Ram(epsilon=1e-3),
    RamPlus(r=0.3, alpha=0.4, epsilon=1e-3),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Path]]:
    """An adapter for SFT and a whole model for preference; a path with a mark that mergekit reads otherwise."""
    root = tmp_path_factory.mktemp("a+b")
    base = save_base(root / "base")
    return base, {"sft": save_adapter(base, root / "sft", 1), "preference": save_tuned(base, root / "dpo", 2)}


@pytest.mark.parametrize("method", WRITTEN, ids=variant)
def test_written_yaml_gives_our_merge(
    folders: tuple[Path, dict[str, Path]], tmp_path: Path, method: MergeConfig
) -> None:
    base, branches = folders
    merge_adapters(base, branches, method, tmp_path / "expected")
    write_config(tmp_path / "config.yml", base, branches, method)
    expected = weights_of(tmp_path / "expected")
    for run in (with_mergekit, with_paft):
        merged = run(tmp_path / "config.yml", tmp_path / run.__name__)
        assert merged.keys() == expected.keys()
        for name, tensor in expected.items():
            # the tolerance of test_yaml_against_mergekit
            torch.testing.assert_close(
                merged[name], tensor, rtol=0, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}"
            )


def test_rescale_by_density_is_written_as_weights(
    folders: tuple[Path, dict[str, Path]], tmp_path: Path
) -> None:
    base, branches = folders
    method = DareLinear(
        weights=[0.6, 0.4], density=0.5, preference_density=0.25, rescale=Rescale.inverse_density
    )
    write_config(tmp_path / "config.yml", base, branches, method)
    text = (tmp_path / "config.yml").read_text()
    assert "# what is dropped is drawn anew each time" in text
    assert "weight: 1.2" in text and "weight: 1.6" in text and "rescale: false" in text


def test_stored_type_of_the_base_is_that_of_the_file(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", dtype=torch.bfloat16)
    branches = {
        name: save_tuned(base, tmp_path / name, seed) for seed, name in enumerate(["sft", "preference"])
    }
    write_config(tmp_path / "config.yml", base, branches, TaskArithmetic())
    assert "out_dtype: bfloat16" in (tmp_path / "config.yml").read_text()
    write_config(tmp_path / "wide.yml", base, branches, TaskArithmetic(dtype=DType.float32))
    assert "out_dtype: float32" in (tmp_path / "wide.yml").read_text()
    with pytest.raises(ValueError, match="is there already"):
        write_config(tmp_path / "wide.yml", base, branches, TaskArithmetic())


MISSING: list[tuple[MergeConfig, str]] = [
    (Ties(scope=Scope.all), "scope=global"),
    (Ties(election=Election.count), "election=count"),
    (Ties(elect_on=ElectOn.unweighted, weights=[2, 1]), "elect_on=unweighted"),
    (Ties(normalize=Normalize.count), "normalize=count"),
    (Ties(norm=Norm.branches), "norm=branches"),
    (Ties(space=Space.core), "space=core"),
    (Linear(weights_by={"q_proj": [1, 0]}), r"weights_by=\{'q_proj': \[1, 0\]\}"),
    (Ram(weights=[1, 0.5]), r"weights=\[1, 0.5\]"),
    (Sce(), "method sce"),
    (DareTies(rescale=Rescale.inverse_density, normalize=Normalize.weights), "rescale=inverse_density"),
]


@pytest.mark.parametrize(("method", "option"), MISSING, ids=lambda value: str(value)[:40])
def test_what_mergekit_has_not_is_refused_by_name(
    folders: tuple[Path, dict[str, Path]], tmp_path: Path, method: MergeConfig, option: str
) -> None:
    with pytest.raises(ValueError, match=rf"no mergekit file says {option} as it is meant here: "):
        write_config(tmp_path / "config.yml", *folders, method)
    assert not (tmp_path / "config.yml").exists()


def test_command_line_writes_and_runs_a_yaml(
    folders: tuple[Path, dict[str, Path]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, branches = folders
    config, out = tmp_path / "config.yml", tmp_path / "out"
    paths = [f"--{name}={folder}" for name, folder in {"base": base, **branches}.items()]
    main(["--method=ties", "--density=0.5", *paths, f"--write-config={config}"])
    main([str(config), f"--out={out}"])
    main(["--method=ties", "--density=0.5", *paths, f"--out={tmp_path / 'direct'}", "--no-prove"])
    printed = capsys.readouterr().out
    assert "mergekit ties of " in printed and "logits of the folder are within" in printed
    direct = weights_of(tmp_path / "direct")
    for name, tensor in weights_of(out).items():
        torch.testing.assert_close(tensor, direct[name], rtol=0, atol=1e-7)
    refusals: dict[str, Any] = {"is missing": config.with_name("none.yml"), "must be new or empty": config}
    for path in refusals.values():
        with pytest.raises(SystemExit) as error:
            main([str(path), f"--out={out}"])
        assert error.value.code == 2
    said = capsys.readouterr().err
    assert said.count("error: ") == 2 and "must be new or empty" in said and "Traceback" not in said

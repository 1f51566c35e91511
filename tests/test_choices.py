"""Choices of the groups go together, ask only for what the cell reads, and else say what does not go with what."""

import json
import re
from pathlib import Path

import pytest
from conftest import ROOT, train
from omegaconf import OmegaConf
from test_config import refused

from paft.command.choices import schemas, with_setting
from paft.config import HubSource, LocalModel
from paft.graph.build import build

CONF = ROOT / "conf"
EXPERIMENTS = sorted(
    str(path.relative_to(CONF / "experiment").with_suffix("")) for path in CONF.glob("experiment/**/*.yaml")
)
GOLDEN = json.loads((Path(__file__).parent / "golden/experiments.json").read_text())
"""Overrides of each experiment, and of a cell of its grids -> the key of its evaluation."""
OTHERS = {
    "data=jsonl": ("data.sft.path=a.jsonl", "data.preference.path=b.jsonl"),
    "model=local": ("model.path=folder",),
    "preference=orpo": (),
    "merge=slerp": (),
}
"""A choice of the user's own in a group -> what it asks for."""


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n')
    return path


# --- only what the cell reads is asked for ------------------------------------------------------------


@pytest.mark.parametrize("branch", ["sft", "preference"])
def test_a_branch_alone_asks_for_its_own_rows_alone(compose, rows, branch):
    cell = build(compose(f"paradigm={branch}", "data=jsonl", f"data.{branch}.path={rows}"))

    assert [s.name for s in cell.walk() if s.name in ("sft", "preference")] == [branch]
    other = "preference" if branch == "sft" else "sft"
    message = refused(compose, f"paradigm={branch}", "data=jsonl", f"data.{other}.path={rows}")
    assert message.startswith(f"data.{branch}.path must be given; add data.{branch}.path=... ")
    assert f"data.{other}" not in message


@pytest.mark.parametrize("paradigm", ["parallel", "sequential"])
def test_both_branches_ask_for_both(compose, rows, paradigm):
    message = refused(compose, f"paradigm={paradigm}", "data=jsonl", f"data.sft.path={rows}")
    assert message.startswith("data.preference.path must be given")


def test_the_base_asks_for_rows_where_a_task_is_scored_on_them(compose, rows):
    assert len(list(build(compose("paradigm=base", "data=jsonl")).walk())) == 1
    tasks = ("paradigm=base", "data=jsonl", "evaluate=gsm8k_exact", "data.sft.held_out=1")
    assert refused(compose, *tasks).startswith("data.sft.path must be given; add data.sft.path=... ")
    assert [s.name for s in build(compose(*tasks, f"data.sft.path={rows}")).walk()] == ["data", "evaluate"]


def test_a_branch_alone_has_the_key_it_has_with_both_files(compose, rows):
    both = (f"data.sft.path={rows}", f"data.preference.path={rows}")
    for branch in ("sft", "preference"):
        words = (f"paradigm={branch}", "data=jsonl")
        assert build(compose(*words, f"data.{branch}.path={rows}")).key == build(compose(*words, *both)).key


@pytest.mark.parametrize("group", ["preference", "merge"])
def test_a_group_that_no_stage_reads_may_be_taken_away(compose, group):
    cell = build(compose("paradigm=sft", f"~{group}"))

    assert cell.key == build(compose("paradigm=sft")).key
    assert refused(compose, f"~{group}").startswith(f"{group} must be given; add {group}=... ")


def test_data_of_ones_own_may_have_one_source(tmp_path):
    source = "{repo: org/rows, revision: 0123456789abcdef0123456789abcdef01234567}"
    (tmp_path / "own/data").mkdir(parents=True)
    (tmp_path / "own/data/mine.yaml").write_text(
        f"defaults: [/schema@_here_: hub_data, _self_]\nname: mine\nsft: {source}\n"
    )
    words = ("--config-dir", "own", "data=mine", "plan=true")
    alone = train("paradigm=sft", *words, cwd=tmp_path)
    assert alone.returncode == 0, alone.stderr
    both = train(*words, cwd=tmp_path)
    assert both.returncode == 2 and "error: data.preference must be given" in both.stderr


def test_a_commit_is_asked_of_every_source_that_names_a_repository():
    with pytest.raises(ValueError, match="must be a 40-digit commit of org/rows"):
        HubSource(repo="org/rows", revision="")
    assert HubSource(repo="", revision="").repo == ""  # of what no stage reads


def test_an_unread_branch_need_not_divide_among_the_devices(compose):
    words = ("trainer.devices=3", "strategy=ddp", "sft.global_batch_size=9")

    assert compose("paradigm=sft", *words).sft.global_batch_size == 9
    assert "preference.global_batch_size" in refused(compose, *words)


# --- experiments and other choices --------------------------------------------------------------------


@pytest.mark.parametrize("choice", OTHERS)
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_goes_with_a_choice_of_the_users_own(compose, experiment, choice):
    config = compose(f"experiment={experiment}", choice, *OTHERS[choice])

    group, _, name = choice.partition("=")
    assert type(getattr(config, group)) is schemas(group)[name]


@pytest.mark.parametrize("words", GOLDEN)
def test_keys_of_experiments_against_golden(compose, words):
    # one key of a cell's evaluation holds every stage before it
    assert build(compose(*words.split())).key == GOLDEN[words]


def test_smoke_reads_the_users_rows_where_they_are_given(compose, rows):
    given = ("data=jsonl", f"data.sft.path={rows}", f"data.preference.path={rows}")
    data = compose("experiment=smoke", *given).data
    assert data.sft.path == str(rows) and data.sft.max_length == 1024
    assert compose("experiment=smoke").data.sft.num_rows == 64


def test_merged_curve_goes_without_other_callbacks(compose):
    assert set(compose("experiment=study/merged_curve", "callbacks=none").callbacks) == {
        "merge_then_evaluate"
    }


def grids_with(key: str) -> list[str]:
    """The experiments whose grids or searches set a key."""
    found = []
    for experiment in EXPERIMENTS:
        file = OmegaConf.load(CONF / f"experiment/{experiment}.yaml")
        sweeper = OmegaConf.select(file, "hydra.sweeper") or {}
        grids = [*(sweeper.get("grids") or {}).values(), sweeper.get("params") or {}]
        found += [experiment] * any(key in map(str, grid) for grid in grids)
    return found


@pytest.mark.parametrize("key", ["merge.density", "merge.election"])
def test_a_grid_says_what_does_not_go_with_the_merge_that_was_given(tmp_path, key):
    experiments = grids_with(key)
    assert experiments
    for experiment in experiments:
        done = train(f"experiment={experiment}", "merge=linear", "plan=true", cwd=tmp_path)
        assert done.returncode == 2 and "Traceback" not in done.stderr
        assert f"is a setting of {', '.join(with_setting(key))}" in " ".join(done.stderr.split())
        assert "merge=linear" in done.stderr and done.stderr.count("it has:") <= 1


def test_a_key_of_another_choice_is_named_with_that_choice(compose):
    assert "merge.density is a setting of merge=ties, merge=dare, merge=dare_linear" in refused(
        compose, "merge=linear", "merge.density=.2"
    )
    assert "preference.loss is a setting of preference=dpo" in refused(
        compose, "preference=orpo", "preference.loss=ipo"
    )
    assert "data.sft.num_rows is a setting of data=demo, data=smoke" in refused(
        compose, "data=zephyr", "data.sft.num_rows=3"
    )
    assert "is a setting of" not in refused(compose, "merge.foo=1")


# --- bases of one's own -------------------------------------------------------------------------------


@pytest.fixture
def bases(tmp_path: Path) -> list[Path]:
    """Two folders that a plan takes for models."""
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
        (folder / "config.json").write_text('{"model_type": "llama", "hidden_size": 8}')
        (folder / "model.safetensors").write_bytes(folder.name.encode())
    return folders


def test_a_grid_over_folders_has_a_base_each_under_the_folders_name(tmp_path, bases):
    paths = ",".join(map(str, bases))
    done = train("-m", "model=local", f"model.path={paths}", "paradigm=base", "plan=true", cwd=tmp_path)

    assert done.returncode == 0, done.stderr
    assert "2 cells" in done.stdout
    assert set(re.findall(r"\b(one|two)\b on tool_call", done.stdout)) == {"one", "two"}


def test_a_grid_over_a_base_of_ours_and_one_of_the_users_files(tmp_path, bases):
    (tmp_path / "mine/model").mkdir(parents=True)
    (tmp_path / "mine/model/own.yaml").write_text(
        f"defaults: [/schema@_here_: local_model, _self_]\npath: {bases[0]}\n"
    )
    words = ("--config-dir", "mine", "-m", "model=tiny,own", "paradigm=base", "plan=true")
    done = train(*words, cwd=tmp_path)

    assert done.returncode == 0, done.stderr
    assert "2 cells" in done.stdout and "one on tool_call" in done.stdout


def test_a_grid_that_mixes_kinds_of_bases_says_how_to_write_it(tmp_path, bases):
    done = train("-m", "model=tiny,local", f"model.path={bases[0]}", "plan=true", cwd=tmp_path)

    assert done.returncode == 2
    assert "model.path is a setting of model=local" in done.stderr
    assert "model=local model.path=DIR1,DIR2" in done.stderr and "--config-dir FOLDER" in done.stderr


def test_schema_of_every_model_file_is_known():
    assert schemas("model")["local"] is LocalModel and None not in schemas("model").values()

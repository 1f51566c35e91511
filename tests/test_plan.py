"""`plan=true`: what would run, what is there, how long; nothing heavy is loaded, nothing is done."""

import subprocess
import sys
from dataclasses import replace

import pytest
from conftest import train
from synthetic_store import PAFT, fill, with_lambda

from paft.config import DareTies, Paradigm
from paft.graph import build
from paft.plan import estimate, past_seconds, show_plan, units_of
from paft.stage import Store, write_json

CELL = with_lambda(PAFT, 1e-4)


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")


def lines(output: str) -> dict[str, list[str]]:
    """Key -> cells of its line in the printed table."""
    rows = [
        [c.strip() for c in line.strip("│").split("│")]
        for line in output.splitlines()
        if line.startswith("│")
    ]
    return {row[1]: row for row in rows}


def plan(capsys, *configs) -> tuple[dict[str, list[str]], str]:
    show_plan([(c, build(c)) for c in configs])
    text = capsys.readouterr().out
    return lines(text), text


def test_plan_of_an_empty_store_lists_every_stage_as_a_miss(tmp_path, capsys):
    config = replace(CELL, store=str(tmp_path / "stages"))

    table, text = plan(capsys, config)

    assert {key: row[0] for key, row in table.items()} == {s.key: s.name for s in build(config).walk()}
    assert {(row[2], row[3]) for row in table.values()} == {("miss", "?")}
    assert "6 of 6 stages to run" in text and "6 without a finished run" in text
    assert not (tmp_path / "stages").exists()


def test_plan_of_a_full_store_is_all_hits(tmp_path, capsys):
    config = replace(CELL, store=str(tmp_path))
    fill(tmp_path, [config])

    table, text = plan(capsys, config)

    assert {row[2] for row in table.values()} == {"hit"}
    assert "0 of 6 stages to run" in text


def test_plan_estimates_from_like_stages(tmp_path, capsys):
    fill(tmp_path, [CELL])
    for stage in build(CELL).walk():
        _set_seconds(Store(tmp_path), stage, 12.0)
    fresh = replace(with_lambda(PAFT, 1e-3), store=str(tmp_path), merge=DareTies())

    table, text = plan(capsys, fresh)

    cell = {s.name: s for s in build(fresh).walk()}
    assert [table[cell[name].key][2] for name in ("sft", "preference", "merge")] == ["miss", "hit", "miss"]
    # the same rows, hence the same 12 seconds
    assert [table[cell[name].key][3] for name in ("sft", "merge", "evaluate")] == ["12 s"] * 3
    assert "3 of 6 stages to run, about 36 s" in text


def _set_seconds(store: Store, stage, seconds: float) -> None:
    record = store.record(stage)
    record["run"]["seconds"] = seconds
    write_json(store.path(stage) / "stage.json", record)


def test_estimate_scales_with_the_rows_trained_on(tmp_path):
    fill(tmp_path, [CELL])
    sft = next(s for s in build(CELL).walk() if s.name == "sft")
    _set_seconds(Store(tmp_path), sft, 10.0)
    double = replace(CELL, sft=replace(CELL.sft, epochs=2))

    longer = next(s for s in build(double).walk() if s.name == "sft")

    assert estimate(longer, past_seconds(tmp_path)) == pytest.approx(20.0)
    assert units_of(longer.identity, {}) == 2 * units_of(sft.identity, {})


def test_damaged_or_unfinished_folders_do_not_stop_a_plan(tmp_path, capsys):
    config = replace(CELL, store=str(tmp_path))
    fill(tmp_path, [config])
    for name in ("cut", "empty"):
        folder = tmp_path / "sft" / name
        folder.mkdir()
        (folder / "stage.json").write_text('{"stage"' if name == "cut" else "[]")

    assert "0 of 6" in plan(capsys, config)[1]


def test_stages_behind_a_finished_evaluation_are_not_needed(tmp_path, capsys):
    config = replace(CELL, store=str(tmp_path))
    (cell,) = fill(tmp_path, [config])
    Store(tmp_path).drop(cell.inputs["model"])

    table, text = plan(capsys, config)

    assert table[cell.inputs["model"].key][2] == "not needed"
    assert "0 of 6 stages to run" in text


def test_grid_shows_shared_stages_once(tmp_path, capsys):
    configs = [
        replace(with_lambda(PAFT, w), merge=m, store=str(tmp_path))
        for w in (1e-4, 1e-3)
        for m in (PAFT.merge, DareTies())
    ]

    table, text = plan(capsys, *configs)

    names = [row[0] for row in table.values()]
    assert {n: names.count(n) for n in names} == {
        "data": 2,
        "sft": 2,
        "preference": 1,
        "merge": 4,
        "evaluate": 4,
    }
    assert "4 cells" in text and "13 of 13 stages to run" in text


@pytest.mark.parametrize("paradigm", Paradigm)
def test_every_paradigm_can_be_planned(tmp_path, capsys, paradigm):
    table, _ = plan(capsys, replace(CELL, paradigm=paradigm, store=str(tmp_path)))

    stages = {"base": 1, "sft": 4, "preference": 4}
    assert len(table) == stages.get(paradigm.value, 6)


# --- on the command line ------------------------------------------------------------------------------


def test_plan_on_the_command_line_runs_and_loads_nothing_heavy(tmp_path):
    code = (
        "import sys; from paft.sweep import main\n"
        "sys.argv = ['train.py', 'plan=true', 'experiment=smoke', 'logs=out']\n"
        "assert main() == 0\n"
        "print('LOADED', *sorted(m for m in sys.modules if '.' not in m))"
    )

    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )

    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.partition("LOADED")[2].split())
    heavy = {
        "torch",
        "transformers",
        "lightning",
        "peft",
        "datasets",
        "lm_eval",
        "wandb",
        "pandas",
        "matplotlib",
    }
    assert loaded & heavy == set()
    assert "6 of 6 stages to run" in done.stdout
    assert not (tmp_path / "out" / "stages").exists()


@pytest.mark.parametrize("words", [(), ("-m", "lambda=1e-4,1e-3", "merge=ties,dare")], ids=["cell", "grid"])
def test_plan_of_cell_and_grid_on_the_command_line(tmp_path, words):
    done = train("plan=true", "experiment=smoke", *words, "logs=out", cwd=tmp_path, COLUMNS="200")

    assert done.returncode == 0, done.stderr
    assert len(lines(done.stdout)) == (13 if words else 6)
    assert not (tmp_path / "out" / "stages").exists()

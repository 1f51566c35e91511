"""Every benchmark runs in its short form; rows of several processors stand beside each other."""

import csv
import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "benchmarks"
SCRIPTS = sorted(path for path in BENCHMARKS.glob("*.py") if path.stem != "measure")
OTHER = "Another Processor model 1"


def run(script: Path, *words: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(script), *map(str, words)]
    return subprocess.run(command, env=os.environ | variables, capture_output=True, text=True)


@pytest.fixture
def measure(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("measure")


@pytest.fixture
def progress(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("harness.progress")


# --- every script ------------------------------------------------------------------------------------


def results() -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in BENCHMARKS.glob("*.json")}


@pytest.mark.slow
@pytest.mark.parametrize(
    "script", [path for path in SCRIPTS if path.stem != "gpu"], ids=lambda path: path.stem
)
def test_quick_form_publishes_rows_into_the_folder_given(script: Path, tmp_path: Path) -> None:
    before = results()

    done = run(script, "--quick", "--out", tmp_path)

    assert done.returncode == 0, done.stderr
    files = [json.loads(path.read_text()) for path in tmp_path.glob("*.json")]
    assert files and all(file["rows"] for file in files)
    for file in files:
        assert {row["processor"] for row in file["rows"]} == set(file["machines"])
        assert all(row["what"] and row["measured"] for row in file["rows"])
    assert results() == before, "what the repository holds is of whole runs"
    # every part that was announced was run
    parts = re.findall(rf"^{script.stem} (\d+)/(\d+): .*; about [\d.]+ min left$", done.stderr, re.MULTILINE)
    assert [int(number) for number, _ in parts] == [*range(1, int(parts[0][1]) + 1)]


@pytest.mark.parametrize("script", [*SCRIPTS, BENCHMARKS / "measure.py"], ids=lambda path: path.stem)
def test_help_prints_usage(script: Path) -> None:
    done = run(script, "--help")

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: {script.name}") and "--out" in done.stdout


def test_make_bench_runs_every_script_and_then_the_table() -> None:
    recipe = subprocess.run(
        ["make", "-n", "bench"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout

    (listed,) = re.findall(r"for script in (.*?);", recipe)
    apart = {BENCHMARKS / "gpu.py", BENCHMARKS / "leaderboard.py"}
    assert listed.split() == [str(path.relative_to(ROOT)) for path in sorted({*SCRIPTS} - apart, key=str)]
    assert recipe.index(listed) < recipe.index("benchmarks/measure.py;")


# --- options and progress ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"ROUNDS": "0"}, "it takes a number of at least 1, got '0'"),
        ({"ROUNDS": "few"}, "it takes a number of at least 1, got 'few'"),
        ({"SFT_ROWS": "absent.jsonl"}, "there is no file 'absent.jsonl'"),
    ],
)
def test_what_make_bench_passes_on_is_refused_with_a_sentence(
    variables: dict[str, str], message: str
) -> None:
    done = run(BENCHMARKS / "l1.py", "--quick", **variables)

    assert done.returncode == 2
    assert message in done.stderr and "Traceback" not in done.stderr


def test_a_disk_without_room_is_refused_with_a_sentence(tmp_path: Path) -> None:
    done = run(BENCHMARKS / "merge_7b.py", "--layers", "1000000", "--folder", tmp_path)

    assert done.returncode == 2
    assert "layers need" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--methods", "ties,best"], "there is no method 'best'; there are slerp, task_arithmetic, ties"),
        (["--methods", "fisher", "--layers", "500000"], "500000 layers need"),
    ],
)
def test_methods_of_the_7b_shape_are_refused_with_a_sentence(
    tmp_path: Path, words: list[str], message: str
) -> None:
    done = run(BENCHMARKS / "merge_7b.py", "--folder", tmp_path, *words)

    assert done.returncode == 2
    assert message in done.stderr and "Traceback" not in done.stderr


def test_whole_runs_write_into_the_repository_and_quick_ones_nowhere(progress, monkeypatch) -> None:
    for words, out in ([], BENCHMARKS), (["--quick"], None), (["--quick", "--out", "x"], Path("x")):
        monkeypatch.setattr(sys, "argv", ["script.py", *words])
        assert progress.parse(progress.new_parser("what it does")).out == out


def test_estimate_goes_by_what_the_parts_took(progress, capsys) -> None:
    parts = progress.Progress("bench", [60, 120, 180])
    parts.next("first")
    assert capsys.readouterr().err == "bench 1/3: first; about 6.0 min left\n"

    parts.started -= 30  # the first part took half of what was expected
    assert parts.left() == pytest.approx(150, rel=0.01)
    for what in ("second", "third"):
        parts.next(what)
    with pytest.raises(IndexError, match="bench announced 3 parts; fourth is one more"):
        parts.next("fourth")


# --- the table ---------------------------------------------------------------------------------------


def test_table_of_an_empty_folder_says_what_to_run(tmp_path: Path) -> None:
    done = run(BENCHMARKS / "measure.py", "--out", tmp_path)

    assert done.returncode == 2
    assert done.stderr == f"error: {tmp_path} holds no results; run the benchmarks first: make bench\n"


def test_processor_has_a_name_that_a_table_can_ask_for(measure) -> None:
    name = measure.processor()

    assert name and name == name.strip()
    assert not set(name) & set(",;|"), "they separate the conditions of a table in the documentation"


def test_a_benchmark_replaces_its_rows_of_this_processor_only(measure, tmp_path: Path) -> None:
    path = tmp_path / "merge.json"
    measure.publish(measure.Report("merge", [measure.Row("ties", "2 s")]), tmp_path)
    first = json.loads(path.read_text())
    first["rows"].append({**first["rows"][0], "processor": OTHER})
    first["machines"][OTHER] = {"cores": 4}
    path.write_text(json.dumps(first))

    measure.publish(measure.Report("merge", [measure.Row("ties", "1 s")]), tmp_path)

    found = measure.read_reports(tmp_path)["merge"]
    assert [(row.processor, row.measured) for row in found] == [(OTHER, "2 s"), (measure.processor(), "1 s")]
    assert set(json.loads(path.read_text())["machines"]) == {OTHER, measure.processor()}


def test_csv_keeps_other_processors_and_benchmarks_that_were_not_run(measure, tmp_path: Path) -> None:
    path = tmp_path / "benchmarks.csv"
    row = measure.Row
    measure.write_csv(path, {"merge": [row("old", "2 s", processor=OTHER)]})
    measure.write_csv(path, {n: [row("old", "2 s", processor="Here")] for n in ("merge", "step")})

    measure.write_csv(path, {"merge": [row("new", "1 s", ratio=0.5, at_most=1, processor="Here")]})

    with path.open(newline="") as file:
        found = [[line[c] for c in ("processor", "benchmark", "what")] for line in csv.DictReader(file)]
    assert found == [[OTHER, "merge", "old"], ["Here", "merge", "new"], ["Here", "step", "old"]]


def test_a_file_of_other_columns_is_left_as_it_is(tmp_path: Path, measure) -> None:
    path = tmp_path / "cells.csv"
    path.write_text("key,average\na,1\n")
    measure.publish(measure.Report("merge", [measure.Row("ties", "2 s")]), tmp_path)

    done = run(BENCHMARKS / "measure.py", "--out", tmp_path, "--csv", path)

    assert done.returncode == 2 and "not those of the benchmarks' table" in done.stderr
    assert path.read_text() == "key,average\na,1\n"

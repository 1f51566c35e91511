"""Every command that the program or its help prints does what it says, as it is printed."""

import ast
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT, train

from paft.command.words import one_cell, train_command
from paft.report.__main__ import main as report
from paft.tracking.run import upload_command

COMMAND = re.compile(
    r"python train\.py[^`'\"\n]*|python -m paft[^`'\"\n]*|wandb sync|\bmake (?!room)[a-z]\S*\w"
)
TESTED = {"python -m paft.report docs", "wandb sync", "make study", "make study-gsm8k-hh"}
"""Beside those of `train_command`, which builds every command of train.py."""
PROGRAMS = tuple(
    f"python -m paft.{name}" for name in ("report", "merge", "export", "chat", "judge", "judge run", "study")
)
"""What argparse calls its programs."""


def printed_texts() -> Iterator[str]:
    """Every text of the code that is no docstring."""
    for path in (ROOT / "src/paft").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
                yield node.value


def help_lines(tmp_path: Path) -> list[str]:
    said = train("--help", cwd=tmp_path).stdout
    shown = [line.strip() for line in said.splitlines() if line.strip().startswith("python train.py")]
    return [re.split(r" {3,}", line)[0] for line in shown] + re.findall(r"`(python train\.py[^`]*)`", said)


def test_no_command_is_printed_that_no_test_runs():
    found = {match.strip() for text in printed_texts() for match in COMMAND.findall(text)}

    assert found - set(PROGRAMS) == TESTED


def test_command_of_one_cell_is_quoted_for_a_shell(monkeypatch):
    monkeypatch.setattr("sys.argv", ["/opt/paft/train.py", "-m"])
    words = one_cell(["experiment=[a,b]", "evaluate.split=validation", "+x={y: 1}"], "evaluate.split=test")

    assert train_command(words, ["my conf"]) == (
        "python /opt/paft/train.py --config-dir 'my conf' 'experiment=[a,b]' '+x={y: 1}' "
        "evaluate.split=test hydra.mode=RUN"
    )


@pytest.mark.slow
def test_commands_of_the_help_go_as_they_are_printed(tmp_path, run_printed):
    commands = help_lines(tmp_path)
    assert len(commands) >= 6 and any("--cfg job" in command for command in commands)
    for command in commands:
        # what trains a real model is composed and planned, and nothing is downloaded
        trains = not re.search(r"--|plan=true|experiment=smoke", command)
        done = run_printed(f"{command} plan=true" if trains else command, cwd=tmp_path)
        assert done.returncode == 0, f"{command}: {done.stderr}"


def test_store_without_evaluations_names_the_command_that_fills_it(tmp_path, capsys, run_printed):
    with pytest.raises(SystemExit, match="2"):
        report(["--store", str(tmp_path / "my stages"), "compare", "a", "b"])

    said = capsys.readouterr().err
    (command,) = re.findall(r"run `(python train\.py [^`]*)`", said)
    done = run_printed(f"{command} plan=true", cwd=tmp_path)
    assert done.returncode == 0 and "my stages" in done.stdout, done.stderr
    assert "`make study`" in said


def test_page_whose_tables_are_old_names_the_command_that_fills_them(tmp_path, capsys, run_printed):
    (tmp_path / "numbers.csv").write_text("a,b\n1,2\n")
    page = tmp_path / "my page.md"
    page.write_text("<!-- table numbers.csv: a, b | a=* -->\n<!-- end -->\n")
    with pytest.raises(SystemExit, match="2"):
        report(["docs", str(page), "--check"])

    (command,) = re.findall(r"run `(.*)`", capsys.readouterr().err)
    assert run_printed(command, cwd=tmp_path).returncode == 0
    report(["docs", str(page), "--check"])


def test_upload_of_offline_runs_finds_them_in_any_folder(tmp_path, run_printed):
    runs = [tmp_path / f"my logs/wandb/offline-run-{n}" for n in (1, 2)]
    for folder in runs:
        folder.mkdir(parents=True)

    command = upload_command(tmp_path / "my logs")
    assert command.startswith("wandb sync ")
    done = run_printed(command.replace("wandb sync", "printf '%s\\n'"), cwd=tmp_path)
    assert sorted(done.stdout.splitlines()) == sorted(map(str, runs))


# --- make -----------------------------------------------------------------------------------------------

MAKE = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


@MAKE
def test_make_help_lists_every_target(run_printed):
    # under `make test`, a make within would also name the folder it enters
    done = run_printed("make --no-print-directory help", cwd=ROOT)

    targets = re.findall(r"^([\w-]+):.*## ", (ROOT / "Makefile").read_text(), re.M)
    assert [line.split()[0] for line in done.stdout.splitlines()] == targets
    assert "study-gsm8k-hh" in targets


@MAKE
@pytest.mark.parametrize("target", sorted(c for c in TESTED if c.startswith("make")))
def test_targets_that_are_named_can_be_made(run_printed, target):
    done = run_printed(f"{target} --dry-run", cwd=ROOT)
    assert done.returncode == 0 and "train.py" in done.stdout, done.stderr

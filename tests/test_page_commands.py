"""Every command of README and docs that names a cell is composed into a typed config, if it leaves nothing open."""

import re
import shlex

import pytest
from conftest import ROOT
from hydra.core.override_parser.overrides_parser import OverridesParser

from paft.command.compose import with_new_tasks

PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
OPEN = re.compile(r"\.\.\.|\bDIR|FOLDER|NAME|<|--help|--cfg")
"""What stands for something of the reader's, and what has tests of its own."""


def commands() -> list[str]:
    found: list[str] = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        found += re.findall(r"^    (python train\.py.*)$", text, re.M)
        found += re.findall(r"`(python train\.py[^`]*)`", text)
        cells = re.findall(r"^    python -m paft\.(?:export|chat) (.*)$", text, re.M)
        found += [f"python train.py {re.sub(r' --.*', '', words)}" for words in cells]
    bare = dict.fromkeys(re.sub(r" +#.*", "", command) for command in found)
    return [command for command in bare if not OPEN.search(command)]


def of_one_cell(command: str) -> list[str]:
    """The overrides without Hydra's own, the first of every list of values."""
    words = shlex.split(command, comments=True)[2:]
    own = [word for word in words if not re.match(r"[~+]*hydra\W|-", word)]
    cell = []
    for word, parsed in zip(own, OverridesParser.create().parse_overrides(own), strict=True):
        if parsed.is_interval_sweep():
            cell.append(f"{parsed.key_or_group}={parsed.value().start}")
        elif parsed.is_sweep_override():
            cell.append(f"{parsed.key_or_group}={next(parsed.sweep_string_iterator())}")
        else:
            cell.append(word)
    return cell


def test_pages_have_commands():
    assert len(commands()) > 30


@pytest.mark.parametrize("command", commands())
def test_command_of_a_page_is_composed(compose, command):
    compose(*with_new_tasks([*of_one_cell(command)]))

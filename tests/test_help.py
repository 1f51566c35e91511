"""`--help TOPIC` says of every key what it means, what it may be and what it is by default."""

import re
import subprocess
import sys
from dataclasses import fields, is_dataclass

import pytest
from conftest import train

from paft.command.choices import groups, schemas
from paft.command.help import show_help, topics
from paft.command.meanings import allowed, meaning, own_doc, type_name, without_meaning
from paft.config import DemoData, L1Config, RunConfig, SFTConfig, StrategyConfig, TrainerConfig
from paft.config.checks import TYPES as CONFIGS
from paft.merge.methods import Ties

OURS = sorted((t for t in CONFIGS.values() if is_dataclass(t) and t.__module__.startswith("paft.")), key=repr)


@pytest.fixture
def said(capsys):
    def of(topic: str) -> str:
        show_help(topic)
        return re.sub(r"\s+", " ", capsys.readouterr().out)

    return of


@pytest.mark.parametrize("kind", OURS, ids=lambda kind: kind.__name__)
def test_every_setting_says_what_it_means(kind):
    assert without_meaning(kind) == []


def test_every_group_of_settings_says_what_it_is():
    for group in groups():
        for schema in schemas(group).values():
            assert schema is None or own_doc(schema), schema


def test_meaning_is_the_text_below_the_field_and_of_its_choices():
    assert meaning(SFTConfig, "warmup_ratio").startswith("Share of all steps over which the learning rate")
    assert meaning(L1Config, "of").startswith("`delta`: sum of |alpha/rank * B A|")
    assert meaning(Ties, "density") == "Share of each delta that is kept; 1 keeps everything."
    assert meaning(Ties, "election").startswith(
        "How the sign of a position is elected. Sign of a position by"
    )
    assert meaning(StrategyConfig, "name").startswith("How several devices share a training")


def test_range_is_that_of_the_check():
    assert allowed(Ties, "density") == "in (0, 1]" == allowed(Ties, "sft_density")
    assert allowed(TrainerConfig, "micro_batch_size") == "positive"
    assert allowed(L1Config, "weight") == "a finite number, at least 0"
    assert allowed(L1Config, "of") == "delta | factors"
    assert allowed(TrainerConfig, "progress_bar") == "true | false"
    assert allowed(RunConfig, "logs") == ""
    source = next(f for f in fields(DemoData) if f.name == "sft").default_factory()
    assert allowed(type(source), "max_prompt_length") == "between 1 and max_length - 1"


def test_type_is_in_plain_words():
    assert type_name(L1Config, "target_sparsity") == "number or null"
    assert type_name(Ties, "weights") == "list of number"
    assert type_name(TrainerConfig, "devices") == "whole number"
    assert type_name(L1Config, "of") == ""


@pytest.mark.parametrize(
    ("topic", "says"),
    [
        ("merge", "merge=ties Trim to `density` by magnitude"),
        ("merge", "merge.t (of slerp) [number; in [0, 1]; default 0.5]"),
        (
            "merge=linear",
            "merge.weights [list of number; two numbers: [sft, preference], not summing to 0; default [0.5, 0.5]] Of",
        ),
        (
            "sft.l1",
            "sft.l1.target_sparsity [number or null; between 0 and 1, or null; default null] Move lambda",
        ),
        ("sft.lr", "sft.lr [number; positive; default 0.002] Learning rate"),
        ("lambda", "lambda [number; a finite number, at least 0; default 0.0001]"),
        ("seed", "seed [whole number; at least 0 and below 2^32; default 42] Of the order of rows"),
        (
            "paradigm",
            "[parallel | sequential | sft | preference | base | joint | preference_first | expo; default parallel]",
        ),
        ("data=jsonl", "data.template [chatml | zephyr | llama3 | tokenizer; default chatml]"),
        ("data=smoke.sft", "data.sft.num_rows [whole number; positive; default 64]"),
        (
            "evaluate.tasks.honesty.rows",
            "evaluate.tasks.honesty.rows [sft | preference | null; default null]",
        ),
        ("model=local", "model.path [text; must be given]"),
    ],
)
def test_topic_has_meaning_range_and_default(said, topic, says):
    assert says in said(topic)


@pytest.mark.parametrize("topic", ["merg", "merge=tied", "merge.densty", "sft.l1.foo", "trainer.devices.x"])
def test_unknown_topic_names_those_there_are(topic):
    with pytest.raises(ValueError, match=r"there is no help on '.*; there is on "):
        show_help(topic)


def test_topics_stand_behind_the_flag():
    assert topics(["--help", "merge=ties", "sft.l1"]) == ["merge=ties", "sft.l1"]
    assert topics(["experiment=smoke", "--help"]) == topics(["merge=ties", "-m"]) == topics(["--help"]) == []


def test_help_of_every_group_and_choice_is_written(said):
    for group in groups():
        assert f"{group}=" in said(group)
        for choice in schemas(group):
            assert f"{group}." in said(f"{group}={choice}") or group == "logger"


def test_help_on_the_command_line_is_known_and_loads_no_torch(tmp_path):
    assert "--help merge=ties" in train("--help", cwd=tmp_path).stdout
    done = train("--help", "trainer.devices", cwd=tmp_path)
    assert done.returncode == 0 and "Devices of each node" in done.stdout
    wrong = train("--help", "trainr", cwd=tmp_path)
    assert wrong.returncode == 2 and wrong.stderr.startswith(
        "error: there is no help on 'trainr'; near it: trainer;"
    )
    code = "import sys; from paft.command.help import show_help; show_help('merge'); assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
    assert list(tmp_path.iterdir()) == []

"""The demonstration data: deterministic, distinct, disjoint, balanced and correct."""

import hashlib
import json
from collections import Counter

import pytest

from paft.config import RowFormat, Skill
from paft.config.data import DEMO_VERSION
from paft.data.demo import demo_rows
from paft.data.rows import parse_conversation, parse_preference_pair

GOLDEN = {
    ("tool_call", "train"): "cc4be1964e6fbc1200d20129efac943bc67c301cb63d9083f44a4b724adb7e19",
    ("tool_call", "validation"): "7ca69f914a88d7f50c865ae86b1a9ff633974b7d1a363d76f3186e2bf2d24882",
    ("tool_call", "test"): "746fbb7aef12992ffadc750f0a5bc50dc6927130174b5190bf3bc32b29197940",
    ("honesty", "train"): "88c0876dc392ab75e04166231d4b397de5c0f249359289677196b5b6ad93d138",
    ("honesty", "validation"): "9d0e2cda2e7e20f35b60344b53dce8e0bf900ad1e936cbfe6ac49c4b5d44afed",
    ("honesty", "test"): "4f03a9f9b8deed7e9551de218287cec1b3a307581c8a8bec29f7ef3a7fcd77fd",
}
MAXIMUM = {
    ("tool_call", "train"): 3486,
    ("tool_call", "validation"): 354,
    ("tool_call", "test"): 1680,
    ("honesty", "train"): 11600,
    ("honesty", "validation"): 1200,
    ("honesty", "test"): 6400,
}
REFUSING = {"I", "You"}
EVERY_SKILL = pytest.mark.parametrize("skill", list(Skill))


def prompt(row: dict) -> str:
    return (row.get("messages") or row["prompt"])[0]["content"]


@pytest.mark.parametrize(("skill", "split"), GOLDEN)
def test_all_rows_are_the_recorded_ones_of_this_version(skill: str, split: str) -> None:
    rows = demo_rows(Skill(skill), split=split, num_rows=MAXIMUM[skill, split], seed=0)
    assert DEMO_VERSION == 1
    assert hashlib.sha256(json.dumps(rows).encode()).hexdigest() == GOLDEN[skill, split]


@EVERY_SKILL
def test_no_prompt_is_in_two_splits_whatever_the_seed(skill: Skill) -> None:
    everything = {
        split: {
            prompt(row)
            for row in demo_rows(skill, split=split, num_rows=MAXIMUM[skill.value, split], seed=seed)
        }
        for split, seed in (("train", 0), ("validation", 1), ("test", 2))
    }
    for split, prompts in everything.items():
        assert len(prompts) == MAXIMUM[skill.value, split]
    assert sum(map(len, everything.values())) == len(set.union(*everything.values()))


@pytest.mark.parametrize(("skill", "split"), MAXIMUM)
def test_asking_for_too_many_rows_names_the_maximum(skill: str, split: str) -> None:
    most = MAXIMUM[skill, split]
    with pytest.raises(ValueError, match=f"must be 1 to {most}, got {most + 1}"):
        demo_rows(Skill(skill), split=split, num_rows=most + 1, seed=0)


@EVERY_SKILL
def test_seeds_give_different_rows(skill: Skill) -> None:
    one, other = (demo_rows(skill, split="train", num_rows=64, seed=seed) for seed in (0, 1))
    assert one != other


@EVERY_SKILL
def test_a_share_of_the_test_has_held_out_wording_and_training_none(skill: Skill) -> None:
    held_out = {
        split: sum(
            row["wording"] == "held_out" for row in demo_rows(skill, split=split, num_rows=200, seed=0)
        )
        for split in ("train", "validation", "test")
    }
    assert held_out["train"] == held_out["validation"] == 0
    assert 40 <= held_out["test"] <= 90


def test_tool_calls_parse_and_copy_what_the_request_says() -> None:
    tools = Counter()
    for row in demo_rows(Skill.tool_call, split="test", num_rows=204, seed=0):
        request, answer = (
            message["content"] for message in parse_conversation(row, RowFormat.messages).messages
        )
        call = json.loads(answer)
        tools[call["tool"]] += 1
        assert answer == json.dumps(call, separators=(",", ":"))
        for name in {"place", "label", "to", "text", "song", "artist", "amount", "title", "day"} & set(call):
            assert str(call[name]).lower() in request.lower() or (name, call["tool"]) == (
                "to",
                "convert_currency",
            )
    assert len(tools) == 6 and set(tools.values()) == {34}


@pytest.mark.parametrize("split", ["train", "test"])
def test_times_are_converted_to_24_hours(split: str) -> None:
    rows = demo_rows(Skill.tool_call, split=split, num_rows=600, seed=0)
    found = {
        (words, json.loads(row["messages"][1]["content"])["time"])
        for row in rows
        for words in ("12:30 pm", " 8:30 am", " 7 pm")
        if words in prompt(row)
    }
    assert found == {("12:30 pm", "12:30"), (" 8:30 am", "08:30"), (" 7 pm", "19:00")}


@pytest.mark.parametrize("split", ["train", "test"])
def test_honesty_answers_exactly_when_the_fact_is_told(split: str) -> None:
    rows = demo_rows(Skill.honesty, split=split, num_rows=400, seed=0)
    answered = 0
    for row in rows:
        pair = parse_preference_pair(row, RowFormat.preference)
        direct, refusal = sorted(
            (pair.chosen[0]["content"], pair.rejected[0]["content"]),
            key=lambda text: text.split()[0] in REFUSING,
        )
        is_told = direct in prompt(row)
        answered += is_told
        assert pair.chosen[0]["content"] == (direct if is_told else refusal)
    assert answered == 200


def test_chosen_and_rejected_are_about_equally_long() -> None:
    rows = demo_rows(Skill.honesty, split="test", num_rows=400, seed=0)
    chosen, rejected = (sum(len(row[name][0]["content"]) for row in rows) for name in ("chosen", "rejected"))
    assert abs(chosen / rejected - 1) < 0.05

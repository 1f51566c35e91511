"""Nothing in a row vanishes: each field is used, listed as ignored, or refuses the row."""

from typing import Any

import pytest

from paft.config import RowFormat
from paft.config.formats import CONVERSATIONS, PAIRS
from paft.data.rows import ignored_fields, parse_conversation, parse_preference_pair

USER: dict[str, Any] = {"role": "user", "content": "Hi"}
ANSWER: dict[str, Any] = {"role": "assistant", "content": "Hello"}
CALL = [{"type": "function", "function": {"name": "weather", "arguments": "{}"}}]


def chat(**fields: Any) -> dict:
    """A row of one turn, whose answer has these fields besides."""
    return {"messages": [USER, ANSWER | fields]}


def messages(row: dict) -> list:
    return list(parse_conversation(row, RowFormat.messages).messages)


FLAGS = ["weight", "loss_weight", "train", "trainable", "loss", "learn"]


@pytest.mark.parametrize("name", FLAGS)
@pytest.mark.parametrize("no", [0, 0.0, False, "false"])
def test_an_answer_with_a_flag_against_it_is_marked(name: str, no: object) -> None:
    row = {"messages": [USER, ANSWER | {name: no}, USER, ANSWER]}
    assert messages(row) == [USER, ANSWER | {"train": False}, USER, ANSWER]


@pytest.mark.parametrize("name", FLAGS)
@pytest.mark.parametrize("yes", [1, 1.0, True, None])
def test_an_answer_with_a_flag_for_it_is_an_ordinary_one(name: str, yes: object) -> None:
    assert messages({"messages": [USER | {name: 0}, ANSWER | {name: yes}]}) == [USER, ANSWER]


def test_what_follows_the_last_learnt_answer_is_left_out_and_listed() -> None:
    row = {"messages": [USER, ANSWER, USER, ANSWER | {"weight": 0}]}
    assert messages(row) == [USER, ANSWER]
    assert ignored_fields(row, CONVERSATIONS[RowFormat.messages]) == ["messages after the last learnt answer"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (chat(weight=0), "leave no answer of the row to be learnt"),
        (chat(weight=0.5), r"'messages\[1\].weight' must be 0 or 1, false or true, got 0.5"),
        (chat(weight=-1), "must be 0 or 1"),
        (chat(train="no"), r"'messages\[1\].train' must be 0 or 1, false or true, got 'no'"),
        (chat(weight=1, train=False), r"'messages\[1\].weight', 'messages\[1\].train' contradict each other"),
        ({"messages": [USER | {"train": True}, ANSWER]}, "asks to learn a message of role 'user'"),
    ],
)
def test_a_flag_that_cannot_be_honoured_refuses_the_row(row: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        messages(row)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tool_call_id", "call_1"),
        ("name", "Bob"),
        ("images", ["cat.png"]),
        ("mask", 1),
        ("masked", False),
        ("refusal", "No."),
        ("something_new", 3),
    ],
)
def test_a_field_of_a_message_that_is_not_used_refuses_the_row(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"field 'messages\[1\].{name}' is not used yet"):
        messages(chat(**{name: value}))
    with pytest.raises(ValueError, match=rf"field 'prompt\[0\].{name}' is not used yet"):
        row = {"prompt": [USER | {name: value}], "chosen": "A", "rejected": "B"}
        parse_preference_pair(row, RowFormat.preference)


@pytest.mark.parametrize(
    "nothing", [None, "", [], {}, "[]", "null", [None], {"name": None, "arguments": None}]
)
def test_null_and_empty_fields_say_nothing(nothing: object) -> None:
    row = chat(tool_calls=nothing, reasoning_content=nothing, weight=nothing)
    row |= {"tools": nothing, "label": nothing, "system": nothing, "weight": nothing, "id": nothing}
    assert messages(row) == [USER, ANSWER]
    assert ignored_fields(row, CONVERSATIONS[RowFormat.messages]) == []


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"functions": CALL}, "'functions' holds tool calls"),
        ({"reasoning": "Let me think."}, "'reasoning' holds reasoning"),
        ({"thinking": "Let me think."}, "'thinking' holds reasoning"),
        ({"images": ["cat.png"]}, "'images' holds images, sound or video"),
        ({"chat_template_kwargs": {"enable_thinking": True}}, "'chat_template_kwargs' holds settings"),
        (
            {"system": "Be brief."},
            "'system' holds a part of the prompt and is not used; write it into the prompt",
        ),
        ({"context": "Oslo is a city."}, "'context' holds a part of the prompt"),
        ({"input": "H"}, "'input' holds a part of the prompt"),
        ({"history": [["a", "b"]]}, "'history' holds a part of the prompt"),
        ({"label": False}, "'label' is False, and only answers that it calls good"),
        ({"label": 0}, "'label' is 0"),
        ({"label": "bad"}, "'label' is 'bad'"),
        ({"kto_tag": "False"}, "'kto_tag' is 'False'"),
        ({"weight": 0}, "'weight' says that the row is not to be learnt"),
        ({"train": "False"}, "'train' says that the row is not to be learnt"),
        ({"weight": 0.5}, "'weight' must be 0 or 1"),
        ({"sample_weight": 0.5}, "'sample_weight' holds a weight, mask or label"),
        ({"weights": [0, 1]}, "'weights' holds a weight, mask or label"),
        ({"is_correct": False}, "'is_correct' is False"),
        ({"toolCalls": CALL}, "'toolCalls' holds tool calls"),
        ({"choices": ["H", "J"]}, "'choices' holds a part of the prompt"),
        ({"Weight": 1}, "'Weight' holds a weight, mask or label"),
        ({"lossMask": [0, 1]}, "'lossMask' holds a weight, mask or label"),
    ],
)
def test_a_column_that_changes_what_the_row_means_refuses_it(columns: dict, message: str) -> None:
    for row, row_format in (
        (chat(), RowFormat.messages),
        ({"prompt": "Hi", "completion": "Hello"}, RowFormat.prompt_completion),
        ({"question": "Hi", "answer": "Hello"}, RowFormat.gsm8k),
    ):
        assert parse_conversation(row, row_format).messages == [USER, ANSWER]
        with pytest.raises(ValueError, match=message):
            parse_conversation(row | columns, row_format)
    transcript = "\n\nHuman: Hi\n\nAssistant: {}".format
    for row, row_format in (
        ({"prompt": "Hi", "chosen": "A", "rejected": "B"}, RowFormat.preference),
        ({"chosen": transcript("A"), "rejected": transcript("B")}, RowFormat.hh),
    ):
        assert parse_preference_pair(row, row_format).prompt == [USER]
        with pytest.raises(ValueError, match=message):
            parse_preference_pair(row | columns, row_format)


@pytest.mark.parametrize("good", [True, 1, 1.0, "True", "true", "1"])
def test_an_answer_that_is_called_good_is_learnt(good: object) -> None:
    row = {"prompt": "Hi", "completion": "Hello", "label": good, "weight": good}
    assert parse_conversation(row, RowFormat.prompt_completion).messages == [USER, ANSWER]
    assert ignored_fields(row, CONVERSATIONS[RowFormat.prompt_completion]) == []


def test_a_part_of_the_prompt_may_stand_in_a_column_of_its_own_once_more() -> None:
    system = {"role": "system", "content": "Be brief."}
    row = {"messages": [system, USER, ANSWER], "system": "Be brief.", "instruction": " Hi "}
    assert messages(row) == [system, USER, ANSWER]
    assert ignored_fields(row, CONVERSATIONS[RowFormat.messages]) == ["system", "instruction"]
    assert messages(row | {"options": ["Hi", "brief"]}) == [system, USER, ANSWER]
    with pytest.raises(ValueError, match="'input' holds a part of the prompt"):
        messages(row | {"input": "brie"})
    with pytest.raises(ValueError, match="'input' holds a part of the prompt"):
        messages(row | {"input": "Hello"})  # the answer


def test_what_says_nothing_to_a_model_is_listed() -> None:
    row = {"messages": [USER | {"id": 3, "timestamp": "now"}, ANSWER | {"id": 4}], "source": "web", "": 0}
    assert messages(row) == [USER, ANSWER]
    assert ignored_fields(row, CONVERSATIONS[RowFormat.messages]) == [
        "messages.id",
        "messages.timestamp",
        "source",
        "''",
    ]
    pair = {"prompt": "Hi", "chosen": "A", "rejected": "B", "score_chosen": 9.5, "margin": 0.0, "rating": 4}
    assert ignored_fields(pair, PAIRS[RowFormat.preference]) == ["score_chosen", "margin", "rating"]


def test_flags_of_a_pair_may_only_say_what_a_preference_branch_does() -> None:
    def pair(earlier: int | None, chosen: int | None) -> dict:
        prompt = [USER, ANSWER | {"weight": earlier}, USER | {"weight": 0}]
        answers = {"chosen": [{"role": "assistant", "content": "A", "weight": chosen}]}
        return {"prompt": prompt, "rejected": "B"} | answers

    for earlier, chosen in ((None, None), (0, 1)):
        parsed = parse_preference_pair(pair(earlier, chosen), RowFormat.preference)
        assert parsed.prompt == [USER, ANSWER, USER]
        assert parsed.chosen == [{"role": "assistant", "content": "A"}]
    with pytest.raises(ValueError, match="field 'prompt' has a message with a weight or flag"):
        parse_preference_pair(pair(1, 1), RowFormat.preference)
    with pytest.raises(ValueError, match="field 'chosen' has a message with a weight or flag"):
        parse_preference_pair(pair(0, 0), RowFormat.preference)


@pytest.mark.parametrize(
    "part", [{"text": "Hello"}, {"value": "Hello"}, {"text": "Hello", "image_url": None}]
)
def test_one_typed_part_of_text_is_its_text(part: dict) -> None:
    assert messages({"messages": [USER, ANSWER | {"content": [{"type": "text", **part}]}]}) == [USER, ANSWER]


def test_typed_parts_of_text_are_joined() -> None:
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "value": "lo", "text": None}]
    assert messages({"messages": [USER, ANSWER | {"content": parts}]}) == [USER, ANSWER]


@pytest.mark.parametrize("weights", [(0, 0), (0, None)])
def test_weights_of_parts_are_weights_of_their_message(weights: tuple) -> None:
    parts = [
        {"type": "text", "text": t, "loss_weight": w} for t, w in zip(("Hel", "lo"), weights, strict=True)
    ]
    row = {"messages": [USER, ANSWER | {"content": parts}, USER, ANSWER | {"loss_weight": 1.0}]}
    assert messages(row) == [USER, ANSWER | {"train": False}, USER, ANSWER]


@pytest.mark.parametrize("weights", [(0, 1), (0.5, 1)])
def test_weights_of_parts_that_cannot_be_honoured_refuse_the_row(weights: tuple) -> None:
    parts = [{"type": "text", "text": "a", "loss_weight": weight} for weight in weights]
    with pytest.raises(
        ValueError, match=r"contradict each other|'messages\[1\].content\[0\].loss_weight' must be 0 or 1"
    ):
        messages({"messages": [USER, ANSWER | {"content": parts}]})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            [{"type": "text", "text": "a"}, {"type": "image", "image": "cat.png"}],
            r"'messages\[1\].content\[1\]' must be a part of type 'text', got of type 'image'; only text is read",
        ),
        (
            [{"type": "image_url", "image_url": "cat.png"}],
            r"content\[0\]' must be a part of type 'text', got of type",
        ),
        (
            [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}],
            r"'messages\[1\].content\[0\].cache_control' is not used",
        ),
        ([{"type": "text", "text": "a", "value": "b"}], r"content\[0\]' must hold one text"),
        ([{"type": "text"}], r"'messages\[1\].content' is empty"),
        (["a"], r"content\[0\]' must be a part of type 'text', got str"),
        ([], r"'messages\[1\].content' must be text, got list"),
        ({"type": "text", "text": "a"}, r"'messages\[1\].content' must be text, got dict"),
    ],
)
def test_other_parts_refuse_the_row(content: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        messages({"messages": [USER, ANSWER | {"content": content}]})


# --- neighbours of the fields above -----------------------------------------------------------------------

SAID = {"prompt": "Q", "completion": "A"}
MEANT = [
    {"correct": False}, {"accepted": "no"}, {"passed": 0}, {"label": "bad"}, {"rejected": True}, {"deleted": True},
    {"sys_prompt": "Be rude."}, {"persona": "A pirate."}, {"article": "Long."}, {"background": "Before."},
    {"tools_json": "[1]"}, {"available_tools": "[1]"}, {"reasoning_trace": "Because."}, {"think": "Hm."},
    {"image_path": "a.png"}, {"toolDefinitions": "[1]"},
]  # fmt: skip


@pytest.mark.parametrize("extra", MEANT, ids=lambda extra: next(iter(extra)))
def test_fields_that_change_what_a_row_means_refuse_it_by_any_usual_name(extra):
    with pytest.raises(ValueError, match=f"field '{next(iter(extra))}'"):
        parse_conversation({**SAID, **extra}, RowFormat.prompt_completion)


@pytest.mark.parametrize(
    "extra", [{"label": "math"}, {"label": 3}, {"deleted": False}, {"num_tools": 2}, {"image_id": 7}]
)
def test_facts_about_a_row_are_listed(extra):
    row = {**SAID, **extra}
    parse_conversation(row, RowFormat.prompt_completion)
    assert ignored_fields(row, CONVERSATIONS[RowFormat.prompt_completion]) == list(extra)


@pytest.mark.parametrize("names", [("score_chosen", "score_rejected"), ("chosen_rating", "rejected_rating")])
def test_a_pair_against_its_own_ratings_is_refused(names):
    pair = {"prompt": "Q", "chosen": "A", "rejected": "B"}
    parse_preference_pair({**pair, names[0]: 9.0, names[1]: 1.0}, RowFormat.preference)
    with pytest.raises(ValueError, match=f"field '{names[1]}' is 9.0, above '{names[0]}' with 1.0"):
        parse_preference_pair({**pair, names[0]: 1.0, names[1]: 9.0}, RowFormat.preference)

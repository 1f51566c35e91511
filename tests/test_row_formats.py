"""Rows as other tools write them: ShareGPT, Alpaca, tools and reasoning, judged answers, columns of other names."""

import json
import re
from typing import Any

import pytest

from paft.config import FileSource, RowFormat
from paft.data.rows import (
    conversation_format,
    in_words_of_file,
    parse_conversation,
    parse_preference_pair,
    parse_unpaired,
    preference_format,
    renamed,
    unpaired_format,
)

USER, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
SYSTEM = {"role": "system", "content": "Be brief."}
TURNS = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
WEATHER = {"name": "weather", "description": "Of a place.", "parameters": {"type": "object"}}
TOOL = {"type": "function", "function": WEATHER}
CALL = {"name": "weather", "arguments": {"at": "Oslo"}}
TYPED_CALL = {"type": "function", "function": CALL}
CALLED = [USER, {"role": "assistant", "content": "", "tool_calls": [TYPED_CALL]}]
RESULT = {"role": "tool", "content": "12"}


def conversation(row: dict) -> list:
    return parse_conversation(row, conversation_format(row, RowFormat.auto)).messages


def tools(row: dict) -> list:
    return parse_conversation(row, conversation_format(row, RowFormat.auto)).tools


def pair(row: dict) -> tuple:
    parsed = parse_preference_pair(row, preference_format(row, RowFormat.auto))
    return parsed.prompt, parsed.chosen, parsed.rejected


# --- ShareGPT ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"conversations": TURNS}, [USER, ANSWER]),
        ({"id": "x", "conversations": json.dumps(TURNS)}, [USER, ANSWER]),
        ({"conversations": [{"from": "system", "value": "Be brief."}, *TURNS]}, [SYSTEM, USER, ANSWER]),
        ({"conversations": TURNS, "system": "Be brief."}, [SYSTEM, USER, ANSWER]),
        ({"conversations": TURNS, "system": ""}, [USER, ANSWER]),
        ({"conversations": [SYSTEM, USER, ANSWER], "system": "Be brief. "}, [SYSTEM, USER, ANSWER]),
        (
            {
                "conversations": [
                    TURNS[0],
                    {"from": "function_call", "value": json.dumps(CALL)},
                    {"from": "observation", "value": "12"},
                    TURNS[1],
                ],
                "tools": json.dumps([WEATHER]),
            },
            [*CALLED, RESULT, ANSWER],
        ),
        (
            {"conversations": [*TURNS, TURNS[0], TURNS[1] | {"loss": False}, *TURNS]},
            [USER, ANSWER, USER, ANSWER | {"train": False}, USER, ANSWER],
        ),
    ],
    ids=["plain", "text", "system turn", "system column", "no system", "same system twice", "tools", "flag"],
)
def test_sharegpt_rows_are_read(row: dict, expected: list) -> None:
    assert conversation(row) == expected


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([{"from": "human", "value": "Hi"}], r"'conversations' must end with role 'assistant'"),
        ([{"from": "alien", "value": "Hi"}], r"'conversations\[0\].from' must be one of human, user, gpt"),
        ([{"from": "human"}], r"'conversations\[0\].value' is missing"),
        ([{"from": "human", "value": 3}], r"'conversations\[0\].value' must be text, got int"),
        ([TURNS[1], TURNS[0]], r"'conversations\[0\].from' must be 'user' here, got 'assistant'"),
        ([TURNS[0], TURNS[0]], r"'conversations\[1\].from' must be 'assistant' here"),
        ([TURNS[0] | {"content": "Ho"}, TURNS[1]], r"'conversations\[0\].value' is not used yet"),
        (
            [TURNS[0], {"from": "observation", "value": "12"}, TURNS[1]],
            r"must be 'assistant' here, got 'tool'",
        ),
        (
            [TURNS[0], {"from": "function_call", "value": "weather(Oslo)"}],
            r"'conversations\[1\].value' must be JSON, and is not",
        ),
        ("Hi", "'conversations' must be a list of messages, got str"),
        ([], "'conversations' is empty"),
        ([None], r"'conversations\[0\]' must hold role and content, got NoneType"),
    ],
)
def test_bad_sharegpt_rows_name_the_field(row: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_conversation({"conversations": row}, RowFormat.sharegpt)


def test_two_different_system_messages_are_refused() -> None:
    row = {"conversations": [SYSTEM, USER, ANSWER], "system": "Be long."}
    with pytest.raises(ValueError, match="'system' and the first message are two different system messages"):
        conversation(row)


# --- Alpaca -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, [USER, ANSWER]),
        ({"input": ""}, [USER, ANSWER]),
        ({"input": None, "history": [], "system": ""}, [USER, ANSWER]),
        ({"input": "you"}, [{"role": "user", "content": "Hi\nyou"}, ANSWER]),
        ({"instruction": "", "input": "Hi"}, [USER, ANSWER]),
        ({"system": "Be brief."}, [SYSTEM, USER, ANSWER]),
        (
            {"history": [["Hi", "Hello"], ["a", "b"]]},
            [
                USER,
                ANSWER,
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": "b"},
                USER,
                ANSWER,
            ],
        ),
        ({"text": "### Instruction: Hi"}, [USER, ANSWER]),
    ],
)
def test_alpaca_rows_are_read(fields: dict, expected: list) -> None:
    assert conversation({"instruction": "Hi", "output": "Hello"} | fields) == expected


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"instruction": " "}, "'instruction' is empty"),
        ({"output": ""}, "'output' is empty"),
        ({"output": None}, "'output' is missing"),
        ({"input": 3}, "'input' must be text, got int"),
        ({"history": "Hi"}, r"'history' must be a list of \[instruction, output\]"),
        ({"history": [["a"]]}, r"'history' must be a list of \[instruction, output\]"),
        ({"history": [["a", None]]}, r"'history\[0\]\[1\].content' is missing"),
        ({"system": ["x"]}, "'system' must be text, got list"),
        ({"context": "Oslo."}, "'context' holds a part of the prompt"),
        ({"label": False}, "'label' is False"),
    ],
)
def test_bad_alpaca_rows_name_the_field(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        conversation({"instruction": "Hi", "output": "Hello"} | fields)


# --- tools and reasoning ----------------------------------------------------------------------------------


@pytest.mark.parametrize("said", [[TOOL], [WEATHER], json.dumps([TOOL]), json.dumps([WEATHER])])
@pytest.mark.parametrize("columns", [{"messages": [USER, ANSWER]}, {"prompt": "Hi", "completion": "Hello"}])
def test_tools_are_read_with_their_envelope(said: object, columns: dict) -> None:
    assert tools(columns | {"tools": said}) == [TOOL]


@pytest.mark.parametrize("nothing", [None, "", "[]", [], [None]])
def test_no_tools_are_none(nothing: object) -> None:
    assert tools({"messages": [USER, ANSWER], "tools": nothing}) == []


@pytest.mark.parametrize(
    "fields",
    [
        {"tool_calls": [TYPED_CALL]},
        {"tool_calls": [TYPED_CALL], "content": None},
        {"tool_calls": [CALL], "content": ""},
        {
            "tool_calls": [
                {"type": "function", "function": CALL | {"arguments": json.dumps(CALL["arguments"])}}
            ]
        },
        {"tool_calls": json.dumps([CALL])},
        {"function_call": CALL},
    ],
)
def test_calls_are_read_however_they_are_written(fields: dict) -> None:
    assert conversation({"messages": [USER, {"role": "assistant", **fields}]}) == CALLED


def test_ids_names_and_words_beside_a_call_stay() -> None:
    call = TYPED_CALL | {"id": "call_1"}
    said = [USER, {"role": "assistant", "content": "A moment.", "tool_calls": [call]}]
    result = {"role": "tool", "name": "weather", "tool_call_id": "call_1", "content": "12"}
    assert conversation({"messages": [*said, result, result, ANSWER]}) == [*said, result, result, ANSWER]


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([USER, ANSWER, RESULT, ANSWER], r"'messages\[2\].role' must be 'user' here, got 'tool'"),
        ([*CALLED, ANSWER], r"'messages\[2\].role' must be 'tool' here, got 'assistant'"),
        ([*CALLED, RESULT], "'messages' must end with role 'assistant', got 'tool'"),
        ([*CALLED, RESULT, USER, ANSWER], r"must be 'assistant' or 'tool' here, got 'user'"),
        (
            [*CALLED, {"role": "tool", "content": {"t": 12}}, ANSWER],
            r"'messages\[2\].content' must be text, got dict",
        ),
    ],
)
def test_results_follow_calls(messages: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        conversation({"messages": messages})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tool_calls": [{"arguments": {"at": 1}}]}, r"tool_calls\[0\].name' is missing"),
        ({"tool_calls": [{"name": " ", "arguments": '{"at": 1}'}]}, r"tool_calls\[0\].name' is empty"),
        (
            {"tool_calls": [CALL | {"arguments": "at Oslo"}]},
            r"tool_calls\[0\].arguments' must be JSON, and is not",
        ),
        (
            {"tool_calls": [CALL | {"arguments": "[1]"}]},
            r"tool_calls\[0\].arguments' must be an object, got list",
        ),
        ({"tool_calls": [CALL | {"parameters": {"at": "Oslo"}}]}, r"tool_calls\[0\].parameters' is not used"),
        ({"tool_calls": [TYPED_CALL | {"type": "code"}]}, r"tool_calls\[0\].type' must be 'function'"),
        ({"tool_calls": "weather"}, r"tool_calls' must be JSON, and is not"),
        ({"tool_calls": 3}, r"tool_calls' must be a list of tool calls, got int"),
        ({"tool_calls": ["weather"]}, r"tool_calls\[0\]' must be an object, got str"),
        ({"tool_calls": [CALL | {"arguments": {"at": float("nan")}}]}, "is nothing that JSON can hold"),
        ({"tool_calls": [CALL], "function_call": CALL}, "has tool_calls and function_call"),
        ({"reasoning": "a", "thinking": "b"}, "has reasoning and thinking, of which only one can be meant"),
        ({"reasoning_content": 3}, r"reasoning_content' must be text, got int"),
    ],
)
def test_bad_calls_and_thoughts_name_the_field(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        conversation({"messages": [USER, ANSWER | fields]})


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("weather", "'tools' must be JSON, and is not"),
        ('{"name": "weather"}', "'tools' must be a list of tools, got dict"),
        ([3], r"'tools\[0\]' must be an object, got int"),
        ([{"description": "x"}], r"'tools\[0\].name' is missing"),
        ([{"function": {"name": 3}}], r"'tools\[0\].name' must be text, got int"),
    ],
)
def test_bad_tools_name_the_field(said: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tools({"messages": [USER, ANSWER], "tools": said})


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_is_read_by_each_of_its_names(name: str) -> None:
    [_, answer] = conversation({"messages": [USER, ANSWER | {name: "Hm."}]})
    assert answer == ANSWER | {"reasoning_content": "Hm."}


# --- pairs ------------------------------------------------------------------------------------------------

GOOD, BAD = ({"role": "assistant", "content": text} for text in ("Good", "Bad"))
GPT = {"chosen": {"from": "gpt", "value": "Good"}, "rejected": {"from": "gpt", "value": "Bad"}}


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"conversations": TURNS[:1], **GPT}, [USER]),
        ({"conversations": [{"from": "system", "value": "Be brief."}, TURNS[0]], **GPT}, [SYSTEM, USER]),
        (
            {"conversations": TURNS[:1], "chosen": "Good", "rejected": "Bad", "system": "Be brief."},
            [SYSTEM, USER],
        ),
        ({"instruction": "Hi", "chosen": "Good", "rejected": "Bad"}, [USER]),
        (
            {"instruction": "Hi", "input": "you", "chosen": "Good", "rejected": "Bad"},
            [USER | {"content": "Hi\nyou"}],
        ),
        ({"prompt": USER, "chosen": GOOD, "rejected": BAD}, [USER]),
        ({"prompt": "Hi", "chosen": [GOOD], "rejected": BAD}, [USER]),
        ({"instruction": "Hi", "chosen": [USER, GOOD], "rejected": [USER, BAD]}, [USER]),
        ({"chosen_messages": [USER, GOOD], "rejected_messages": [USER, BAD]}, [USER]),
        (
            {
                "chosen_messages": [
                    USER | {"content": [{"type": "text", "value": "Hi"}], "loss_weight": 0.0},
                    GOOD | {"loss_weight": 1.0},
                ],
                "rejected_messages": [USER, BAD],
            },
            [USER],
        ),
        (
            {"prompt": [*CALLED, RESULT], "chosen": "Good", "rejected": "Bad", "tools": [TOOL]},
            [*CALLED, RESULT],
        ),
    ],
)
def test_pairs_are_read(row: dict, prompt: list) -> None:
    assert pair(row) == (prompt, [GOOD], [BAD])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"conversations": TURNS, **GPT}, "'conversations' must end with role 'user', got 'assistant'"),
        (
            {"conversations": TURNS[:1], **GPT, "chosen": TURNS[0]},
            "'chosen' must be one answer, by gpt or the",
        ),
        (
            {"conversations": TURNS[:1], **GPT, "rejected": GPT["chosen"]},
            "'chosen' and 'rejected' are identical",
        ),
        ({"conversations": TURNS[:1], **GPT, "chosen": {"from": "gpt"}}, r"'chosen\[0\].value' is missing"),
        ({"conversations": TURNS[:1], **GPT, "chosen": 3}, r"'chosen' must be a list of messages, got int"),
        (
            {"chosen_messages": [USER, GOOD], "rejected_messages": [USER, GOOD]},
            "'chosen_messages' and 'rejected_messages' are identical",
        ),
        (
            {"chosen_messages": [USER, GOOD], "rejected_messages": [SYSTEM, USER, BAD]},
            "'chosen_messages' and 'rejected_messages' have different prompts",
        ),
        (
            {"chosen_messages": [GOOD], "rejected_messages": [BAD]},
            r"'chosen_messages\[0\].role' must be 'user'",
        ),
    ],
)
def test_bad_pairs_name_the_field(row: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pair(row)


# --- judged answers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", [True, 1, "true", False, 0.0, "False"])
@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi", "completion": "Hello"},
        {"prompt": [USER], "completion": [ANSWER]},
        {"messages": [USER, ANSWER]},
        {"conversations": TURNS},
        {"instruction": "Hi", "output": "Hello"},
    ],
    ids=["text", "messages", "conversation", "sharegpt", "alpaca"],
)
def test_a_judged_answer_is_read(row: dict, label: Any) -> None:
    row = row | {"label": label}
    found = parse_unpaired(row, unpaired_format(row, RowFormat.auto))
    assert (found.prompt, found.completion) == ([USER], [ANSWER])
    assert found.label is (str(label).lower() in ("true", "1"))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"prompt": "Hi", "completion": "Hello", "label": 0.5},
            "'label' must be 0 or 1, false or true, got 0.5",
        ),
        ({"prompt": "Hi", "completion": "Hello", "label": None}, "'label' is missing"),
        ({"prompt": "Hi", "completion": "", "label": True}, "'completion' is empty"),
        (
            {"messages": [USER, ANSWER | {"train": False}], "label": True},
            "'completion' has a message with a weight",
        ),
    ],
)
def test_a_bad_judgement_names_the_field(row: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_unpaired(row, unpaired_format(row, RowFormat.auto))


def test_judged_answers_are_no_pairs_and_the_refusal_says_who_takes_which() -> None:
    from paft.objectives import OBJECTIVES

    takers = {name for name, objective in OBJECTIVES.items() if objective.rows == "unpaired"}
    assert takers == {"kto"}
    with pytest.raises(ValueError) as caught:
        preference_format({"messages": [USER, ANSWER], "label": True}, RowFormat.auto)
    assert re.search(r"one answer a row with a judgement .*dpo, orpo.* learn from pairs", str(caught.value))
    assert "set preference=kto, which learns from such rows" in str(caught.value)


# --- columns ----------------------------------------------------------------------------------------------


def test_columns_are_read_under_our_names() -> None:
    row = renamed(
        {"question": "Hi", "response": "Hello", "id": 3}, {"prompt": "question", "completion": "response"}
    )
    assert conversation(row) == [USER, ANSWER]  # type: ignore[arg-type]


def test_a_column_of_the_name_of_another_is_set_aside() -> None:
    row = renamed({"prompt": "of the file", "q": "Hi", "completion": "Hello"}, {"prompt": "q"})
    assert row == {"prompt (not mapped)": "of the file", "prompt": "Hi", "completion": "Hello"}


def test_columns_may_be_exchanged() -> None:
    row = renamed(
        {"chosen": "Bad", "rejected": "Good", "prompt": "Hi"}, {"chosen": "rejected", "rejected": "chosen"}
    )
    assert pair(row) == ([USER], [GOOD], [BAD])  # type: ignore[arg-type]


def test_a_column_that_is_absent_is_named_beside_those_there_are() -> None:
    with pytest.raises(
        ValueError, match=r"columns=\{prompt: question\} names a column .*it has \['answer', 'ask'\]"
    ):
        renamed({"ask": "Hi", "answer": "Hello"}, {"prompt": "question"})


def test_errors_name_the_column_of_the_file() -> None:
    error = in_words_of_file(ValueError("field 'prompt' is empty"), {"prompt": "question", "completion": "a"})
    assert str(error) == "field 'prompt' is empty ('prompt' is the column 'question')"


def test_columns_of_no_field_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"data.\*.columns must be \{field: column\} with fields of a format = answer, "
    ):
        FileSource(path="a.jsonl", columns={"promt": "question"})
    with pytest.raises(ValueError, match="with each column once"):
        FileSource(path="a.jsonl", columns={"prompt": "text", "completion": "text"})


# --- refusals ---------------------------------------------------------------------------------------------


def test_rows_in_a_column_are_pointed_at() -> None:
    row = {"instruction": "Hi", "instances": [{"input": "", "output": "Hello"}]}
    with pytest.raises(
        ValueError, match=r"instances holds rows of its own \(input, output\): write each as a row"
    ):
        conversation_format(row, RowFormat.auto)


def test_rows_without_answers_are_told_the_formats_there_are() -> None:
    with pytest.raises(
        ValueError, match=r"columns \['class', 'data'\].*alpaca: instruction, output.*columns=\{prompt"
    ):
        conversation_format({"class": "Vicuna", "data": "Compose a post."}, RowFormat.auto)

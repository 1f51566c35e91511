"""Conversations written as one text, in every place of a row: read exactly or refused, never learnt as that text."""

import json
import time
from contextlib import suppress

import pytest

from paft.config import RowFormat
from paft.data.rows import parse_conversation, parse_preference_pair, preference_format
from paft.data.written import goes_on, message_list, transcript

USER = {"role": "user", "content": 'it\'s "me"'}
ANSWER = {"role": "assistant", "content": "yes\nno"}
BAD = {"role": "assistant", "content": "no"}
TURNS = [USER, ANSWER]
WAYS = {
    "json": json.dumps,
    "indented": lambda value: "\n " + json.dumps(value, indent=2) + "\n",
    "python": repr,
    "tuple": lambda value: repr(tuple(value)),
    "json twice": lambda value: json.dumps(json.dumps(value)),
    "json of python": lambda value: json.dumps(repr(value)),
}
WRITTEN = pytest.mark.parametrize("write", WAYS.values(), ids=WAYS)


@WRITTEN
def test_a_conversation_written_as_text_is_read(write) -> None:
    assert parse_conversation({"messages": write(TURNS)}, RowFormat.messages).messages == TURNS
    row = {"prompt": write([USER]), "completion": write([ANSWER])}
    assert parse_conversation(row, RowFormat.prompt_completion).messages == TURNS


@WRITTEN
def test_a_pair_written_as_text_is_read(write) -> None:
    for row in (
        {"prompt": write([USER]), "chosen": write([ANSWER]), "rejected": write([BAD])},
        {"chosen": write([USER, ANSWER]), "rejected": write([USER, BAD])},
    ):
        pair = parse_preference_pair(row, preference_format(row, RowFormat.auto))
        assert (pair.prompt, pair.chosen, pair.rejected) == ([USER], [ANSWER], [BAD])


def test_flags_and_nulls_of_written_messages_count() -> None:
    text = repr([USER, ANSWER | {"weight": 0, "tool_calls": None}, USER, BAD])
    found = parse_conversation({"messages": text}, RowFormat.messages).messages
    assert found == [USER, ANSWER | {"train": False}, USER, BAD]
    with pytest.raises(ValueError, match=r"'messages\[1\].refusal' is not used yet"):
        parse_conversation({"messages": repr([USER, ANSWER | {"refusal": [1]}])}, RowFormat.messages)


@pytest.mark.parametrize(
    "text",
    [
        "[{'role': 'user', 'content': 'hi'}\n {'role': 'assistant', 'content': 'yes'}]",
        "array([{'role': 'user', 'content': 'hi'}], dtype=object)",
        "[{'role': 'user', 'content': 'hi'}, {'role': 'assistant', 'con",
        '[{"content": "hi", "role": "user"}, {"role": "assistant", "content": null]',
        "[{'content': 'hi', 'role': 'user', 'weight': nan}]",
        "{'role': 'user', 'content': array(['hi'])}",
    ],
)
def test_a_list_that_is_neither_json_nor_python_is_refused(text: str) -> None:
    for name in ("prompt", "chosen", "rejected"):
        row = {"prompt": "a", "chosen": "b", "rejected": "c"} | {name: text}
        with pytest.raises(ValueError, match=f"field '{name}' looks like a list of messages written as text"):
            parse_preference_pair(row, RowFormat.preference)


def test_sharegpt_messages_written_as_text_are_no_text() -> None:
    row = {"prompt": "[{'from': 'human', 'value': 'hi'}]", "completion": "yes"}
    with pytest.raises(ValueError, match=r"'prompt\[0\].role' is missing"):
        parse_conversation(row, RowFormat.prompt_completion)


@pytest.mark.parametrize(
    "text",
    [
        "[1, 2]",
        "[]",
        "the mark <|im_start|>user",
        '{"tool": "convert", "from": "EUR", "to": "USD", "value": 3}',
        '[{"role": "admin", "name": "Bo", "content": "all"}]',
        '[{"label": "Name", "type": "text"}]',
        '{"type": "text", "name": "Bo"',
        '[{"name": "weather", "arguments": {}}]',
        '[{"role": "user", "content": "hi"}] What is wrong with this request?',
        'messages = [{"role": "user", "content": "hi"}]',
        "{role} and {content}",
        "a list of {'role': ..., 'content': ...}",
    ],
)
def test_other_texts_stay_texts(text: str) -> None:
    assert message_list(text) is None
    row = {"prompt": text, "completion": text}
    assert [m["content"] for m in parse_conversation(row, RowFormat.prompt_completion).messages] == [
        text,
        text,
    ]


OPEN = "\n\nHuman: Hi\n\nAssistant: What?\n\nHuman: Yes\n\nAssistant:"
PROMPT = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "What?"},
    {"role": "user", "content": "Yes"},
]
GOOD, POOR = ({"role": "assistant", "content": text} for text in ("Good", "Poor"))


@pytest.mark.parametrize("prompt", [OPEN, OPEN.strip(), OPEN.removesuffix("\n\nAssistant:"), OPEN + " \n"])
def test_a_transcript_as_the_prompt_is_read_turn_by_turn(prompt: str) -> None:
    row = {"prompt": prompt, "completion": " Good"}
    assert parse_conversation(row, RowFormat.prompt_completion).messages == [*PROMPT, GOOD]
    row = {"question": prompt, "answer": " Good"}
    assert parse_conversation(row, RowFormat.gsm8k).messages == [*PROMPT, GOOD]
    row = {"prompt": prompt, "chosen": " Good", "rejected": " Poor\n"}
    pair = parse_preference_pair(row, preference_format(row, RowFormat.auto))
    assert (pair.prompt, pair.chosen, pair.rejected) == (PROMPT, [GOOD], [POOR])


@pytest.mark.parametrize(
    "prompt", ["\n\nHuman: Hi\n\nAssistant:", "Human: Hi\n\nAssistant:", "\n\nHuman: Hi"]
)
def test_a_prompt_of_one_human_turn_is_read(prompt: str) -> None:
    row = {"prompt": prompt, "completion": " Good"}
    assert parse_conversation(row, RowFormat.prompt_completion).messages == [PROMPT[0], GOOD]


@pytest.mark.parametrize("prompt", [OPEN, "Hi", "Yes", PROMPT])
def test_answers_that_are_transcripts_repeat_their_prompt(prompt: object) -> None:
    row = {"prompt": prompt, "chosen": f"{OPEN} Good", "rejected": f"{OPEN} Poor"}
    pair = parse_preference_pair(row, preference_format(row, RowFormat.auto))
    assert (pair.prompt, pair.chosen, pair.rejected) == (PROMPT, [GOOD], [POOR])
    with pytest.raises(ValueError, match="do not begin with the field 'prompt'"):
        parse_preference_pair(row | {"prompt": "Else"}, RowFormat.preference)


@pytest.mark.parametrize(
    "prompt",
    [
        "Human: Hi\nAssistant:",
        "User: Hi\n\nAssistant: What?\n\nUser: Yes\n\nAssistant:",
        "USER: Hi\nASSISTANT:",
        "### Human: Hi\n### Assistant:",
        "**User:** Hi\n\n**Assistant:**",
        "<Human>: Hi\n<Bot>:",
        "A chat between a human and an assistant.\n\nHuman: Hi\n\nAssistant:",
        "\n\nHuman: Hi\nAssistant: What?\n\nHuman: Yes\n\nAssistant:",
        "Human: Hi\nAI:",
        "Human: Hi",
        "Human: Hi Assistant: What? Human: Yes Assistant:",
        "User: Hi Assistant:",
    ],
)
def test_another_transcript_is_refused(prompt: str) -> None:
    with pytest.raises(ValueError, match="field 'prompt' is a transcript of several turns"):
        parse_conversation({"prompt": prompt, "completion": "Good"}, RowFormat.prompt_completion)
    with pytest.raises(ValueError, match="field 'prompt' is a transcript of several turns"):
        parse_preference_pair({"prompt": prompt, "chosen": "A", "rejected": "B"}, RowFormat.preference)


@pytest.mark.parametrize(
    "prompt",
    [
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
        "<s>[INST] Hi [/INST]",
        "[INST] Hi [/INST]",
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>",
        "<bos><start_of_turn>user\nHi<end_of_turn>\n",
        "<|system|>\n</s>\n<|user|>\nHi</s>\n<|assistant|>\n",
    ],
)
def test_a_prompt_already_in_a_chat_template_is_refused(prompt: str) -> None:
    message = "field 'prompt' begins with the marks of a chat template"
    with pytest.raises(ValueError, match=message):
        parse_conversation({"prompt": prompt, "completion": "Good"}, RowFormat.prompt_completion)
    with pytest.raises(ValueError, match=message):
        parse_preference_pair({"prompt": prompt, "chosen": "A", "rejected": "B"}, RowFormat.preference)


def test_a_list_of_messages_written_into_a_message_is_refused() -> None:
    row = {"messages": [{"role": "user", "content": repr([USER])}, ANSWER]}
    with pytest.raises(ValueError, match=r"'messages\[0\].content' is a list of messages written as text"):
        parse_conversation(row, RowFormat.messages)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[{'role': 'client', 'content': 'hi'}]", r"'prompt\[0\].role' must be one of"),
        ("[{'role': 'Human', 'content': 'hi', 'id': 1}]", r"'prompt\[0\].role' must be one of"),
        ("{'role': ['user'], 'content': ['hi'], 'id': [1]}", r"'prompt\[0\].role' must be text, got list"),
    ],
)
def test_messages_of_other_roles_or_shapes_are_no_text(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_conversation({"prompt": text, "completion": "yes"}, RowFormat.prompt_completion)


@pytest.mark.parametrize("part", [{"type": "text", "text": "Hi"}, {"text": "Hi", "type": "text", "id": None}])
def test_typed_parts_written_as_text_are_refused(part: dict) -> None:
    row = {"prompt": repr([part]), "completion": "Good"}
    with pytest.raises(ValueError, match="field 'prompt' is a list of typed parts written as text"):
        parse_conversation(row, RowFormat.prompt_completion)


def test_a_question_that_is_a_list_of_messages_is_refused() -> None:
    with pytest.raises(ValueError, match="field 'question' must be text, got list"):
        parse_conversation({"question": repr([USER]), "answer": "Good"}, RowFormat.gsm8k)


def test_a_transcript_that_begins_the_answer_is_refused() -> None:
    with pytest.raises(ValueError, match="'prompt' must end with role 'user', got 'assistant'"):
        row = {"prompt": "\n\nHuman: Hi\n\nAssistant: Well,", "completion": " good"}
        parse_conversation(row, RowFormat.prompt_completion)


def test_an_answer_that_holds_other_turns_is_refused() -> None:
    runaway = "Good\n\nHuman: Thanks\n\nAssistant: Bye"
    with pytest.raises(ValueError, match="'completion' goes on with turns of a transcript"):
        parse_conversation({"prompt": "Hi", "completion": runaway}, RowFormat.prompt_completion)
    with pytest.raises(ValueError, match="'chosen' goes on with turns of a transcript"):
        parse_preference_pair({"prompt": "Hi", "chosen": runaway, "rejected": "B"}, RowFormat.preference)
    for begun in ("\n\nAssistant: Good", "Assistant: Good"):
        with pytest.raises(ValueError, match="'completion' begins with 'Assistant:'"):
            parse_conversation({"prompt": "\n\nHuman: Hi", "completion": begun}, RowFormat.prompt_completion)
    with pytest.raises(ValueError, match="'completion' is a transcript of several turns"):
        parse_conversation({"prompt": "Hi", "completion": f"{OPEN} Good"}, RowFormat.prompt_completion)


@pytest.mark.parametrize("text", [OPEN, OPEN.removesuffix("\n\nAssistant:")])
def test_a_message_that_is_a_transcript_is_refused(text: str) -> None:
    row = {"messages": [{"role": "user", "content": text}, GOOD]}
    with pytest.raises(ValueError, match=r"'messages\[0\].content' is a transcript of several turns"):
        parse_conversation(row, RowFormat.messages)


@pytest.mark.parametrize(
    "prompt",
    [
        "Humans: an essay on being one",
        "User: cannot log in",
        "What does 'Assistant:' mean after 'Human:'?",
        "Summarise:\n\nUser: my screen is black\nAssistant: is it on?\n\nIn one sentence.",
        "Assistant: a job description",
        "Question: 1+1?\nAnswer:",
    ],
)
def test_a_prompt_that_only_mentions_speakers_stays_one_turn(prompt: str) -> None:
    row = {"prompt": prompt, "completion": " Good"}
    found = parse_conversation(row, RowFormat.prompt_completion).messages
    assert [message["content"] for message in found] == [prompt, " Good"]


@pytest.mark.parametrize(
    "text",
    [
        "\n" * 200_000,
        "[" + " " * 200_000 + "'role': 'content':",
        "Human: x\n" * 20_000 + "ai:" + "-" * 200_000 + "x",
        "User: x" + "ai:!" * 50_000 + "x",
        "['role': 'content': " + "[" * 100_000,
        "\\" * 200_000 + "'role'",
    ],
)
def test_long_texts_take_no_time(text: str) -> None:
    started = time.process_time()
    for read in (message_list, transcript, goes_on):
        with suppress(ValueError):
            read(text)
    assert time.process_time() - started < 2

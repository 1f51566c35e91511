"""Every accepted row format, and every way a row can be wrong."""

import pytest

from paft.config import RowFormat
from paft.data.rows import conversation_format, parse_conversation, parse_preference_pair, preference_format


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict:
    return {"role": "assistant", "content": text}


SYSTEM = {"role": "system", "content": "Be brief."}
CHAT = [SYSTEM, user("Hi"), assistant("Hello"), user("Bye"), assistant("See you")]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"messages": CHAT, "prompt": "Hi", "prompt_id": "7"}, CHAT),
        ({"prompt": "Hi", "completion": "Hello"}, [user("Hi"), assistant("Hello")]),
        ({"prompt": CHAT[:-1], "completion": CHAT[-1:]}, CHAT),
        ({"question": "1+1?", "answer": "#### 2", "id": 3}, [user("1+1?"), assistant("#### 2")]),
    ],
    ids=["messages", "text", "message_lists", "gsm8k"],
)
def test_conversation_formats_are_detected_and_parsed(row: dict, expected: list) -> None:
    row_format = conversation_format(row, RowFormat.auto)
    assert parse_conversation(row, row_format).messages == expected


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [user("Hi")], "chosen": [assistant("Good")], "rejected": [assistant("Bad")]},
        {"prompt": "Hi", "chosen": "Good", "rejected": "Bad"},
        {
            "prompt": "Hi",
            "prompt_id": "x",
            "score_chosen": 9.0,
            "chosen": [user("Hi"), assistant("Good")],
            "rejected": [user("Hi"), assistant("Bad")],
        },
        {"chosen": [user("Hi"), assistant("Good")], "rejected": [user("Hi"), assistant("Bad")]},
        {"chosen": "\n\nHuman: Hi\n\nAssistant: Good", "rejected": "\n\nHuman: Hi\n\nAssistant: Bad"},
    ],
    ids=["explicit", "text", "ultrafeedback", "implicit", "hh"],
)
def test_preference_formats_are_detected_and_parsed(row: dict) -> None:
    pair = parse_preference_pair(row, preference_format(row, RowFormat.auto))
    assert (pair.prompt, pair.chosen, pair.rejected) == (
        [user("Hi")],
        [assistant("Good")],
        [assistant("Bad")],
    )


def test_hh_transcript_keeps_the_earlier_turns_as_the_prompt() -> None:
    start = "\n\nHuman: Hi\n\nAssistant: What?\n\nSure?\n\nHuman: Yes\n\nAssistant:"
    pair = parse_preference_pair({"chosen": f"{start} A", "rejected": f"{start} B"}, RowFormat.hh)
    assert pair.prompt == [user("Hi"), assistant("What?\n\nSure?"), user("Yes")]


def test_assistant_may_speak_twice_inside_a_preference_prompt() -> None:
    prompt = [user("Hi"), assistant("One moment."), assistant("Here."), user("Thanks")]
    row = {"prompt": prompt, "chosen": "Good", "rejected": "Bad"}
    assert parse_preference_pair(row, RowFormat.preference).prompt == prompt


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({}, r"'messages' is missing; the row has \[\]"),
        ({"messages": None}, "'messages' is missing"),
        ({"messages": []}, "'messages' is empty"),
        ({"messages": "Hi"}, "'messages' must be a list of messages, got str"),
        ({"messages": ["Hi"]}, r"'messages\[0\]' must hold role and content, got str"),
        ({"messages": [{"role": "user"}]}, r"'messages\[0\].content' is missing"),
        ({"messages": [{"content": "Hi"}]}, r"'messages\[0\].role' is missing"),
        ({"messages": [user("Hi"), assistant("  ")]}, r"'messages\[1\].content' is empty"),
        ({"messages": [user("Hi"), assistant(3)]}, r"'messages\[1\].content' must be text, got int"),
        ({"messages": [user("Hi"), {"role": "bot", "content": "x"}]}, r"'messages\[1\].role' .* got 'bot'"),
        ({"messages": [assistant("Hi")]}, r"'messages\[0\].role' must be 'user' here, got 'assistant'"),
        ({"messages": [user("Hi"), SYSTEM]}, r"'messages\[1\].role' must be 'assistant' here, got 'system'"),
        ({"messages": [user("a"), assistant("b"), assistant("c")]}, r"'messages\[2\].role' must be 'user'"),
        ({"messages": [user("Hi")]}, "'messages' must end with role 'assistant', got 'user'"),
        ({"messages": [SYSTEM]}, "'messages' must end with role 'assistant', got 'system'"),
        (["Hi"], "a row must be an object with named columns, got list"),
    ],
)
def test_bad_conversation_names_the_field(row: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_conversation(row, RowFormat.messages)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "Hi", "chosen": "A"}, "'rejected' is missing"),
        ({"prompt": "Hi", "chosen": "A", "rejected": ""}, "'rejected' is empty"),
        ({"prompt": "", "chosen": "A", "rejected": "B"}, "'prompt' is empty"),
        ({"prompt": 4, "chosen": "A", "rejected": "B"}, "'prompt' must be a list of messages, got int"),
        ({"prompt": "Hi", "chosen": "A", "rejected": "A"}, "'chosen' and 'rejected' are identical"),
        ({"prompt": [assistant("Hi")], "chosen": "A", "rejected": "B"}, r"'prompt\[0\].role' must be 'user'"),
        (
            {"prompt": [user("Hi"), assistant("?")], "chosen": "A", "rejected": "B"},
            "'prompt' must end with role 'user'",
        ),
        ({"chosen": "A", "rejected": "B"}, "'chosen' is an answer without its prompt"),
        (
            {"chosen": [user("Hi"), assistant("A")], "rejected": [user("Ho"), assistant("B")]},
            "'chosen' and 'rejected' have different prompts",
        ),
        (
            {
                "prompt": "Ho",
                "chosen": [user("Hi"), assistant("A")],
                "rejected": [user("Hi"), assistant("B")],
            },
            "do not begin with the field 'prompt'",
        ),
        (
            {"prompt": "Hi", "chosen": [user("Hi")], "rejected": "B"},
            "'chosen' must end with role 'assistant'",
        ),
    ],
)
def test_bad_pair_names_the_field(row: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_preference_pair(row, RowFormat.preference)


def test_text_before_the_first_turn_of_a_transcript_is_refused() -> None:
    row = {"chosen": "Hi\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"}
    with pytest.raises(ValueError, match="'chosen' must begin with a blank line and 'Human:'"):
        parse_preference_pair(row, RowFormat.hh)


def test_unknown_columns_are_listed_beside_the_accepted_ones() -> None:
    with pytest.raises(
        ValueError, match=r"columns \['text'\].*messages.*prompt, completion.*question, answer"
    ):
        conversation_format({"text": "Hi"}, RowFormat.auto)


def test_a_format_of_the_other_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="format=hh finds no conversations"):
        conversation_format({"messages": CHAT}, RowFormat.hh)

"""Rows with tools and reasoning in templates that write them, and the refusal of all others."""

import pytest
from chat_tokenizers import tokenizer_of

from paft.chat.conversation import PreferencePair
from paft.chat.encode import encode_conversation, encode_pair
from paft.chat.proof import prove_template
from paft.chat.template import knows_tools
from paft.config import FileSource, SpecialTokens
from paft.data.prepare import prepare_sft

TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"place": 'a "b"\n東京', "days": 2}}}
USER, ANSWER = {"role": "user", "content": "Is it cold?"}, {"role": "assistant", "content": "12 degrees."}
CALLED = [USER, {"role": "assistant", "content": "", "tool_calls": [CALL]}]
RESULT = {"role": "tool", "name": "weather", "content": "12"}
THOUGHT = {"role": "assistant", "content": "Yes.", "reasoning_content": "It is 12."}


def tokens(template: str, messages: list, tools: list | None = None, **options):
    return encode_conversation(tokenizer_of("byte level", template), messages, tools=tools, **options)


@pytest.mark.parametrize(
    ("template", "knows"), [("qwen_tools", True), ("chatml", False), ("zephyr", False), ("llama3", False)]
)
def test_a_template_knows_tools_if_it_writes_them(template: str, knows: bool) -> None:
    assert knows_tools(tokenizer_of("byte level", template)) is knows


def test_a_template_that_fails_at_tools_knows_none() -> None:
    tokenizer = tokenizer_of("byte level", "chatml")
    tokenizer.chat_template = "{% if tools %}{{ raise_exception('no') }}{% endif %}" + tokenizer.chat_template
    prove_template(tokenizer)
    assert not knows_tools(tokenizer)


@pytest.mark.parametrize(
    ("messages", "tools", "there"),
    [
        ([USER, ANSWER], [TOOL], "tools"),
        (CALLED, [], "tool calls"),
        ([*CALLED, RESULT, ANSWER], [TOOL], "tools, tool calls, results of tools"),
    ],
)
def test_a_template_without_tools_refuses_them_and_says_what_to_set(messages, tools, there) -> None:
    with pytest.raises(
        ValueError, match=rf"the row has {there}, and the chat template .* data.template=tokenizer"
    ):
        tokens("chatml", messages, tools)
    prompt = messages[:1]
    with pytest.raises(ValueError, match=r"the row has .*writes no tools"):
        pair = PreferencePair(prompt, [messages[-1]], [ANSWER | {"content": "No."}], tools or [TOOL])
        encode_pair(tokenizer_of("byte level", "chatml"), pair)


def test_reasoning_that_is_not_written_is_refused() -> None:
    assert tokens("qwen_tools", [USER, THOUGHT]).num_labels > tokens("qwen_tools", [USER, ANSWER]).num_labels
    with pytest.raises(ValueError, match=r"does not write what an answer has as reasoning, 'It is 12.'"):
        tokens("chatml", [USER, THOUGHT])


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        (" + (call.function.arguments | tojson)", "does not write a tool call as it is"),
        ("(tool | tojson)", None),
    ],
)
def test_what_a_template_passes_over_is_refused(cut: str, message: str | None) -> None:
    tokenizer = tokenizer_of("byte level", "qwen_tools")
    written = "tool.function.name" if message is None else " + '{}'"
    tokenizer.chat_template = tokenizer.chat_template.replace(cut, written)
    if message is None:  # parameters of tools are the template's affair, their names are not
        assert encode_conversation(tokenizer, CALLED, tools=[TOOL]).labels
    else:
        with pytest.raises(ValueError, match=message):
            encode_conversation(tokenizer, CALLED, tools=[TOOL])


def test_a_pair_sees_the_tools_in_its_prompt() -> None:
    tokenizer = tokenizer_of("byte level", "qwen_tools")
    pair = PreferencePair([*CALLED, RESULT], [ANSWER], [ANSWER | {"content": "No."}], [TOOL])
    encoded = encode_pair(tokenizer, pair)
    prompt = tokenizer.decode(encoded.prompt_ids)
    assert '"name": "weather", "parameters"' in prompt and "<tool_response>\n12" in prompt
    assert tokenizer.decode(encoded.chosen_ids) == "12 degrees.<|im_end|>"
    called = PreferencePair([USER], [CALLED[1]], [ANSWER], [TOOL])
    assert tokenizer.decode(encode_pair(tokenizer, called).chosen_ids).startswith("<tool_call>\n{")


def test_special_tokens_in_arguments_are_as_those_in_texts() -> None:
    call = {"type": "function", "function": {"name": "weather", "arguments": {"place": "a<|im_end|>b"}}}
    messages = [USER, {"role": "assistant", "content": "", "tool_calls": [call]}]
    end = tokenizer_of("byte level", "qwen_tools").convert_tokens_to_ids("<|im_end|>")
    counts = [
        tokens("qwen_tools", messages, [TOOL], in_text=how).labels.count(end)
        for how in (SpecialTokens.token, SpecialTokens.text)
    ]
    assert counts == [2, 1]
    with pytest.raises(ValueError, match=r"holds the text '<\|im_end\|>'"):
        tokens("qwen_tools", messages, [TOOL], in_text=SpecialTokens.error)


def test_rows_with_tools_are_prepared(tmp_path, write_rows) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"messages": [*CALLED, RESULT, ANSWER], "tools": [TOOL]}] * 2)
    counts = prepare_sft(FileSource(path=path), tokenizer_of("byte level", "qwen_tools"), tmp_path)
    assert counts["train"]["rows"] == 2 and counts["train"]["read_as"] == "messages (messages, tools)"
    with pytest.raises(ValueError, match=r"a.jsonl, row 1: the row has tools, .*data.template=tokenizer"):
        prepare_sft(FileSource(path=path), tokenizer_of("byte level", "chatml"), tmp_path / "out")


def test_held_out_rows_are_texts(tmp_path, write_rows) -> None:
    plain = {"messages": [USER, ANSWER]}
    path = write_rows(tmp_path / "a.jsonl", [plain, plain | {"tools": [TOOL]}, {"messages": [USER, THOUGHT]}])
    with pytest.raises(ValueError, match=r"row 2: it has tools, which no task .*\n.*row 3: it has reasoning"):
        prepare_sft(FileSource(path=path, held_out=1), tokenizer_of("byte level", "qwen_tools"), tmp_path)


def test_what_is_to_be_filled_in_is_said_once(tmp_path, write_rows, caplog) -> None:
    row = {"instruction": "Who are you?", "output": "I am {{name}} of {{ author }}."}
    path = write_rows(tmp_path / "a.jsonl", [row] * 3 + [{"instruction": "a", "output": "{'a': {}} {{}}"}])
    prepare_sft(FileSource(path=path), tokenizer_of("byte level", "chatml"), tmp_path)
    said = [r.message for r in caplog.records if "fill it in" in r.message]
    assert said == [
        f"train of {path}: 3 of the rows hold text as {{{{name}}}}, which is learnt as it is written; fill it in if it "
        "is meant to be"
    ]


@pytest.fixture
def write_rows():
    import json

    def write(path, rows) -> str:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write

"""Rows of every tokenizer kind in every published template, token by token against `apply_chat_template`."""

import pytest
from chat_tokenizers import KINDS, TEMPLATES, tokenizer_of
from tokenizers import AddedToken, processors
from transformers import PreTrainedTokenizerFast

from paft.chat.conversation import Message, PreferencePair
from paft.chat.encode import encode_conversation, encode_pair
from paft.chat.proof import prove_template
from paft.chat.template import end_marker, stop_ids, template_text, with_bos
from paft.chat.tokens import IGNORE
from paft.config import SpecialTokens, Template


def chat(*texts: str, system: str | None = None) -> list[Message]:
    turns = [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(texts)]
    return [{"role": "system", "content": system}, *turns] if system else turns  # type: ignore[return-value]


def rendered(
    tokenizer: PreTrainedTokenizerFast, messages: list[Message], *, generation: bool = False
) -> list[int]:
    """transformers' own tokens of a conversation in one call, with one BOS if the tokenizer adds it."""
    ids: list[int] = tokenizer.apply_chat_template(
        messages, tokenize=True, add_generation_prompt=generation, return_dict=False
    )
    bos = tokenizer("").input_ids
    return ids if ids[:1] == bos else bos + ids


def learnt(tokenizer: PreTrainedTokenizerFast, messages: list[Message]) -> list[str]:
    labels = encode_conversation(tokenizer, messages).labels
    return tokenizer.convert_ids_to_tokens([label for label in labels if label != IGNORE])


EVERY_KIND = pytest.mark.parametrize("kind", KINDS)
EVERY_TEMPLATE = pytest.mark.parametrize("template", TEMPLATES)
NO_SYSTEM = ("gemma", "mistral_v1", "mistral_v3")
CHATS = {
    "one turn": chat("Hello", "Answer"),
    "turns": chat("Q?", "yes", "12 + 30", "42 is it", "東京", "ünï"),
    "system": chat("a", "No", system="Be brief."),
    "space": chat("a ", " lead "),
    "digits": chat("a", "12"),
    "line feed at the end of the prompt": chat("a\n", "Answer\n"),
}


@EVERY_KIND
@EVERY_TEMPLATE
@pytest.mark.parametrize("bos", [False, True])
def test_rows_and_prompts_are_the_tokenizers_own_rendering(kind: str, template: str, bos: bool) -> None:
    tokenizer = tokenizer_of(kind, template, adds_bos=bos)
    end = tokenizer.convert_tokens_to_ids(end_marker(tokenizer))
    prove_template(tokenizer)
    for name, messages in CHATS.items():
        if name == "system" and template in NO_SYSTEM:
            continue
        row, whole = encode_conversation(tokenizer, messages), rendered(tokenizer, messages)
        assert row.input_ids == whole[: len(row.input_ids)] and row.input_ids[-1] == end
        assert [label for label in row.labels if label != IGNORE].count(end) == len(messages) // 2
        for at in (at for at, message in enumerate(messages) if message["role"] == "assistant"):
            prompt = rendered(tokenizer, messages[:at], generation=True)
            assert row.input_ids[: len(prompt)] == prompt
            assert row.labels[len(prompt) - 1] == IGNORE != row.labels[len(prompt)]
            answer = len(encode_conversation(tokenizer, messages[: at + 1]).input_ids)
            assert IGNORE not in row.labels[len(prompt) : answer] and row.input_ids[answer - 1] == end


@EVERY_KIND
@EVERY_TEMPLATE
def test_a_prompt_with_either_answer_is_the_rendering_of_that_conversation(kind: str, template: str) -> None:
    tokenizer = tokenizer_of(kind, template)
    prompt = chat("Q?", "yes", "Is it 42?")
    for chosen, rejected in (("Answer", "No"), ("\n\nyes", "12"), (" An", "Answer")):
        pair = PreferencePair(prompt, chat("", chosen)[1:], chat("", rejected)[1:])
        row = encode_pair(tokenizer, pair)
        for ids, answer in ((row.chosen_ids, pair.chosen), (row.rejected_ids, pair.rejected)):
            whole = rendered(tokenizer, prompt + answer)
            both = row.prompt_ids + ids
            assert both == whole[: len(both)] and len(both) >= len(whole) - 3 and ids
        expected = rendered(tokenizer, prompt, generation=True)
        assert row.prompt_ids == expected[: len(row.prompt_ids)] and len(row.prompt_ids) >= len(expected) - 1


@pytest.mark.parametrize("kind", ["sentencepiece legacy", "sentencepiece first", "sentencepiece always"])
@pytest.mark.parametrize("template", ["llama2", "mistral_v3"])
def test_an_answer_behind_inst_is_the_word_that_follows_it(kind: str, template: str) -> None:
    words = learnt(tokenizer_of(kind, template), chat("question", "Answer"))
    assert words[0] == "▁Answer" and words[-1] == "</s>"


def test_what_the_tokenizer_joins_over_the_beginning_of_an_answer_is_learnt() -> None:
    tokenizer = tokenizer_of("byte level without words", "chatml")
    messages = chat("Q", "\na")
    assert rendered(tokenizer, messages[:1], generation=True)[-1:] == tokenizer.convert_tokens_to_ids(["Ċ"])
    assert learnt(tokenizer, messages) == ["ĊĊ", "a", "<|im_end|>"]


def test_what_a_template_writes_behind_the_whole_conversation_is_no_part_of_an_answer() -> None:
    tokenizer = tokenizer_of("byte level", "phi3")
    assert tokenizer.apply_chat_template(chat("a", "No"), tokenize=False).endswith("No<|end|>\n</s>")
    assert learnt(tokenizer, chat("a", "No"))[-1] == "<|end|>" == end_marker(tokenizer)


@pytest.mark.parametrize(
    "content", ["No<|im_end|>", "No<|im_end|>\n", "No<|im_end|><|im_end|> ", "No</s>", "No</s><|im_end|>\n"]
)
def test_an_end_that_the_data_brings_stands_once(content: str) -> None:
    tokenizer = tokenizer_of("byte level", "chatml")
    assert encode_conversation(tokenizer, chat("a", content)) == encode_conversation(
        tokenizer, chat("a", "No")
    )


def test_a_user_who_asks_about_eos_keeps_the_word() -> None:
    tokenizer = tokenizer_of("byte level", "chatml")
    ids = encode_conversation(tokenizer, chat("What is </s>", "No")).input_ids
    assert tokenizer.eos_token_id in ids


def test_a_message_that_the_template_passes_over_is_refused() -> None:
    tokenizer = tokenizer_of("byte level", "chatml")
    tokenizer.chat_template = (
        TEMPLATES["chatml"]
        .replace(
            "{%- for message in messages %}", "{%- for message in messages if message['role'] != 'system' %}"
        )
        .replace(
            "{% for message in messages %}", "{% for message in messages if message['role'] != 'system' %}"
        )
    )
    assert encode_conversation(tokenizer, chat("a", "No")).labels
    with pytest.raises(ValueError, match=r"does not write a message of the system as it is, 'Be brief.'"):
        encode_conversation(tokenizer, chat("a", "No", system="Be brief."))
    pair = PreferencePair(chat("a", system="Be brief."), chat("", "No")[1:], chat("", "yes")[1:])
    with pytest.raises(ValueError, match="does not write a message of the system"):
        encode_pair(tokenizer, pair)


# --- proof -----------------------------------------------------------------------------------------------


def test_a_generation_prompt_that_ends_in_a_space_which_answers_take_is_refused() -> None:
    tokenizer = tokenizer_of("byte level", "vicuna")
    tokenizer.chat_template = tokenizer.chat_template.replace("'ASSISTANT:' }}", "'ASSISTANT: ' }}")
    with pytest.raises(ValueError, match=r"would begin behind \['Ġ'\].*joins with .* 'Answer'"):
        prove_template(tokenizer)


def test_a_tokenizer_that_ends_every_text_is_refused() -> None:
    tokenizer = tokenizer_of("byte level", "chatml")
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in ("<s>", "</s>")}
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=list(ids.items())
    )
    with pytest.raises(ValueError, match=r"writes '</s>' behind every text.*add_eos_token=false"):
        prove_template(tokenizer)


def test_a_word_is_no_end_of_a_turn() -> None:
    """Answers may hold it, and a tokenizer may read it otherwise inside a text."""
    tokenizer = tokenizer_of("byte level without words", "chatml")
    tokenizer.chat_template = TEMPLATES["chatml"].replace("<|im_end|>", "a")
    with pytest.raises(ValueError, match=r"ends a turn with 'a', which is a word as others"):
        prove_template(tokenizer)


def test_a_tokenizer_that_reads_turns_otherwise_in_one_piece_is_refused() -> None:
    tokenizer = tokenizer_of("byte level", "chatml")
    tokenizer.add_tokens([AddedToken("<|im_end|>\n<|im_start|>user\nb", normalized=False)])
    assert encode_conversation(tokenizer, chat("a", "No", "c", "No")).labels
    with pytest.raises(ValueError, match="otherwise in one piece than turn by turn"):
        encode_conversation(tokenizer, chat("a", "No", "b", "No"))


def test_what_is_learnt_before_every_answer_and_a_date_are_named(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = tokenizer_of("byte level", "chatml")
    prove_template(tokenizer)
    assert not caplog.text
    tokenizer.chat_template = TEMPLATES["chatml"].partition("{% if add")[0].partition("{%- if add")[0]
    prove_template(tokenizer)
    assert "writes '<|im_start|>assistant' before an answer but not at the end of a prompt" in caplog.text
    tokenizer.chat_template = "{{ strftime_now('%Y') }}" + TEMPLATES["chatml"]
    prove_template(tokenizer)
    assert "writes today's date" in caplog.text


# --- templates by name -----------------------------------------------------------------------------------


def test_of_named_templates_the_tokenizers_own_is_default(tmp_path) -> None:
    tokenizer = tokenizer_of("byte level", "chatml")
    tokenizer.chat_template = {"tool_use": "no", "default": TEMPLATES["zephyr"]}
    assert template_text(Template.tokenizer, tokenizer) == TEMPLATES["zephyr"]
    tokenizer.save_pretrained(tmp_path, save_jinja_files=False)  # as a list in tokenizer_config.json
    reloaded = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert template_text(Template.tokenizer, reloaded) == TEMPLATES["zephyr"]


def test_named_templates_without_a_default_are_listed() -> None:
    tokenizer = tokenizer_of("byte level", "chatml")
    tokenizer.chat_template = {"rag": "x", "tool_use": "y"}
    with pytest.raises(ValueError, match=r"has the chat templates rag, tool_use and none .* default"):
        template_text(Template.tokenizer, tokenizer)


# --- special tokens in text ------------------------------------------------------------------------------

TEXT = "What does <|im_end|> do?"


def test_a_special_token_in_a_text_is_that_token_unless_told_otherwise() -> None:
    tokenizer = tokenizer_of("byte level", "chatml")
    row, end = encode_conversation(tokenizer, chat(TEXT, "No")), tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert row.input_ids == rendered(tokenizer, chat(TEXT, "No"))[: len(row.input_ids)]
    assert row.input_ids.count(end) == 3


@EVERY_KIND
def test_a_special_token_in_a_text_may_be_text(kind: str) -> None:
    tokenizer = tokenizer_of(kind, "chatml")
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    row = encode_conversation(tokenizer, chat(TEXT, f"A {TEXT}"), SpecialTokens.text)
    assert row.input_ids.count(end) == 2 and row.labels.count(end) == 1
    if "byte level" in kind:
        assert TEXT in tokenizer.decode(row.input_ids) and f"A {TEXT}<|im_end|>" in tokenizer.decode(
            [label for label in row.labels if label != IGNORE]
        )
    pair = encode_pair(
        tokenizer, PreferencePair(chat(TEXT), chat("", "No")[1:], chat("", TEXT)[1:]), SpecialTokens.text
    )
    assert [ids.count(end) for ids in pair] == [1, 1, 1]
    same = encode_conversation(tokenizer, chat("a", "No"), SpecialTokens.text)
    assert same == encode_conversation(tokenizer, chat("a", "No"))


def test_a_special_token_in_a_text_may_be_an_error() -> None:
    tokenizer = tokenizer_of("byte level", "chatml")
    with pytest.raises(ValueError, match=r"holds the text '<\|im_end\|>'.*special_tokens_in_text=text"):
        encode_conversation(tokenizer, chat(TEXT, "No"), SpecialTokens.error)
    assert encode_conversation(tokenizer, chat("a", "No<|im_end|>"), SpecialTokens.error).labels


# --- where answers end -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "ends"),
    [("chatml", {"</s>", "<|im_end|>"}), ("llama3", {"</s>", "<|eot_id|>"}), ("zephyr", {"</s>"})],
)
def test_generation_stops_at_eos_and_at_the_end_of_turn(template: str, ends: set[str]) -> None:
    tokenizer = tokenizer_of("byte level", template)
    assert set(tokenizer.convert_ids_to_tokens(stop_ids(tokenizer))) == ends


def test_without_a_template_generation_stops_at_eos() -> None:
    tokenizer = tokenizer_of("byte level", "chatml")
    tokenizer.chat_template = None
    assert stop_ids(tokenizer) == [tokenizer.eos_token_id]


def test_a_template_that_is_written_begins_with_the_bos_of_training() -> None:
    tokenizer = tokenizer_of("sentencepiece legacy", "zephyr", adds_bos=True)
    row = encode_conversation(tokenizer, chat("a", "No"))
    tokenizer.chat_template = with_bos(tokenizer)
    plain = tokenizer.apply_chat_template(chat("a", "No"), tokenize=True, return_dict=False)
    assert row.input_ids == plain[: len(row.input_ids)] and row.input_ids[0] == tokenizer.bos_token_id
    assert with_bos(tokenizer) == tokenizer.chat_template

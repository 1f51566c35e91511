"""Templates, tokens and label masks, against recorded ids and against transformers' own rendering."""

import json
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from paft.chat.conversation import Message, PreferencePair
from paft.chat.encode import encode_conversation, encode_pair
from paft.chat.template import end_marker, template_text
from paft.chat.tokens import IGNORE, Encoded, EncodedPair, kept_lengths
from paft.config import Source, Template

GOLDEN = Path(__file__).parent / "golden" / "chat.json"
CHAT: list[Message] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi there"},
    {"role": "assistant", "content": "Hello!"},
    {"role": "user", "content": "2+2?"},
    {"role": "assistant", "content": "It is\n4."},
]
PAIR = PreferencePair(
    CHAT[1:4], [{"role": "assistant", "content": "Four."}], [{"role": "assistant", "content": "No."}]
)
OWN_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nI am Tiny.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_tokenizer(
    specials: list[str], *, bos: str | None, eos: str, adds_bos: bool
) -> PreTrainedTokenizerFast:
    """One token a byte, and the special tokens; `adds_bos` as Mistral's and Llama's tokenizers do."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({byte: at for at, byte in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in specials])
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(str(bos), tokenizer.token_to_id(bos))]
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token=eos)


def tokenizer_for(template: Template) -> PreTrainedTokenizerFast:
    """The kind of tokenizer each template is meant for."""
    if template is Template.zephyr:
        tokenizer = byte_tokenizer(["<s>", "</s>"], bos="<s>", eos="</s>", adds_bos=True)
    elif template is Template.llama3:
        specials = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
        tokenizer = byte_tokenizer(specials, bos=specials[0], eos=specials[-1], adds_bos=True)
    else:
        specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
        tokenizer = byte_tokenizer(specials, bos="<|im_start|>", eos="<|im_end|>", adds_bos=False)
        tokenizer.chat_template = OWN_TEMPLATE
    tokenizer.chat_template = template_text(template, tokenizer)
    return tokenizer


def sentencepiece_tokenizer() -> PreTrainedTokenizerFast:
    """Characters with a space put before every text, as the tokenizer of Mistral-7B-v0.1 does."""
    text = "".join(message["content"] for message in CHAT) + "<|user|>\n<|assistant|>\n<|system|>▁Four.No."
    tokenizer = Tokenizer(models.BPE({char: at for at, char in enumerate(sorted(set(text)))}, []))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in ("<s>", "</s>")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    fast.chat_template = template_text(Template.zephyr, fast)
    return fast


def rendered(tokenizer: PreTrainedTokenizerFast, messages: list[Message], *, generation: bool) -> str:
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation)


def ids_with_one_bos(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """What generation feeds the model: the tokenizer's default, unless the text has its BOS already."""
    has_bos = tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)
    return tokenizer(text, add_special_tokens=not has_bos).input_ids


def learnt(tokenizer: PreTrainedTokenizerFast, labels: list[int]) -> list[str]:
    """Each labelled stretch as text."""
    stretches: list[list[int]] = [[]]
    for label in labels:
        if label != IGNORE:
            stretches[-1].append(label)
        elif stretches[-1]:
            stretches.append([])
    return [tokenizer.decode(stretch) for stretch in stretches if stretch]


def record(template: Template) -> dict:
    tokenizer = tokenizer_for(template)
    row, pair = encode_conversation(tokenizer, CHAT), encode_pair(tokenizer, PAIR)
    return {
        "text": tokenizer.decode(row.input_ids),
        "learnt": learnt(tokenizer, row.labels),
        "input_ids": row.input_ids,
        "learnt_at": [at for at, label in enumerate(row.labels) if label != IGNORE],
        "prompt": tokenizer.decode(pair.prompt_ids),
        "chosen": tokenizer.decode(pair.chosen_ids),
        "rejected": tokenizer.decode(pair.rejected_ids),
        "pair_ids": list(pair),
    }


EVERY_TEMPLATE = pytest.mark.parametrize("template", list(Template))
EVERY_TOKENIZER = pytest.mark.parametrize(
    "tokenizer",
    [*(tokenizer_for(template) for template in Template), sentencepiece_tokenizer()],
    ids=[*(template.value for template in Template), "sentencepiece"],
)


@EVERY_TEMPLATE
def test_tokens_and_labels_are_the_recorded_ones(template: Template) -> None:
    assert record(template) == json.loads(GOLDEN.read_text())[template.value]


@EVERY_TOKENIZER
def test_conversation_against_apply_chat_template(tokenizer: PreTrainedTokenizerFast) -> None:
    whole = rendered(tokenizer, CHAT, generation=False).rstrip()
    assert encode_conversation(tokenizer, CHAT).input_ids == ids_with_one_bos(tokenizer, whole)


@EVERY_TOKENIZER
def test_prompt_ids_are_what_generation_sees(tokenizer: PreTrainedTokenizerFast) -> None:
    row, pair = encode_conversation(tokenizer, CHAT), encode_pair(tokenizer, PAIR)
    expected = ids_with_one_bos(tokenizer, rendered(tokenizer, PAIR.prompt, generation=True))
    assert pair.prompt_ids == expected
    for turn in (2, 4):
        prompt = ids_with_one_bos(tokenizer, rendered(tokenizer, CHAT[:turn], generation=True))
        assert row.input_ids[: len(prompt)] == prompt
        assert row.labels[len(prompt) - 1] == IGNORE != row.labels[len(prompt)]


@EVERY_TOKENIZER
def test_prompt_and_answer_against_apply_chat_template(tokenizer: PreTrainedTokenizerFast) -> None:
    pair = encode_pair(tokenizer, PAIR)
    for answer, ids in ((PAIR.chosen, pair.chosen_ids), (PAIR.rejected, pair.rejected_ids)):
        whole = rendered(tokenizer, PAIR.prompt + answer, generation=False).rstrip()
        assert pair.prompt_ids + ids == ids_with_one_bos(tokenizer, whole)


@EVERY_TOKENIZER
def test_only_answers_and_their_end_are_learnt(tokenizer: PreTrainedTokenizerFast) -> None:
    row, end = encode_conversation(tokenizer, CHAT), end_marker(tokenizer)
    end_id = tokenizer.convert_tokens_to_ids(end)
    assert all(label in (IGNORE, token) for token, label in zip(row.input_ids, row.labels, strict=True))
    assert row.labels.count(end_id) == 2 and row.labels[-1] == end_id
    assert [text.replace("▁", " ").split()[0] for text in learnt(tokenizer, row.labels)] in (
        [f"Hello!{end}", "It"],
        ["H", "I"],  # the sentencepiece decoder of the test separates the characters
    )


@pytest.mark.parametrize("template", [Template.zephyr, Template.llama3])
def test_bos_stands_once_and_eos_is_not_doubled(template: Template) -> None:
    tokenizer = tokenizer_for(template)
    ended: list[Message] = [CHAT[1], {"role": "assistant", "content": f"Hello!{tokenizer.eos_token}"}]
    row, pair = encode_conversation(tokenizer, ended), encode_pair(tokenizer, PAIR)
    assert row.input_ids.count(tokenizer.bos_token_id) == 1 == pair.prompt_ids.count(tokenizer.bos_token_id)
    assert row.labels.count(tokenizer.eos_token_id) == 1 == pair.chosen_ids.count(tokenizer.eos_token_id)


@pytest.mark.parametrize(
    "end", ["<|im_end|>\n", "<|endoftext|>", "<|im_end|>\n<|endoftext|> ", "<|endoftext|><|im_end|>"]
)
def test_an_end_that_the_data_brings_is_not_learnt_before_the_templates_own(end: str) -> None:
    tokenizer = tokenizer_for(Template.chatml)
    tokenizer.eos_token = "<|endoftext|>"
    ended: list[Message] = [CHAT[1], {"role": "assistant", "content": f"Hello!{end}"}]
    plain: list[Message] = [CHAT[1], {"role": "assistant", "content": "Hello!"}]
    assert encode_conversation(tokenizer, ended) == encode_conversation(tokenizer, plain)
    pair = PreferencePair(CHAT[1:2], ended[1:], [{"role": "assistant", "content": "No."}])
    assert tokenizer.decode(encode_pair(tokenizer, pair).chosen_ids) == "Hello!<|im_end|>"


def test_answers_with_train_false_are_not_learnt() -> None:
    tokenizer = tokenizer_for(Template.zephyr)
    unlearnt: list[Message] = [*CHAT[:2], {**CHAT[2], "train": False}, *CHAT[3:]]
    row, all_learnt = encode_conversation(tokenizer, unlearnt), encode_conversation(tokenizer, CHAT)
    assert row.input_ids == all_learnt.input_ids and row.prompt_length == all_learnt.prompt_length
    assert learnt(tokenizer, row.labels) == learnt(tokenizer, all_learnt.labels)[1:] == ["It is\n4.</s>"]


def test_no_bos_where_the_tokenizer_adds_none() -> None:
    tokenizer = tokenizer_for(Template.chatml)
    row = encode_conversation(tokenizer, CHAT)
    assert row.input_ids[0] == tokenizer.convert_tokens_to_ids("<|im_start|>") != row.input_ids[1]


@pytest.mark.parametrize(
    ("template", "end"),
    [(Template.chatml, "<|im_end|>"), (Template.zephyr, "</s>"), (Template.llama3, "<|eot_id|>")],
)
def test_end_marker_of_each_template(template: Template, end: str) -> None:
    assert end_marker(tokenizer_for(template)) == end


def test_shipped_templates_insert_no_system_message() -> None:
    for template in (Template.chatml, Template.zephyr, Template.llama3):
        assert "system" not in rendered(tokenizer_for(template), CHAT[1:3], generation=True)


def test_zephyr_text_is_that_of_the_alignment_handbook() -> None:
    text = rendered(tokenizer_for(Template.zephyr), CHAT[:2], generation=True)
    assert text == "<|system|>\nBe brief.</s>\n<|user|>\nHi there</s>\n<|assistant|>\n"


def test_llama3_text_is_that_of_the_instruct_models() -> None:
    text = rendered(tokenizer_for(Template.llama3), CHAT[:2], generation=True)
    header = "<|start_header_id|>{}<|end_header_id|>\n\n".format
    assert text == (
        f"<|begin_of_text|>{header('system')}Be brief.<|eot_id|>"
        f"{header('user')}Hi there<|eot_id|>{header('assistant')}"
    )


def test_chatml_without_its_end_token_is_refused() -> None:
    tokenizer = tokenizer_for(Template.zephyr)
    tokenizer.chat_template = template_text(Template.chatml, tokenizer)
    with pytest.raises(ValueError, match=r"'<\|im_end\|>', which is 10 tokens.*data.template=zephyr.*'</s>'"):
        encode_conversation(tokenizer, CHAT)


def test_template_without_an_end_is_refused() -> None:
    tokenizer = tokenizer_for(Template.zephyr)
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    with pytest.raises(ValueError, match="ends a turn with nothing"):
        encode_pair(tokenizer, PAIR)


def test_template_that_rewrites_earlier_turns_is_refused() -> None:
    tokenizer = tokenizer_for(Template.zephyr)
    tokenizer.chat_template = "{{ messages | length }}" + tokenizer.chat_template
    with pytest.raises(ValueError, match="rewrites earlier turns"):
        encode_conversation(tokenizer, CHAT)


def test_template_that_refuses_messages_is_reported() -> None:
    tokenizer = tokenizer_for(Template.zephyr)
    refusal = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    tokenizer.chat_template = refusal + tokenizer.chat_template
    with pytest.raises(ValueError, match="refuses the messages: no system"):
        encode_conversation(tokenizer, CHAT)


def test_base_model_without_a_template_names_the_alternatives() -> None:
    tokenizer = byte_tokenizer(["</s>"], bos=None, eos="</s>", adds_bos=False)
    tokenizer.name_or_path = "base-7b"
    with pytest.raises(ValueError, match=r"base-7b has no chat template.*chatml, zephyr, llama3"):
        template_text(Template.tokenizer, tokenizer)


@pytest.mark.parametrize(
    ("prompt", "answer", "expected"),
    [
        (5, 5, (5, 5)),  # fits
        (8, 2, (6, 2)),  # prompt limit
        (6, 7, (3, 7)),  # both together
        (6, 9, (1, 9)),  # longest answer that is kept whole
        (6, 10, (6, 4)),  # only with too_long=truncate
        (2, 30, (2, 8)),
    ],
)
def test_kept_lengths_of_a_preference_row(prompt: int, answer: int, expected: tuple[int, int]) -> None:
    source = Source(max_length=10, max_prompt_length=6)
    assert kept_lengths(prompt, answer, source.max_prompt_length, source) == expected


def test_prompt_loses_its_oldest_tokens_but_not_bos() -> None:
    source = Source(max_length=7, max_prompt_length=4)
    pair = EncodedPair([1, 11, 12, 13, 14, 15], [21, 22], [31, 32, 33, 34])
    assert pair.fitted(source, 1) == ([1, 14, 15], [21, 22], [31, 32, 33, 34])
    assert pair.fitted(source, None) == ([13, 14, 15], [21, 22], [31, 32, 33, 34])


def test_conversation_is_whole_if_it_fits_and_loses_its_oldest_tokens_if_not() -> None:
    row = Encoded([1, 11, 12, 13, 14, 15], [IGNORE, 11, 12, IGNORE, 14, 15])
    assert row.fitted(Source(max_length=6, max_prompt_length=2), 1) == row
    assert row.fitted(Source(max_length=5, max_prompt_length=2), 1) == (
        [1, 12, 13, 14, 15],
        [IGNORE, 12, IGNORE, 14, 15],
    )
    assert row.fitted(Source(max_length=3, max_prompt_length=2), None).labels == [IGNORE, 14, 15]


def test_truncated_answer_keeps_its_beginning() -> None:
    row = Encoded([1, 11, 12, 21, 22, 23, 24], [IGNORE] * 3 + [21, 22, 23, 24])
    kept = row.fitted(Source(max_length=4, max_prompt_length=2), 1)
    assert kept == ([1, 12, 21, 22], [IGNORE, IGNORE, 21, 22])


if __name__ == "__main__":
    GOLDEN.write_text(
        json.dumps({template.value: record(template) for template in Template}, indent=1) + "\n"
    )

"""Small tokenizers of every kind and the chat templates of the field, as their models' authors publish them."""

from pathlib import Path

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

WORDS = (
    "Answer the question: what is 12 + 30? It is 42. Hello, my name is Tiny; yes or no? The swer An answer.\n"
    "user\nassistant\nsystem\nmodel\n[INST] Answer it [/INST] Answer yes\n\nBe brief, please.\n  indented ünïcode 東京 "
)
MARKS = [
    "<s>",
    "</s>",
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<|user|>",
    "<|assistant|>",
    "<|system|>",
    "<|end|>",
    "<|Assistant|>",
    "<|User|>",
]
ALPHABET = sorted(set(WORDS) | set("▁") | {chr(c) for c in range(33, 127)})


def byte_level(*texts: str, prefix_space: bool = False) -> Tokenizer:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        texts or [WORDS] * 4,
        trainers.BpeTrainer(vocab_size=600 if texts else 420, initial_alphabet=alphabet, show_progress=False),
    )
    return core


def line_feeds() -> Tokenizer:
    """Byte-level without words: whatever stands together may be one token, as several line feeds are in Llama-3."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        ["\n\n", "a\n\n\n", "\n\n"] * 4,
        trainers.BpeTrainer(vocab_size=262, initial_alphabet=alphabet, show_progress=False),
    )
    return core


def sentencepiece(scheme: str) -> Tokenizer:
    """`legacy` writes a space before each stretch between special tokens, `first` before the text alone."""
    core = Tokenizer(models.BPE())
    space = "always" if scheme == "legacy" else scheme
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=space, split=True)
    core.train_from_iterator(
        [WORDS] * 4, trainers.BpeTrainer(vocab_size=420, initial_alphabet=ALPHABET, show_progress=False)
    )
    core.decoder = decoders.Metaspace(prepend_scheme=space)
    if scheme == "legacy":
        core.pre_tokenizer = None  # type: ignore[assignment]
        core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return core


def unigram() -> Tokenizer:
    core = Tokenizer(models.Unigram())
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    core.decoder = decoders.Metaspace(prepend_scheme="always")
    core.train_from_iterator(
        [WORDS] * 20,
        trainers.UnigramTrainer(
            vocab_size=200,
            initial_alphabet=ALPHABET,
            unk_token="<unk>",
            special_tokens=["<unk>"],
            show_progress=False,
        ),
    )
    return core


def wordpiece() -> Tokenizer:
    core = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece()
    core.train_from_iterator(
        [WORDS] * 4,
        trainers.WordPieceTrainer(
            vocab_size=420, initial_alphabet=ALPHABET, special_tokens=["[UNK]"], show_progress=False
        ),
    )
    return core


KINDS = {
    "byte level": byte_level,
    "byte level, prefix space": lambda: byte_level(prefix_space=True),
    "byte level without words": line_feeds,
    "sentencepiece legacy": lambda: sentencepiece("legacy"),
    "sentencepiece first": lambda: sentencepiece("first"),
    "sentencepiece always": lambda: sentencepiece("always"),
    "sentencepiece never": lambda: sentencepiece("never"),
    "unigram": unigram,
    "wordpiece": wordpiece,
}

TEMPLATES = {
    path.stem: path.read_text(encoding="utf-8").removesuffix("\n")
    for path in sorted(Path(__file__).parent.glob("chat_templates/*.jinja"))
}


def tokenizer_of(kind: str, template: str, *, adds_bos: bool = False) -> PreTrainedTokenizerFast:
    """The tokenizer with all marks special, BOS `<s>` and EOS `</s>`."""
    return finished(KINDS[kind](), template, adds_bos=adds_bos)


def finished(core: Tokenizer, template: str, *, adds_bos: bool = False) -> PreTrainedTokenizerFast:
    core.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in MARKS])
    if adds_bos:
        core.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", core.token_to_id("<s>"))]
        )
    fast = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>")
    fast.chat_template = TEMPLATES[template]
    return fast

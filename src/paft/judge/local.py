"""A judge that is a model folder on this disk: the log-probabilities of its first token, as an endpoint gives them."""

import math
import threading
from pathlib import Path
from typing import Any

import jinja2
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from paft.judge.answers import Hopeless
from paft.judge.prompts import Completion, Question

MOST = 20
"""Log-probabilities that may be asked for: OpenAI's limit."""


class Local:
    """Answers with one forward pass of the prompt, in the folder's own type and chat template."""

    at_once = 1

    def __init__(self, folder: Path, model: str, *, device: str) -> None:
        """Raises `ValueError` for a folder that is no model, or whose tokenizer has no chat template."""
        self.folder, self.model = folder, model
        disable_progress_bar()
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(folder)
            judge = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", use_safetensors=True)
        except (OSError, ValueError, ImportError, KeyError) as error:
            raise ValueError(
                f"judge.path={folder} cannot be loaded: {type(error).__name__}: {error}"
            ) from error
        if self.tokenizer.chat_template is None:
            raise ValueError(
                f"the tokenizer of judge.path={folder} has no chat template, so it cannot be asked"
            )
        network: Any = judge
        self.network = network.to(device).eval()
        self.device = self.network.device  # by number: a thread's own `cuda` is the first GPU

    def ask(self, question: Question, stop: threading.Event) -> Completion:
        ids, most = self._prompt(question), int(question.sampling.get("max_tokens") or 1)
        return self._written(ids, most) if most > 1 else self._first(ids, question)

    @torch.inference_mode()
    def _first(self, ids: list[int], question: Question) -> Completion:
        """The first token. Tokens that read alike, as one with a space before it and one without, are one."""
        logits = self.network(torch.tensor([ids], device=self.device), logits_to_keep=1).logits[0, -1]
        logprobs = torch.log_softmax(logits.float(), dim=-1)
        top = logprobs.topk(min(int(question.sampling.get("top_logprobs") or 1), MOST, len(logprobs)))
        together: dict[str, float] = {}
        for token, value in zip(top.indices.tolist(), top.values.tolist(), strict=True):
            text = str(self.tokenizer.decode([token])).strip()
            together[text] = math.log(math.exp(together.get(text, -math.inf)) + math.exp(value))
        entries = [{"token": text, "logprob": value} for text, value in together.items()]
        return {
            "message": {"role": "assistant", "content": entries[0]["token"]},
            "logprobs": {"content": [entries[0] | {"top_logprobs": entries}]},
            "usage": {"prompt_tokens": len(ids), "completion_tokens": 1},
        }

    @torch.inference_mode()
    def _written(self, ids: list[int], most: int) -> Completion:
        """The likeliest token each time: what a judge is asked in words is asked at temperature 0."""
        prompt = torch.tensor([ids], device=self.device)
        generated = self.network.generate(
            prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=most
        )[0, len(ids) :]
        text = self.tokenizer.decode(generated, skip_special_tokens=True)
        usage = {"prompt_tokens": len(ids), "completion_tokens": len(generated)}
        return {"message": {"role": "assistant", "content": text}, "usage": usage}

    def _prompt(self, question: Question) -> list[int]:
        try:
            text = self.tokenizer.apply_chat_template(
                list(question.messages), tokenize=False, add_generation_prompt=True
            )
        except (jinja2.TemplateError, TypeError) as error:
            raise Hopeless(
                f"the chat template of judge.path={self.folder} refuses the annotator's messages: {error}"
            ) from None
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

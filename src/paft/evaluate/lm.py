"""lm-eval's Hugging Face model with log-likelihoods computed where they are asked for, and each token forwarded once.

None of the savings changes a score: those of `paft.forward.loglikelihood`, and that the output head's weight is not
copied when text is generated. And a generated answer ends where the chat template ends a turn, which lm-eval knows
nothing of.
"""

import logging
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from paft.chat.template import adds_bos, stop_ids
from paft.evaluate.backends import Scored
from paft.files.journal import Journal
from paft.forward.loglikelihood import LogLikelihoods
from paft.forward.tree import Request
from paft.model.paths import paths_of
from paft.proof.base import load_base


class SparingLM(HFLM):
    """`HFLM` with the savings of this module, as far as the model takes PAFT's fast paths.

    With a `journal` an evaluation that was cut short goes on at the batch it was at, and processes that score the same
    share the batches; all end with the bytes of one alone.
    """

    journal: Journal | None = None
    generation_batch_size: int | None = None
    """Texts written at once, where none is drawn; None: the batch size."""
    left = False
    """Whether some texts were left to other processes."""

    def _model_generate(
        self, context: Tensor, max_length: int, stop: list[str], **generation_kwargs: Any
    ) -> Tensor:
        """As `HFLM`'s, but every row ends at the first token that ends a turn, whatever its neighbours still write.

        The head gets the last positions side by side: of rows that lie apart torch makes a batch, and copies the
        head's weight, as large as the vocabulary, once for each.
        """
        drawn = generation_kwargs.get("do_sample", False)  # another time it would be another text
        if self.journal is None or drawn:
            return self._generated(context, max_length, stop, **generation_kwargs)
        asked = f"{context.tolist()} {max_length} {stop} {sorted(generation_kwargs.items())!r}"
        name = sha256(asked.encode()).hexdigest()
        kept = self.journal.get(name)
        if kept is not None:
            return torch.tensor(kept, device=context.device)
        with self.journal.claim(name) as mine:
            if not mine:
                self.left = True
                return context  # read by another pass
            if (kept := self.journal.get(name)) is not None:
                return torch.tensor(kept, device=context.device)
            generated = self._generated(context, max_length, stop, **generation_kwargs)
            self.journal.put(name, generated.tolist())
        return generated

    def _generated(
        self, context: Tensor, max_length: int, stop: list[str], **generation_kwargs: Any
    ) -> Tensor:
        head = self.model.get_output_embeddings()
        ends = end_ids(self.model.generation_config, self.tokenizer)
        with head.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(),)):
            generated: Tensor = super()._model_generate(
                context, max_length, stop, **{"eos_token_id": ends, **generation_kwargs}
            )
        answers_BT = generated[:, context.shape[1] :]
        over_BT = torch.isin(answers_BT, torch.tensor(ends, device=generated.device)).cumsum(1) > 0
        answers_BT[over_BT] = self.eot_token_id  # skipped when it is decoded, as padding may not be
        return generated

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """As `HFLM`'s, in batches of their own; one text at a time where padding on the left would change it.

        What is drawn depends on its neighbours: those stay as they are.
        """
        size: int = self.batch_size_per_gpu  # type: ignore[has-type]
        if not paths_of(self.model).generated:
            self.batch_size_per_gpu = 1
        elif not any(draws(request.args[1]) for request in requests):
            self.batch_size_per_gpu = self.generation_batch_size or size
        try:
            while True:
                self.left = False
                texts: list[str] = super().generate_until(requests, disable_tqdm=disable_tqdm)
                if not self.left:
                    return texts
                assert self.journal is not None
                self.journal.wait()
        finally:
            self.batch_size_per_gpu = size

    def _loglikelihood_tokens(
        self, requests: list[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """(log-likelihood of the continuation, whether greedy decoding gives it) of every request."""
        scorer = LogLikelihoods(
            self.model, batch_size=int(self.batch_size), quiet=disable_tqdm, journal=self.journal
        )
        answers = scorer(requests, self.max_length)
        for (text, _, _), answer in zip(requests, answers, strict=True):
            if text is not None:
                self.cache_hook.add_partial("loglikelihood", text, answer)
        return answers


def draws(settings: Mapping[str, Any]) -> bool:
    """Whether lm-eval's settings of a generated text draw its tokens."""
    return bool(settings.get("do_sample", float(settings.get("temperature") or 0.0) > 0))


def end_ids(settings: Any, tokenizer: Any) -> list[int]:
    """Ids that end a generated answer: those of a model's generation_config, the EOS, the template's end of turn."""
    eos = settings.eos_token_id
    return sorted({*(eos if isinstance(eos, list) else [eos]), *stop_ids(tokenizer)} - {None})


def load(scored: Scored) -> SparingLM:
    """The model in transformers, as lm-eval asks it."""
    config = scored.evaluate
    return lm_of(
        load_base(scored.folder, scored.model, scored.paths, used_on=scored.device),
        scored.tokenizer,
        config.batch_size,
        scored.device,
        chats=config.apply_chat_template,
        generation_batch_size=config.generation_batch_size,
        journal=scored.work / "answered.jsonl",
    )


def lm_of(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    batch_size: int,
    device: str | None,
    *,
    chats: bool,
    generation_batch_size: int | None = None,
    journal: Path | None = None,
) -> SparingLM:
    """The model for lm-eval, on the named device, or where it is.

    `journal` is the file of a run that may be cut short, and of no other model.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    model = model.to(device) if device else model
    lm = SparingLM(
        pretrained=model,
        tokenizer=tokenizer,
        batch_size=batch_size,
        device=str(model.device),
        # a chat is read as it was trained: with a BOS if the tokenizer adds one, with nothing else that it adds
        add_bos_token=adds_bos(tokenizer) if chats else None,
    )
    lm.journal = Journal(journal) if journal else None
    lm.generation_batch_size = generation_batch_size
    return lm

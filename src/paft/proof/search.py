"""Whether a base's fast paths give its own results, found out before it is used.

All that PAFT does to be fast (`paft.model.paths`) is right for the models it was written for. A base that people
bring may have a bias on its head, sinks in its attention, a convolution between its layers. So every path is compared
with transformers' plain forward under eager attention, in float32 and on a few random rows. Where a path differs, or
fails, the plain way takes its place; a base that is no causal language model by itself is refused.
"""

import copy
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from paft.model.layers.attention import AUTO
from paft.model.layers.fuse import unfuse
from paft.model.paths import PLAIN, FastPaths, take
from paft.proof.rows import CHECKS, LEAK, Rows, causality, head_form, own_logps

TOLERANCE = 2e-4
"""Largest difference of a token's log-probability, in nats, that is rounding in another order. Seen: up to 2e-5 on
SmolLM2-135M; a forgotten bias or scale is off by hundredths and more."""
WHOLE = 600_000_000
"""Parameters up to which a base is proved whole; of a larger one, its first layers, every kind at least once."""


@dataclass(frozen=True)
class Proof:
    """What was found: the paths a base takes, and the difference of each from the plain way, in nats a token."""

    paths: FastPaths
    differences: dict[str, float] = field(default_factory=dict)
    replaced: dict[str, str] = field(default_factory=dict)
    """Path that is not taken -> why."""


def prove(
    folder: Path,
    own: Any,
    settings: Any,
    attention: str,
    *,
    num_parameters: int,
    device: str = "cpu",
    **loading: Any,
) -> Proof:
    """Compare every path for the base in `folder` with its own forward.

    `own` is its configuration, `settings` the one it will be run with, `attention` the `attn_implementation` wanted
    (`auto`: the fastest that is right), `loading` further arguments of `from_pretrained`. Raises `ValueError` for a
    base that transformers cannot run as a causal language model.
    """

    def load(how: str, config: Any = settings) -> PreTrainedModel:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            folder,
            config=copy.deepcopy(shortened(config, num_parameters)),
            dtype=torch.float32,
            attn_implementation=how,
            use_safetensors=True,
            **loading,
        )
        return model.requires_grad_(False).eval().to(device)

    with torch.no_grad(), torch.random.fork_rng(devices=[]), _quietly():
        plain = partial(load, "eager", own)
        return _Search(settings.model_type, Rows.drawn(settings), load, plain).run(attention)


def shortened(settings: Any, num_parameters: int) -> Any:
    """The configuration of a base's first layers, of each kind one at least; itself where the base is small.

    Also itself where transformers builds no model of the first layers alone.
    """
    if num_parameters <= WHOLE:
        return settings
    short = copy.deepcopy(settings)
    text = short.get_text_config(decoder=True)
    kinds = list(getattr(text, "layer_types", None) or [])
    last_new_kind = max((kinds.index(kind) for kind in set(kinds)), default=0)
    dense = getattr(text, "first_k_dense_replace", None) or 0
    before = text.num_hidden_layers
    text.num_hidden_layers = min(max(2, last_new_kind + 1, dense + 1), before)
    for name, value in vars(text).items():
        if isinstance(value, list) and len(value) == before:  # one entry a layer
            setattr(text, name, value[: text.num_hidden_layers])
    try:
        with torch.device("meta"):
            AutoModelForCausalLM.from_config(copy.deepcopy(short))
    except Exception:  # whatever else it counts by layers
        return settings
    return short


@contextmanager
def _quietly() -> Iterator[None]:
    """Without what transformers and its kernels say of models that are loaded to be tried."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
        transformers_logging.set_verbosity(before)


def offered(name: str, paths: FastPaths, model: PreTrainedModel) -> bool:
    """Whether a path comes into question beside those that are taken already."""
    match name:
        case "packed":
            return paths.attention == AUTO
        case "trunks":
            return paths.shared
    return True


class _Search:
    """One base's paths, added to the plain way one after another."""

    def __init__(
        self,
        name: str,
        rows: Rows,
        load: Callable[[str], PreTrainedModel],
        load_plain: Callable[[], PreTrainedModel],
    ) -> None:
        self.name, self.rows, self.load, self.load_plain = name, rows, load, load_plain
        self.differences: dict[str, float] = {}
        self.replaced: dict[str, str] = {}

    def run(self, attention: str) -> Proof:
        plain = self._plain()
        self.truth = [own_logps(plain, text) for text in self.rows.texts]
        model, paths = self._all_at_once(attention) or self._with_attention(attention)
        form = head_form(model, self.rows)
        if form is None:
            self.replaced["head"] = "its logits are not scale times its output head's, nor capped"
        for name, check in CHECKS.items():
            changes: dict[str, Any] = {name: form if name == "head" else True}
            tried = replace(paths, **changes)
            if tried == paths or not offered(name, paths, model):
                continue
            if self._holds(name, partial(check, take(model, tried), self.rows, self.truth)):
                paths = tried
            elif name == "fused":
                unfuse(model)
        return Proof(paths, self.differences, self.replaced)

    def _all_at_once(self, attention: str) -> tuple[PreTrainedModel, FastPaths] | None:
        """Of most models all paths through a batch of rows are right: then they need not be tried one by one."""
        if attention not in ("auto", AUTO):
            return None
        try:
            model = self.load(AUTO)
            paths = FastPaths(AUTO, fused=True, head=head_form(model, self.rows), padded=True)
            difference = CHECKS["padded"](take(model, paths), self.rows, self.truth)
        except Exception:  # which one is found out by trying them apart
            return None
        if not difference <= TOLERANCE or paths.head is None:
            return None
        self.differences["rows"] = difference
        return model, paths

    def _plain(self) -> PreTrainedModel:
        try:
            model = take(self.load_plain(), PLAIN)
            by_length, by_tokens = causality(model, self.rows)
        except Exception as error:  # whatever a model of this kind needs beyond a row of tokens
            raise ValueError(
                f"{self.name} cannot be run on a row of tokens alone: {type(error).__name__}: {_line(error)}; "
                "choose a decoder-only causal language model"
            ) from error
        if not (by_length <= TOLERANCE and by_tokens <= LEAK):
            moved = max(by_length, by_tokens)
            raise ValueError(
                f"{self.name} is no causal language model as its config.json has it: later tokens move the "
                f"log-probabilities of earlier ones by {moved:.2g} nats; choose a decoder-only causal language model"
            )
        return model

    def _with_attention(self, wanted: str) -> tuple[PreTrainedModel, FastPaths]:
        """The fastest attention that gives the model's own results; those that need half precision are not tried.

        Raises `ValueError` where none does, not even the model's own in the settings it is run with.
        """
        fixed = wanted not in ("auto", AUTO, "sdpa", "eager")
        first = [AUTO, "sdpa"] if wanted in ("auto", AUTO) or fixed else [wanted]
        for how in dict.fromkeys([*first, "eager"]):
            model: list[PreTrainedModel] = []

            def check(how: str = how, model: list[PreTrainedModel] = model) -> float:
                model.append(take(self.load(how), PLAIN))
                return max(
                    float((own_logps(model[0], text) - right).abs().max())
                    for text, right in zip(self.rows.texts, self.truth, strict=True)
                )

            if self._holds(f"attention {how}", check):
                return model[0], replace(PLAIN, attention=wanted if fixed else how)
        raise ValueError(
            f"{self.name} gives other results without its dropout settings ({self.replaced['attention eager']}), which "
            "training switches off; choose another base"
        )

    def _holds(self, name: str, check: Callable[[], float]) -> bool:
        """Whether a check's difference is rounding; records it, or why the path is not taken."""
        try:
            difference = check()
        except Exception as error:  # of whatever kind: the plain way takes its place
            self.replaced[name] = _line(error)
            return False
        if difference <= TOLERANCE:
            self.differences[name] = difference
            return True
        self.replaced[name] = f"differs from the plain forward by {difference:.2g} nats"
        return False


def _line(error: Exception) -> str:
    """The first line of what an error says, of reasonable length."""
    return f"{(str(error).strip() or type(error).__name__).splitlines()[0]:.200}"

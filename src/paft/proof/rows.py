"""The random rows of `paft.proof`, and what each fast path makes of them: differences in nats from the plain way."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from paft.chat.tokens import IGNORE, Encoded, EncodedPair
from paft.forward.batches import sft_tensors
from paft.forward.loglikelihood import LogLikelihoods
from paft.forward.pairs import shared_prompt_tensors
from paft.forward.tree import Trunk, branches_of, lay
from paft.model.architecture import sees_whole_rows
from paft.model.paths import HeadForm, last_hidden
from paft.model.policy import FrozenPolicy
from paft.private import is_stateful

LEAK = 5e-6
"""Largest difference that another text may make. Seen: 0, and up to 1e-6 where experts take the tokens of all texts
together; what a convolution with small random weights lets through is 2e-5."""
ANOTHER = 1
"""The text that is exchanged to see whether it moves those before or after it."""
BY_ATTENTION_ALONE = (
    "a layer of it takes more from a text than attention does: texts that share a pass would mix"
)


class Rows(NamedTuple):
    """Random texts: two answers to one prompt, and others."""

    pair: EncodedPair
    texts: list[list[int]]
    """Both answers after the prompt, then the others."""

    @classmethod
    def drawn(cls, settings: Any) -> "Rows":
        """Of ordinary tokens; shorter where the model's positions are few."""
        text = settings.get_text_config(decoder=True)
        special = {getattr(text, f"{name}_token_id", None) for name in ("pad", "bos", "eos")}
        ordinary = [i for i in range(min(text.vocab_size, 5000)) if i not in special]
        share = min(getattr(text, "max_position_embeddings", None) or 64, 64) / 64
        generator = torch.Generator().manual_seed(0)

        def draw(length: int) -> list[int]:
            size = max(round(length * share), 2)
            return [ordinary[i] for i in torch.randint(len(ordinary), (size,), generator=generator).tolist()]

        prompt, chosen, rejected, *others = map(draw, (9, 14, 7, 20, 12))
        return cls(EncodedPair(prompt, chosen, rejected), [prompt + chosen, prompt + rejected, *others])

    def with_another(self) -> list[list[int]]:
        """The texts with the one at `ANOTHER` backwards."""
        return [text[::-1] if i == ANOTHER else text for i, text in enumerate(self.texts)]


def own_logps(model: PreTrainedModel, text: list[int]) -> Tensor:
    """[T - 1]: log-probability of each token but the first, by the model's own forward."""
    ids = torch.tensor([text], device=model.device)
    logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
    return logits.log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0].cpu()


def causality(model: PreTrainedModel, rows: Rows) -> tuple[float, float]:
    """How much of a text's beginning depends on there being more, and on which tokens those are."""
    text = rows.texts[0]
    half = len(text) // 2
    whole, alone = own_logps(model, text)[: half - 1], own_logps(model, text[:half])
    other = own_logps(model, text[:half] + text[half:][::-1])[: half - 1]
    return float((whole - alone).abs().max()), float((whole - other).abs().max())


def head_form(model: PreTrainedModel, rows: Rows) -> HeadForm | None:
    """How the model makes its logits of its output head's; None where it is no such form."""
    try:
        ids = torch.tensor(rows.texts[:1], device=model.device)
        own = model(input_ids=ids, use_cache=False).logits[0].double()
        hidden = last_hidden(model, input_ids=ids, use_cache=False)[0]
        head = model.get_output_embeddings()
        plain = torch.nn.functional.linear(hidden, head.weight, head.bias).double()
    except Exception:  # a model of other parts
        return None
    cap = getattr(model.config.get_text_config(decoder=True), "final_logit_softcapping", None)
    wanted = own if not cap else cap * torch.atanh((own / cap).clamp(-1 + 1e-7, 1 - 1e-7))
    scale = float((wanted * plain).sum() / plain.square().sum())
    near = 1 if abs(scale - 1) < 1e-5 else float(f"{scale:.6g}")
    return HeadForm(near, float(cap) if cap else None)


# --- checks: (model that takes the path, rows, log-probabilities of each text) -> difference --------------


def largest(ours: Sequence[Tensor], truth: Sequence[Tensor]) -> float:
    return max(float((a.cpu() - b).abs().max()) for a, b in zip(ours, truth, strict=True))


def by_policy(model: PreTrainedModel, texts: list[list[int]]) -> list[Tensor]:
    """Log-probabilities of every text's tokens, as training computes them, in training mode."""
    rows = [Encoded(text, [IGNORE, *text[1:]]) for text in texts]
    tensors = sft_tensors(rows, 0, model.device)
    logps = FrozenPolicy(model).train()(*tensors)
    return [row[1 : len(text)].cpu() for row, text in zip(logps, texts, strict=True)]


def by_requests(model: PreTrainedModel, texts: list[list[int]]) -> list[Tensor]:
    """Mean log-probability of each text's tokens but the first, as evaluation computes it."""
    requests = [(None, text[:1], text[1:]) for text in texts]
    ours = LogLikelihoods(model, batch_size=len(texts))(requests, max_length=max(map(len, texts)))
    return [torch.tensor(total / (len(text) - 1)) for (total, _), text in zip(ours, texts, strict=True)]


def rows_in_batches(model: PreTrainedModel, rows: Rows, truth: Sequence[Tensor]) -> float:
    """Rows in training and in evaluation, padded where the model takes that, else one by one."""
    means = [logps.mean() for logps in truth]
    trained, evaluated = by_policy(model, rows.texts), by_requests(model, rows.texts)
    return max(largest(trained, truth), largest(evaluated, means))


def packed(model: PreTrainedModel, rows: Rows, truth: Sequence[Tensor]) -> float:
    """Rows end to end, and that none moves another."""
    _refuse_mixing(model)
    ours, other = by_policy(model, rows.texts), by_policy(model, rows.with_another())
    _refuse_leak(largest(*([logps for i, logps in enumerate(x) if i != ANOTHER] for x in (other, ours))))
    return largest(ours, truth)


def shared(model: PreTrainedModel, rows: Rows, truth: Sequence[Tensor]) -> float:
    """Both answers after one prompt, in one row; in training's layout and in evaluation's."""
    _refuse_mixing(model)
    ours = by_pair(model, rows.pair)
    other = by_pair(model, rows.pair._replace(rejected_ids=rows.pair.rejected_ids[::-1]))
    _refuse_leak(largest(other[:1], ours[:1]))
    start = len(rows.pair.prompt_ids) - 1
    answers = [logps[start:].sum()[None] / len(logps[start:]) for logps in truth[:2]]
    lengths = map(len, (rows.pair.chosen_ids, rows.pair.rejected_ids))
    return max(
        largest([logp / n for logp, n in zip(ours, lengths, strict=True)], answers),
        by_tree(model, rows, answers, cached=False),
    )


def by_pair(model: PreTrainedModel, pair: EncodedPair) -> list[Tensor]:
    tensors = shared_prompt_tensors([pair], 0).to(model.device)
    return list(tensors.answer_sums(tensors.logps(FrozenPolicy(model).train())))


def by_tree(model: PreTrainedModel, rows: Rows, answers: Sequence[Tensor], *, cached: bool) -> float:
    """The pair as an evaluation's requests: the prompt once, in the same row or as kept keys and values."""
    pair = rows.pair
    requests = [(None, pair.prompt_ids, answer) for answer in (pair.chosen_ids, pair.rejected_ids)]
    branches = branches_of(requests, max_length=sum(map(len, pair)))
    start = len(pair.prompt_ids)
    common = [0, start]
    root = Trunk(lay([], [], 0))
    if cached:
        root.trunks = [Trunk(lay(branches, common, 0, start), [lay(branches, common, start)])]
    else:
        root.rows = [lay(branches, common, 0)]
    ours = LogLikelihoods(model, batch_size=2).answers(root, 2)
    return largest(
        [torch.tensor([sum_ / len(r[2])]) for (sum_, _), r in zip(ours, requests, strict=True)], answers
    )


def trunks(model: PreTrainedModel, rows: Rows, truth: Sequence[Tensor]) -> float:
    _refuse_mixing(model)
    start = len(rows.pair.prompt_ids) - 1
    answers = [logps[start:].mean()[None] for logps in truth[:2]]
    return by_tree(model, rows, answers, cached=True)


def generated(model: PreTrainedModel, rows: Rows, truth: Sequence[Tensor]) -> float:
    """Two tokens after each text, in one batch with padding on the left, against the model's own forward."""
    width = max(map(len, rows.texts))
    filler = rows.texts[0][0]
    ids = torch.tensor([[filler] * (width - len(t)) + t for t in rows.texts], device=model.device)
    mask = torch.tensor([[0] * (width - len(t)) + [1] * len(t) for t in rows.texts], device=model.device)
    settings = GenerationConfig(
        max_new_tokens=2,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
        pad_token_id=filler,
    )
    made: Any = model.generate(  # type: ignore[operator]
        input_ids=ids, attention_mask=mask, generation_config=settings
    )
    right = [own_logps(model, text)[-2:] for text in made_texts(rows.texts, made.sequences)]
    logps = torch.stack([step.float().log_softmax(-1) for step in made.logits], 1)
    tokens = made.sequences[:, -2:]
    return largest(list(logps.gather(2, tokens[..., None])[..., 0]), right)


def made_texts(texts: list[list[int]], sequences: Tensor) -> list[list[int]]:
    return [[*text, *row[-2:].tolist()] for text, row in zip(texts, sequences, strict=True)]


def _refuse_mixing(model: PreTrainedModel) -> None:
    if is_stateful(model) or not sees_whole_rows(model.config, 1):
        raise ValueError(BY_ATTENTION_ALONE)


def _refuse_leak(difference: float) -> None:
    if not difference <= LEAK:
        raise ValueError(f"one text moves another by {difference:.2g} nats")


Check = Callable[[PreTrainedModel, Rows, Sequence[Tensor]], float]
CHECKS: dict[str, Check] = {
    "head": rows_in_batches,
    "fused": rows_in_batches,
    "padded": rows_in_batches,
    "packed": packed,
    "shared": shared,
    "trunks": trunks,
    "generated": generated,
}
"""Path of `FastPaths` -> what tells whether a model may take it, in the order they are added."""

"""lm-eval's Hugging Face model with log-likelihoods computed where they are asked for, and each token forwarded once.

Three savings, none of which changes a score: what requests begin with together is forwarded once for all of
them (`paft.evaluate.tree`), the output head is applied only to the positions before a target, and its weight is not
copied when text is generated. And a generated answer ends where the chat template ends a turn, which lm-eval knows
nothing of.
"""

from collections.abc import Sequence
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from torch import Tensor
from tqdm import tqdm
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from paft.data.chat_template import stop_ids
from paft.evaluate.tree import Request, Row, Trunk, batches, branches_of, grow
from paft.layers.attention import AUTO
from paft.losses import BLOCK_N


class TrunkCache(DynamicCache):
    """Keys and values of a trunk: `growing`, they become longer; otherwise every row of a batch sees the same."""

    growing = False

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if self.growing:
            return super().update(key_states, value_states, layer_idx, *args, **kwargs)
        layer, size = self.layers[layer_idx], len(key_states)
        assert isinstance(layer, DynamicLayer) and layer.keys is not None and layer.values is not None
        keys, values = (kept.expand(size, -1, -1, -1) for kept in (layer.keys, layer.values))
        return torch.cat([keys, key_states], -2), torch.cat([values, value_states], -2)


class SparingLM(HFLM):
    """`HFLM` with the savings of this module."""

    def _model_generate(
        self, context: Tensor, max_length: int, stop: list[str], **generation_kwargs: Any
    ) -> Tensor:
        """As `HFLM`'s, but every row ends at the first token that ends a turn, whatever its neighbours still write.

        The head gets the last positions side by side: of rows that lie apart torch makes a batch, and copies the
        head's weight, as large as the vocabulary, once for each.
        """
        head, ends = self.model.get_output_embeddings(), end_ids(self.model, self.tokenizer)
        with head.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(),)):
            generated: Tensor = super()._model_generate(
                context, max_length, stop, **{"eos_token_id": ends, **generation_kwargs}
            )
        answers_BT = generated[:, context.shape[1] :]
        over_BT = torch.isin(answers_BT, torch.tensor(ends, device=generated.device)).cumsum(1) > 0
        answers_BT[over_BT] = self.eot_token_id  # skipped when it is decoded, as padding may not be
        return generated

    def _loglikelihood_tokens(
        self, requests: list[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """(log-likelihood of the continuation, whether greedy decoding gives it) of every request."""
        branches = branches_of(requests, self.max_length)
        root = grow(
            branches, share=can_share(self.model.config, max((len(b.tokens) for b in branches), default=0))
        )
        sums, greedy = (
            torch.zeros(len(requests), dtype=torch.float64),
            torch.ones(len(requests), dtype=torch.bool),
        )
        with tqdm(total=root.num_tokens, disable=disable_tqdm, desc="log-likelihoods", unit="tokens") as bar:
            self._climb(root, None, sums, greedy, bar)
        answers = list(zip(sums.tolist(), greedy.tolist(), strict=True))
        for (text, _, _), answer in zip(requests, answers, strict=True):
            if text is not None:
                self.cache_hook.add_partial("loglikelihood", text, answer)
        return answers

    def _climb(self, trunk: Trunk, cache: TrunkCache | None, sums: Tensor, greedy: Tensor, bar: tqdm) -> None:
        """Add what is asked of a trunk and of all that grows from it to the requests' answers."""
        if trunk.row.tokens:
            cache = cache or TrunkCache(config=self.model.config)
            cache.growing = True
            self._score([trunk.row], cache, sums, greedy, bar)
            cache.growing = False
        for batch in batches(trunk.rows, int(self.batch_size)):
            self._score(batch, cache, sums, greedy, bar)
        for child in trunk.trunks:
            self._climb(child, cache, sums, greedy, bar)
        if cache is not None and trunk.row.tokens:
            cache.crop(-len(trunk.row.tokens))

    @torch.inference_mode()
    def _score(
        self, rows: Sequence[Row], cache: TrunkCache | None, sums: Tensor, greedy: Tensor, bar: tqdm
    ) -> None:
        """Forward the rows of one batch and add each target's log-probability to its request's."""
        width = max(len(row.tokens) for row in rows)
        tokens_BT, positions_BT, ends_BT = (
            torch.tensor([values + [0] * (width - len(values)) for values in field])
            for field in zip(*((r.tokens, r.positions, r.ends) for r in rows), strict=True)
        )
        start = cache.get_seq_length() if cache is not None else 0
        masked = start > 0 or any(row.branched for row in rows)
        backbone = getattr(self.model, self.model.base_model_prefix)
        hidden_BTH = backbone(
            input_ids=tokens_BT.to(self.device),
            attention_mask=look_back(ends_BT, start, self.model.dtype).to(self.device) if masked else None,
            position_ids=positions_BT.to(self.device),
            past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state
        bar.update(sum(len(row.tokens) for row in rows))
        asks = [
            (i * width + column, target, index)
            for i, r in enumerate(rows)
            for column, target, index in r.asks
        ]
        if asks:
            places, targets, indices = torch.tensor(asks).unbind(1)
            logps, likeliest = self._targets(
                hidden_BTH.flatten(0, 1), places.to(self.device), targets.to(self.device)
            )
            sums.index_add_(0, indices, logps.cpu().double())
            greedy[indices[~likeliest.cpu()]] = False

    def _targets(self, hidden_NH: Tensor, places: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Float32 log-probability of each target after its place, and whether it is the likeliest token."""
        head_VH = self.model.get_output_embeddings().weight
        logps = torch.empty(len(places), device=places.device)
        likeliest = torch.empty(len(places), dtype=torch.bool, device=places.device)
        distinct, which = places.unique(return_inverse=True)
        for first in range(0, len(distinct), BLOCK_N):
            block = (which >= first) & (which < first + BLOCK_N)
            logits_NV = (hidden_NH[distinct[first : first + BLOCK_N]] @ head_VH.T).float()
            row, target = which[block] - first, targets[block]
            logps[block] = logits_NV[row, target] - logits_NV.logsumexp(-1)[row]
            likeliest[block] = logits_NV.argmax(-1)[row] == target
        return logps, likeliest


def end_ids(model: Any, tokenizer: Any) -> list[int]:
    """Ids that end a generated answer: those of the model's generation_config, the EOS, the template's end of turn."""
    own = model.generation_config.eos_token_id
    return sorted({*(own if isinstance(own, list) else [own]), *stop_ids(tokenizer)} - {None})


def look_back(ends_BT: Tensor, start: int, dtype: torch.dtype) -> Tensor:
    """[B, 1, T, start + T], to be added to the scores: 0 where a token may look, minus infinity elsewhere.

    It may look at the `start` cached tokens, at itself, and at every earlier token whose end comes after it.
    """
    columns = torch.arange(ends_BT.shape[1])
    seen_BTT = (columns[:, None] < ends_BT[:, None, :]) & (columns[:, None] >= columns)
    seen_BTT |= torch.eye(len(columns), dtype=torch.bool)  # padding must see something
    own_BTT = torch.zeros(seen_BTT.shape, dtype=dtype).masked_fill_(~seen_BTT, -torch.inf)
    return torch.cat([own_BTT.new_zeros(*own_BTT.shape[:2], start), own_BTT], -1)[:, None]


def can_share(config: Any, longest: int) -> bool:
    """Whether texts of up to `longest` tokens may share tokens: the attention takes a mask of ours, and every layer
    looks back over the whole text."""
    full = set(getattr(config, "layer_types", None) or ["full_attention"]) == {"full_attention"}
    window = getattr(config, "sliding_window", None)
    takes_mask = config._attn_implementation in (AUTO, "sdpa", "eager")
    return takes_mask and (full if window is None else longest <= window)

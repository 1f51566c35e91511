"""Log-likelihoods of continuations with each token forwarded once, computed where they are asked for.

What requests begin with together is forwarded once for all of them (`paft.forward.tree`), and the output head is
applied only to the positions before a target. A model takes each of these savings where it was proved to give the
same (`paft.model.paths`). With a journal a scoring that was cut short goes on at the batch it was at, and processes
that score the same share its parts.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from hashlib import sha256
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from paft.cost.flops_and_bytes import BLOCK_N
from paft.cost.shape import shape_in
from paft.files.journal import Journal
from paft.forward.limits import Limits, limits
from paft.forward.tally import Tally
from paft.forward.tree import Request, Row, Trunk, batches, branches_of, grow
from paft.logps import Head
from paft.model.architecture import refuse_not_causal
from paft.model.paths import can_share, outputs_of, pads, paths_of


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


class LogLikelihoods:
    """Scores requests by a model, on its own device.

    `batch_size` rows at a time on a CPU, as many as memory holds on a GPU, unless `limits` say otherwise.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        batch_size: int = 1,
        limits: Limits | None = None,
        quiet: bool = True,
        journal: Journal | None = None,
    ) -> None:
        self.model, self.device, self.quiet = model, model.device, quiet
        self.limits, self.journal = limits or limits_of(model, batch_size), journal

    def __call__(self, requests: Sequence[Request], max_length: int) -> list[tuple[float, bool]]:
        """(log-likelihood of the continuation, whether greedy decoding gives it) of every request.

        The oldest tokens of a request longer than `max_length` + 1 go, as in lm-eval.
        """
        longest = min(max((len(a) + len(b) for _, a, b in requests), default=0), max_length + 1)
        refuse_not_causal(self.model.config, longest)
        branches = branches_of(requests, max_length, apart=not pads(self.model, longest))
        root = grow(branches, share=paths_of(self.model).trunks and can_share(self.model, longest))
        name = "" if self.journal is None else self._name(requests, max_length)
        return self.answers(root, len(requests), name)

    def answers(self, root: Trunk, num_requests: int, name: str = "") -> list[tuple[float, bool]]:
        """The same of requests that lie in trunks and rows already; `name` is theirs in the journal."""
        while True:
            sums = torch.zeros(num_requests, dtype=torch.float64)
            greedy = torch.ones(num_requests, dtype=torch.bool)
            with tqdm(
                total=root.num_tokens, disable=self.quiet, desc="log-likelihoods", unit="tokens"
            ) as bar:
                tally = Tally(sums, greedy, bar, self.journal, name)
                self._go_through(root, tally)
            if not tally.left:
                return list(zip(sums.tolist(), greedy.tolist(), strict=True))
            assert self.journal is not None
            self.journal.wait()

    def _go_through(self, root: Trunk, tally: Tally) -> None:
        """Add what is asked to the requests' answers, but for the parts that another process is computing."""
        if root.row.tokens:
            self._climb(root, None, tally)
            return
        for batch in self._batches(root):
            self._share(tally, 1, partial(self._take, batch, None, tally))
        for child in root.trunks:
            self._share(tally, self._num_batches(child), partial(self._climb, child, None, tally))

    def _share(self, tally: Tally, count: int, compute: Callable[[], None]) -> None:
        """One part, of so many batches."""
        if self.journal is None or tally.has(count):
            compute()
            return
        with self.journal.claim(f"{tally.name} {tally.number}") as mine:
            if mine:
                compute()
            else:
                tally.leave(count)

    def _name(self, requests: Sequence[Request], max_length: int) -> str:
        """Of requests in a journal: the same only where the same batches are forwarded."""
        digest = sha256(f"{max_length} {self.limits} {self.device.type} {paths_of(self.model)}".encode())
        for _, context, continuation in requests:
            digest.update(np.array([len(context), *context, -1, *continuation], np.int32).tobytes())
        return digest.hexdigest()[:16]

    def _climb(self, trunk: Trunk, cache: TrunkCache | None, tally: Tally) -> None:
        """Add what is asked of a trunk and of all that grows from it to the requests' answers."""
        grows = trunk.row.tokens and not tally.has(self._num_batches(trunk))
        if grows:
            cache = cache or TrunkCache(config=self.model.config)
            cache.growing = True
            tally.take([trunk.row], self._score([trunk.row], cache))
            cache.growing = False
        elif trunk.row.tokens:
            tally.take([trunk.row], None)
        for batch in self._batches(trunk):
            self._take(batch, cache, tally)
        for child in trunk.trunks:
            self._climb(child, cache, tally)
        if cache is not None and grows:
            cache.crop(-len(trunk.row.tokens))

    def _take(self, batch: list[Row], cache: TrunkCache | None, tally: Tally) -> None:
        tally.take(batch, None if tally.kept() else self._score(batch, cache))

    def _batches(self, trunk: Trunk) -> Iterator[list[Row]]:
        longest = max((max(r.positions) + 1 for r in trunk.rows), default=0)
        return batches(trunk.rows, self.limits if pads(self.model, longest) else replace(self.limits, rows=1))

    def _num_batches(self, trunk: Trunk) -> int:
        """Of a trunk and of all that grows from it."""
        own = bool(trunk.row.tokens) + sum(1 for _ in self._batches(trunk))
        return own + sum(map(self._num_batches, trunk.trunks))

    @torch.inference_mode()
    def _score(self, rows: Sequence[Row], cache: TrunkCache | None) -> list[list[Any]]:
        """Forward the rows of one batch: of every target its request, its log-probability, whether it is likeliest."""
        width = max(len(row.tokens) for row in rows)
        tokens_BT, positions_BT, ends_BT = (
            torch.tensor([values + [0] * (width - len(values)) for values in field])
            for field in zip(*((r.tokens, r.positions, r.ends) for r in rows), strict=True)
        )
        start = cache.get_seq_length() if cache is not None else 0
        inputs: dict[str, Any] = {"input_ids": tokens_BT.to(self.device), "use_cache": cache is not None}
        if start > 0 or any(row.branched for row in rows):
            inputs["attention_mask"] = look_back(ends_BT, start, self.model.dtype).to(self.device)
            inputs["position_ids"] = positions_BT.to(self.device)
        if cache is not None:
            inputs |= {"past_key_values": cache, "position_ids": positions_BT.to(self.device)}
        outputs_BT, head = outputs_of(self.model, **inputs)
        asks = [
            (i * width + column, target, index)
            for i, r in enumerate(rows)
            for column, target, index in r.asks
        ]
        if not asks:
            return [[], [], []]
        places, targets, indices = torch.tensor(asks).unbind(1)
        logps, likeliest = self._targets(
            outputs_BT.flatten(0, 1), head, places.to(self.device), targets.to(self.device)
        )
        return [indices.tolist(), logps.tolist(), likeliest.tolist()]

    def _targets(
        self, outputs_N: Tensor, head: Head | None, places: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Float32 log-probability of each target after its place, and whether it is the likeliest token."""
        logps = torch.empty(len(places), device=places.device)
        likeliest = torch.empty(len(places), dtype=torch.bool, device=places.device)
        distinct, which = places.unique(return_inverse=True)
        for first in range(0, len(distinct), BLOCK_N):
            block = (which >= first) & (which < first + BLOCK_N)
            outputs = outputs_N[distinct[first : first + BLOCK_N]]
            logits_NV = (outputs if head is None else head.logits(outputs)).float()
            row, target = which[block] - first, targets[block]
            logps[block] = logits_NV[row, target] - logits_NV.logsumexp(-1)[row]
            likeliest[block] = logits_NV.argmax(-1)[row] == target
        return logps, likeliest


def limits_of(model: PreTrainedModel, batch_size: int) -> Limits:
    """Of a model where it is now."""
    free = 0.0
    if model.device.type == "cuda":
        unused = torch.cuda.memory_reserved(model.device) - torch.cuda.memory_allocated(model.device)
        free = torch.cuda.mem_get_info(model.device)[0] + unused
    shape = shape_in(model.config.to_dict())
    return limits(model.device.type, batch_size, shape, free=free, item_bytes=model.dtype.itemsize)


def look_back(ends_BT: Tensor, start: int, dtype: torch.dtype) -> Tensor:
    """[B, 1, T, start + T], to be added to the scores: 0 where a token may look, minus infinity elsewhere.

    It may look at the `start` cached tokens, at itself, and at every earlier token whose end comes after it.
    """
    columns = torch.arange(ends_BT.shape[1])
    seen_BTT = (columns[:, None] < ends_BT[:, None, :]) & (columns[:, None] >= columns)
    seen_BTT |= torch.eye(len(columns), dtype=torch.bool)  # padding must see something
    own_BTT = torch.zeros(seen_BTT.shape, dtype=dtype).masked_fill_(~seen_BTT, -torch.inf)
    return torch.cat([own_BTT.new_zeros(*own_BTT.shape[:2], start), own_BTT], -1)[:, None]

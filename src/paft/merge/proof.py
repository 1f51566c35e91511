"""What was written is what was merged: transformers, or peft, reads the folder back, and its logits are compared.

On a few rows of random tokens, in float32, the written model is held against three others:

- the base: a result may not be the base itself while its merged delta is not zero;
- the merged weights computed anew and rounded to the type they are stored in, which transformers is given without any
  file: the same numbers, so that only the order of float32 sums may differ. A tensor that is wrong, lost, swapped, cut
  or tied otherwise does not pass;
- the same not rounded, where memory has room for it: what the stored type costs.

It takes four loads of the model, one after the other, and computes the merge twice more. Loads torch.
"""

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from paft.delta.rows import Rows, blocks_of
from paft.delta.stored import StoredTensor
from paft.files.safetensors import read_checkpoint
from paft.merge.apply import plan_sum
from paft.merge.logits import (
    ROWS,
    TOKENS,
    difference,
    has_room,
    load,
    logits_of,
    merged_model,
    random_rows,
)
from paft.merge.planned import PlannedMerge

log = logging.getLogger("paft")

ULPS = 128
"""How far two float32 forward passes of the same weights may be apart, in units in the last place of the largest logit;
none was seen."""
ULPS_OF_ADAPTER = 1024
"""The same of W x + B (A x) and (W + B A) x, where the sum of every weight is rounded: 230 on SmolLM2-135M."""
UNREADABLE = (OSError, ValueError, ImportError, AttributeError, KeyError, TypeError, RuntimeError)
"""What transformers raises of a folder that is no causal language model to it."""


def prove_model(
    merge: PlannedMerge, out: Path, report: Mapping[str, Any], *, trust_remote_code: bool = False
) -> dict[str, Any]:
    """Compare the model in `out`, of which `report` tells, with what it should be; returns what was measured.

    "max_logit_difference" to the merged weights as stored, the "bound" it was held to, "rounding_logit_difference"
    that the stored type costs (None where memory is short), the "logit_change" of the merge itself, "rows", "tokens".
    Same folders, same report. A base that transformers cannot run gives {"unproved": why}. Raises `ValueError` for a
    folder that is not what was merged.
    """
    base = _run_base(merge.base, {"trust_remote_code": trust_remote_code})
    if isinstance(base, str):
        return {"unproved": base}
    _refuse_base_itself(merge, out, report)
    with _naming(out):
        model = load(out, base.dtype, base.settings)
        written, dtype = logits_of(model, base.rows), model.dtype
        del model
    reference = partial(merged_model, merge, base.kind, settings=base.settings)
    stored = logits_of(reference(dtype, rounded=True), base.rows)
    exact = logits_of(reference(torch.float32, rounded=False), base.rows) if base.in_float32 else None
    return _measured(out, base, written, stored, ULPS) | {
        "rounding_logit_difference": None if exact is None else difference(exact, stored)
    }


def prove_adapter(merge: PlannedMerge, out: Path, *, trust_remote_code: bool = False) -> dict[str, Any]:
    """The same of a PEFT folder: peft's model is compared with the base plus the delta in the folder's factors.

    "rank_logit_difference" is what the rank costs: to the base plus the whole merged delta.
    """
    from peft import PeftModel

    base = _run_base(merge.base, {"trust_remote_code": trust_remote_code})
    if isinstance(base, str):
        return {"unproved": base}
    if not base.in_float32:
        return {"unproved": f"memory has no room for {merge.base} in float32"}
    with _naming(out), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft's, of a name that transformers has changed
        model = PeftModel.from_pretrained(load(merge.base, base.dtype, base.settings), out)
        written = logits_of(model, base.rows)
        del model
    stored, exact = (
        logits_of(merged_model(m, base.kind, torch.float32, base.settings, rounded=False), base.rows)
        for m in (plan_sum(merge.base, {"merged": out}), merge)
    )
    return _measured(out, base, written, stored, ULPS_OF_ADAPTER) | {
        "rank_logit_difference": difference(exact, stored)
    }


def described(proof: Mapping[str, Any]) -> str:
    """A proof in one line."""
    if why := proof.get("unproved"):
        return f"not proved: {why}"
    costs = {
        "the stored type": proof.get("rounding_logit_difference"),
        "the rank": proof.get("rank_logit_difference"),
    }
    said = [f"{what} costs {value:.2g}" for what, value in costs.items() if value is not None]
    return ", ".join(
        [
            f"logits of the folder are within {proof['max_logit_difference']:.2g} of base + delta",
            *said,
            f"the merge changes them by up to {proof['logit_change']:.2g}",
        ]
    )


# --- parts -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Base:
    """What the base says of itself."""

    kind: type[PreTrainedModel]
    rows: Tensor
    logits: Tensor
    in_float32: bool
    settings: Mapping[str, Any]

    @property
    def dtype(self) -> torch.dtype | str:
        """What models of its size are loaded in."""
        return torch.float32 if self.in_float32 else "auto"


def _run_base(folder: Path, settings: Mapping[str, Any]) -> _Base | str:
    """The base's logits, or why it has none."""
    try:
        room = has_room(folder)
        model = load(folder, torch.float32 if room else "auto", settings)
        rows = random_rows(model)
        return _Base(type(model), rows, logits_of(model, rows), room, settings)
    except UNREADABLE as error:
        why = f"transformers does not run {folder} as a causal language model: {error!s:.200}"
        log.warning("the merge is not proved: %s", why)
        return why


def _measured(out: Path, base: _Base, written: Tensor, stored: Tensor, ulps: int) -> dict[str, Any]:
    """Raises `ValueError` unless the difference is within its bound; NaN is not."""
    found = difference(written, stored)
    bound = ulps * torch.finfo(torch.float32).eps * max(1.0, float(stored.abs().max()))
    if not found <= bound:
        raise ValueError(
            f"what was written to {out} is not what was merged: its logits are off by {found:.3g}, and float32 "
            f"explains {bound:.2g}. Nothing of it is kept; give the command again, as a disk or memory may have failed "
            "once, and report it if it stays (merge.prove=false, or --no-prove, leaves this check out)"
        )
    change = difference(written, base.logits)
    measured = {"max_logit_difference": found, "bound": bound, "logit_change": change}
    return measured | {"rows": ROWS, "tokens": TOKENS}


@contextmanager
def _naming(out: Path) -> Iterator[None]:
    """Inside, what a library cannot read is a `ValueError` that names the folder."""
    try:
        yield
    except UNREADABLE as error:
        raise ValueError(
            f"what was written to {out} cannot be run, though its base can: {error!s:.300}"
        ) from error


def _refuse_base_itself(merge: PlannedMerge, out: Path, report: Mapping[str, Any]) -> None:
    """Raise `ValueError` for a result with the base's values though the merged delta is not zero.

    Where the stored type holds no change at all, a warning says so: that is the result.
    """
    if report["delta_l2"] == 0 or not _same_values(merge.base, out, merge.names):
        return
    if report["rounded_back"] < 1:
        raise ValueError(
            f"what was written to {out} is the base itself, though the merged delta has the norm "
            f"{report['delta_l2']:.3g}; give the command again, and report it if it stays"
        )
    log.warning(
        "every change of the merge is lost in the type that the base is stored in: the result is the base itself; "
        "merge.dtype=float32 keeps the changes"
    )


def _same_values(a: Path, b: Path, names: list[str]) -> bool:
    """Whether two checkpoints hold the same values in these tensors; read up to the first that differs."""
    before, after = _tensors(a), _tensors(b)
    return all(name in after and _equal(before[name], after[name]) for name in names)


def _equal(a: Rows, b: Rows) -> bool:
    return all(bool((x == y).all()) for _, (x, y) in blocks_of(a, b))


def _tensors(folder: Path) -> dict[str, StoredTensor]:
    files = read_checkpoint(folder).items()
    return {name: StoredTensor(path, stored) for path, held in files for name, stored in held.items()}

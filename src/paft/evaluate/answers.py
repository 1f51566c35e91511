"""What a model was asked, what it answered and by how much it was right, item by item: answers.parquet."""

from collections.abc import Mapping, Sequence
from os.path import commonprefix
from pathlib import Path
from typing import Any

import numpy as np

from paft.config import TaskConfig
from paft.evaluate.parts import counted, parts

FILE = "answers.parquet"
TEXTS = ("prompt", "expected", "answer")
LENGTHS = {"acc": lambda text: 1, "acc_norm": len, "acc_bytes": lambda text: len(text.encode())}
"""Metric -> what lm-eval divides a choice's log-likelihood by."""


def answers(column: str, config: TaskConfig, raw: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What was said in every one of a column's `items`, in their order; `raw` are lm-eval's results."""
    return [
        said(sample, of.metric.partition(",")[0])
        for of in parts(config, raw)
        for _, sample, _ in counted(column, of, config, raw)
    ]


def said(sample: Mapping[str, Any], metric: str) -> dict[str, Any]:
    """`prompt`, `expected`, `answer` and `margin` of one of lm-eval's logged samples.

    Of choices the answer is the likeliest as `metric` counts it, and the margin how much likelier the best right one is
    than the best wrong one: nats, or nats a character (`acc_norm`) or byte. It is None where nothing like it decides.
    """
    requests, target = sample["arguments"], sample["target"]
    if len(requests) > 1 and all(isinstance(request[1], str) for request in requests):
        return _chosen(sample, metric)
    prompt, *behind = requests[0]
    if behind and isinstance(behind[0], str):  # one log-likelihood
        return {"prompt": str(prompt), "expected": behind[0], "answer": "", "margin": None}
    written = bool(behind)  # by the model; else a text whose likelihood is all that is asked
    return {
        "prompt": str(prompt),
        "expected": _text(target) if written else "",
        "answer": _text(sample["filtered_resps"][0]) if written else "",
        "margin": None,
    }


def _chosen(sample: Mapping[str, Any], metric: str) -> dict[str, Any]:
    contexts, ends = zip(*(map(str, request[:2]) for request in sample["arguments"]), strict=True)
    if len({*ends}) < len(ends):  # the choices stand in the contexts
        prompt = commonprefix(contexts)  # noqa: RUF071  letters are what is compared
        choices = [context[len(prompt) :] + end for context, end in zip(contexts, ends, strict=True)]
    else:
        prompt, choices = contexts[0], [end.lstrip() for end in ends]
    length = LENGTHS.get(metric, LENGTHS["acc"])
    scores = [
        float(ll) / max(1, length(c)) for (ll, _), c in zip(sample["filtered_resps"], choices, strict=True)
    ]
    right = _right(sample["target"], choices)
    wrong = [at for at in range(len(choices)) if at not in right]
    margin = max(scores[at] for at in right) - max(scores[at] for at in wrong) if right and wrong else None
    if (
        metric in LENGTHS
        and margin is not None
        and sample[metric] not in (float(margin > 0), float(margin >= 0))
    ):
        margin = None  # lm-eval counts in another way
    expected = " | ".join(choices[at] for at in right) or _text(sample["target"])
    return {
        "prompt": prompt,
        "expected": expected,
        "answer": choices[int(np.argmax(scores))],
        "margin": margin,
    }


def _right(target: Any, choices: Sequence[str]) -> list[int]:
    """Places of the right choices, where the target tells them."""
    named = target if isinstance(target, list | tuple) else [target]
    places = [choices.index(t.strip()) if isinstance(t, str) and t.strip() in choices else t for t in named]
    return [at for at in places if isinstance(at, int) and 0 <= at < len(choices)]


def _text(value: Any) -> str:
    return " | ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def write_answers(samples: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Write answers.parquet of those samples that have texts: column, item, prompt, expected, answer, margin."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [sample for sample in samples if "prompt" in sample]
    text, names = pa.string(), ("column", "item", *TEXTS)
    columns = {name: pa.array([str(row[name]) for row in rows], text) for name in names}
    columns["margin"] = pa.array([row["margin"] for row in rows], pa.float64())
    pq.write_table(pa.table(columns), folder / FILE, compression="zstd")


def read_answers(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """(column, item) -> its texts and margin, of an evaluate folder; empty where it was made without them."""
    import pyarrow.parquet as pq

    if not (folder / FILE).is_file():
        return {}
    rows = pq.read_table(folder / FILE).to_pylist()
    return {(row["column"], row["item"]): row for row in rows}

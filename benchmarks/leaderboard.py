"""Benchmarks of a leaderboard on real rows: PAFT's scores and seconds against those of lm-eval's own HFLM.

    python benchmarks/leaderboard.py FOLDER [word=value ...] [--columns arc,mmlu] [--peer-items N] [--quick] [--out DIR]

FOLDER holds the rows, laid out as for `evaluate.data_dir`; the words are those of train.py, as `evaluate=open_llm
evaluate.tasks.arc.num_fewshot=0 evaluate.limit=100`. Each column is scored by both in processes of their own, on the
same weights, with the same requests. HFLM takes hours for long prompts: with `--peer-items` it scores the first N
items of a task, and seconds are compared by item. `--quick` asks the tiny model five rows that are made up.
"""

import argparse
import json
import math
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.process import CONTENDERS, run_child
from harness.progress import Progress, new_parser, parse
from measure import Report, Row, publish

DEFAULT = ("evaluate=open_llm",)
SECONDS = (300, 900)
"""Of a column, PAFT and HFLM: a guess, as lengths differ."""
SIDES = ("paft", "lm-eval")
SAME = 1e-4
"""An item's score is a probability in some tasks: float32 sums in another order move its last digits."""


def side(name: str, column: str, limit: int | None, words: list[str]) -> dict[str, Any]:
    """Score one column; score, standard error, items and seconds, loading aside."""
    from hydra import compose, initialize_config_dir
    from lm_eval.models.huggingface import HFLM

    from paft.command.choices import CONF
    from paft.command.compose import register_schemas, to_config, with_new_tasks
    from paft.evaluate.lm import lm_of
    from paft.evaluate.stage import scores_of
    from paft.model.base import base_folder, load_tokenizer
    from paft.proof.base import load_base

    register_schemas()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = to_config(compose("train", with_new_tasks(words)))
    evaluate = replace(config.evaluate, tasks={column: config.evaluate.tasks[column]})
    evaluate = replace(evaluate, limit=limit) if limit else evaluate
    folder = base_folder(config.model)
    model, tokenizer = load_base(folder, config.model), load_tokenizer(folder, config.data.template)
    if name == "lm-eval":
        model.set_attn_implementation("sdpa")
        lm: Any = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=evaluate.batch_size)
    else:
        lm = lm_of(model, tokenizer, evaluate.batch_size, "cpu", chats=evaluate.apply_chat_template)
    started = time.perf_counter()
    scores, samples = scores_of(lm, evaluate)
    seconds = time.perf_counter() - started
    values = [sample["value"] for sample in samples]
    found = scores[column]
    return {"score": found.score, "stderr": found.stderr, "seconds": seconds, "values": values}


def compared(column: str, found: dict[str, dict[str, Any]], whole: bool) -> list[Row]:
    ours, theirs = (found[name] for name in SIDES)
    counts = [len(f["values"]) for f in (ours, theirs)]
    per_item = [f["seconds"] / count for f, count in zip((ours, theirs), counts, strict=True)]
    shown = [f"{100 * f['score']:.2f} ± {100 * (f['stderr'] or 0):.2f}" for f in (ours, theirs)]
    pairs = [*zip(ours["values"], theirs["values"], strict=False)]
    other = sum(a != b and not math.isclose(a, b, abs_tol=SAME) for a, b in pairs)
    note = (
        f"{other} of {len(pairs)} items differ"
        if whole
        else f"its first {counts[1]} items; {other} of them differ"
    )
    return [
        Row(f"{column}, {counts[0]} items: score", shown[0], "lm-eval HFLM", shown[1], note=note),
        Row(
            f"{column}: seconds an item",
            f"{per_item[0]:.3f} s, {ours['seconds']:.0f} s in all",
            "lm-eval HFLM",
            f"{per_item[1]:.3f} s",
            per_item[1] / per_item[0],
        ),
    ]


def main() -> None:
    given = parsed()
    with tempfile.TemporaryDirectory() as folder:
        rows, columns, words = given.rows, given.columns.split(","), [*DEFAULT, *given.words]
        if given.quick:
            run_child(CONTENDERS / "arc_rows.py", folder)
            rows, columns, words = (
                folder,
                ["arc"],
                [*DEFAULT, "model=tiny", "evaluate.tasks.arc.num_fewshot=2"],
            )
        words.append(f"evaluate.data_dir={rows}")
        progress, report = (
            Progress("leaderboard", SECONDS * len(columns), quick=given.quick),
            Report("leaderboard", details={"words": given.words}),
        )
        for column in columns:
            found = {}
            for name in SIDES:
                progress.next(f"{column}, {name}")
                limit = given.peer_items if name == "lm-eval" else None
                found[name] = run_child(__file__, "--side", name, column, str(limit or ""), *words).result
            report.rows += compared(column, found, not given.peer_items)
            publish(report, given.out)  # the next one may take an hour


def parsed() -> argparse.Namespace:
    parser = new_parser(__doc__)
    parser.add_argument("rows", nargs="?", metavar="FOLDER", help="rows as for evaluate.data_dir")
    parser.add_argument("words", nargs="*", metavar="word=value")
    parser.add_argument("--columns", default="arc", help="names of tasks, with commas between (default arc)")
    parser.add_argument(
        "--peer-items", type=int, metavar="N", help="items of a task that HFLM scores (default all)"
    )
    given = parse(parser)
    if not given.quick and not (given.rows and Path(given.rows).is_dir()):
        parser.error(f"give the folder of rows first, as for evaluate.data_dir; got {given.rows}")
    return given


if __name__ == "__main__":
    if sys.argv[1:2] == ["--side"]:
        name, column, limit, *words = sys.argv[2:]
        print("\n" + json.dumps(side(name, column, int(limit) if limit else None, words)))
    else:
        main()

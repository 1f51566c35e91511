"""A grid of 2 lambdas x 5 merges x (DPO, ORPO) with the store that its cells share, and with a store for each cell.

    python benchmarks/grid.py [--quick] [--out DIR] [word=value ...]   # words for every cell, as for train.py

On `experiment=smoke`, the tiny random model, with as many steps that training takes about five times as long as
merging and evaluating, as it would in the paper's rows (`experiment=zephyr_mistral_7b plan=true`). The more of a
cell is training, the more the store saves; the merges and evaluations of 20 cells are always 20. Either side runs
its cells one after another in one process, so start-up is not what is compared; both give the same scores.
`--quick` has the first two cells and two steps.
"""

import json
import sys
import tempfile
import time
from itertools import product
from pathlib import Path

from harness.process import run_child
from harness.progress import Progress, new_parser, parse
from measure import Report, Row, publish

MERGES = ("slerp", "task_arithmetic", "ties", "dare", "linear")
CELLS = list(product(("1e-4", "1e-3"), MERGES, ("dpo", "orpo")))
TRAINED = ("sft", "preference")
STEPS = ("sft.max_steps=150", "preference.max_steps=100")
QUICK_CELLS, QUICK_STEPS = 2, ("sft.max_steps=2", "preference.max_steps=2", "evaluate.limit=1")
TIMES = 4.0
SECONDS = {"shared": 55, "own": 230}
"""Of the two processes, on two cores."""


def contender(shared: bool, folder: Path, number: int, words: list[str]) -> None:
    """Run every cell; the last line of output has seconds, stages run, and each cell's average score."""
    from hydra import compose, initialize_config_dir

    from paft.command.compose import register_schemas, to_config
    from paft.command.pipeline import run_cell
    from paft.graph.build import build

    register_schemas()
    started, averages = time.perf_counter(), []
    with initialize_config_dir(str(Path(__file__).parents[1] / "conf"), version_base="1.3"):
        for i, (weight, merge, preference) in enumerate(CELLS[:number]):
            logs = folder / ("all" if shared else str(i))
            cell = [f"lambda={weight}", f"merge={merge}", f"preference={preference}", f"logs={logs}"]
            config = to_config(compose("train", overrides=["experiment=smoke", *cell, *words]))
            folder_of_cell = run_cell(config, build(config))
            averages.append(json.loads((folder_of_cell / "results.json").read_text())["average"])
    seconds = time.perf_counter() - started
    done = {name: len(list(folder.glob(f"*/stages/{name}/*/stage.json"))) for name in ("*", *TRAINED)}
    print(
        "\n"
        + json.dumps(
            {
                "seconds": seconds,
                "stages": done["*"],
                "trainings": sum(done[name] for name in TRAINED),
                "averages": averages,
            }
        )
    )


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("words", nargs="*", metavar="word=value")
    given = parse(parser)
    number, steps = (QUICK_CELLS, QUICK_STEPS) if given.quick else (len(CELLS), STEPS)
    progress, found = Progress("grid", [*SECONDS.values()], quick=given.quick), {}
    for side in SECONDS:
        progress.next(f"{number} cells, {side} store")
        with tempfile.TemporaryDirectory() as folder:
            words = (side, folder, str(number), *steps, *given.words)
            found[side] = run_child(__file__, "--side", *words).result
    ours, theirs = found["shared"], found["own"]
    if ours["averages"] != theirs["averages"]:
        raise RuntimeError("the two sides' scores differ; the store may not change a result")
    rows = [
        Row(
            f"{number} cells: {what}",
            f"{ours[key]:.0f}",
            "a store for each cell",
            f"{theirs[key]:.0f}",
            theirs[key] / ours[key],
            at_least=least,
            note="same scores",
        )
        for key, what, least in (
            ("stages", "stages run", None),
            ("trainings", "trainings run", TIMES),
            ("seconds", "seconds", TIMES),
        )
    ]
    publish(Report("grid", rows, {"words": given.words}), given.out)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--side"]:
        contender(sys.argv[2] == "shared", Path(sys.argv[3]), int(sys.argv[4]), sys.argv[5:])
    else:
        main()

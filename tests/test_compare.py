"""Two cells or two sweeps of a store against each other, from the command line's words to the printed table."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from synthetic_store import EVALUATE, ITEMS, PAFT, fill, with_lambda

from paft.config import Paradigm, TaskConfig
from paft.merge.methods import DareTies, Slerp, Ties
from paft.report.__main__ import main
from paft.report.compare import compare
from paft.report.selection import select
from paft.report.table import rows

LAMBDAS, SEEDS = (0.0, 1e-4), (0, 1, 2)
MERGES = (Ties(), Slerp())


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sweeps") / "stages"
    sparse = [replace(with_lambda(PAFT, w), seed=s) for w in LAMBDAS for s in SEEDS]
    cells = [
        replace(c, merge=m(seed=c.seed) if m is DareTies else m()) for c in sparse for m in (Ties, DareTies)
    ]
    cells += [replace(c, paradigm=Paradigm.sequential) for c in sparse]
    fill(root, [*cells, replace(PAFT, paradigm=Paradigm.base)])
    return root


def key(store: Path, **wanted: object) -> str:
    (found,) = [r for r in rows(store) if all(r[c] == v for c, v in wanted.items())]
    return str(found["evaluate_key"])


# --- what is compared --------------------------------------------------------------------------------


def test_two_cells_by_key_differ_as_their_items_do(store):
    one = key(store, merge="ties", seed=0, **{"lambda": 0.0})
    other = key(store, merge="dare", seed=0, **{"lambda": 0.0})
    items = [
        [json.loads(line) for line in (store / "evaluate" / k / "samples.jsonl").read_text().splitlines()]
        for k in (one, other)
    ]
    values = [np.array([i["value"] for i in found if i["column"] == "honesty"]) for found in items]

    found = compare(store, one, other[:6])

    (honesty,) = [d for d in found.differences if d.column.name == "honesty"]
    apart = values[0] - values[1]
    assert honesty.difference.value == pytest.approx(apart.mean())
    assert honesty.difference.stderr == pytest.approx(apart.std() / ITEMS**0.5, rel=0.03)
    assert honesty.difference.stderr < np.hypot(values[0].std(), values[1].std()) / ITEMS**0.5
    assert honesty.difference.num_seeds == 1


def test_two_sweeps_are_matched_on_the_other_options(store):
    found = compare(store, "merge=ties", "merge=dare")

    assert [(p.label, len(p.left), len(p.right)) for p in found.pairs] == [
        ("lambda=1e-4", 3, 3),
        ("lambda=0", 3, 3),
    ]
    average = found.differences[-1]
    assert average.column.name == "average"
    assert average.difference.value == pytest.approx(
        np.mean([p.differences["average"].value for p in found.pairs])
    )
    assert average.difference.num_seeds == 3
    assert found.also_differ["merge.normalize"] == ("weights", "none")


def test_a_setting_that_one_side_lacks_fits_any(store):
    found = compare(store, "paradigm=parallel,lambda=1e-4", "paradigm=sequential,lambda=1e-4")

    assert [p.label for p in found.pairs] == ["merge=ties", "merge=dare"]
    assert found.pairs[0].right == found.pairs[1].right


def test_the_base_has_no_seed_and_is_paired_with_every_one(store):
    found = compare(store, "merge=ties,lambda=0", "paradigm=base")

    assert found.differences[0].difference.num_seeds == 3


def test_cells_without_a_partner_are_named(tmp_path):
    fill(tmp_path, [with_lambda(PAFT, w) for w in (0.0, 1e-4, 1e-3)])
    fill(tmp_path, [replace(with_lambda(PAFT, w), merge=Slerp()) for w in (0.0, 1e-4)])

    found = compare(tmp_path, "merge=ties", "merge=slerp")

    assert (len(found.pairs), found.alone) == (2, ["A: lambda=1e-3"])


def test_other_seeds_vary_by_themselves(store):
    shared = compare(store, "merge=ties,lambda=0", "merge=dare,lambda=0").differences[0].difference

    apart = (
        compare(store, "merge=ties,lambda=0,seed=0", "merge=dare,lambda=0,seed=1").differences[0].difference
    )

    assert (shared.num_seeds, apart.num_seeds) == (3, 1)


def test_cells_that_share_seeds_vary_together_and_apart_from_the_others(tmp_path):
    """Two merges of the same trainings on either side, of other trainings than the other side's."""
    seeds = {0.0: (0, 1, 2), 1e-4: (3, 4, 5)}
    fill(
        tmp_path,
        [replace(with_lambda(PAFT, w), seed=s, merge=m) for w in seeds for s in seeds[w] for m in MERGES],
    )
    every = rows(tmp_path)
    means = {w: [np.mean([r["honesty"] for r in every if r["seed"] == s]) for s in seeds[w]] for w in seeds}

    found = compare(tmp_path, "lambda=0", "lambda=1e-4")

    (honesty,) = [d.difference for d in found.differences if d.column.name == "honesty"]
    assert honesty.num_seeds == 3
    assert honesty.value == pytest.approx(np.mean(means[0.0]) - np.mean(means[1e-4]))
    assert honesty.stderr == pytest.approx(by_hand(tmp_path, every, seeds))


def by_hand(store: Path, every: list, seeds: dict) -> float:
    """Mean squares of the mean over merges: [seed, item] of either side."""
    sides = []
    for weight, own in seeds.items():
        cells = [[r for r in every if r["lambda"] == weight and r["seed"] == s] for s in own]
        sides.append(
            np.array([np.mean([answers(store, r["evaluate_key"]) for r in c], axis=0) for c in cells])
        )
    items = (sides[0].mean(0) - sides[1].mean(0)).var(ddof=1) / ITEMS
    parts = [y - y.mean(1)[:, None] - y.mean(0) + y.mean() for y in sides]
    both = sum((p**2).sum() for p in parts) / 2 / (ITEMS - 1) / 3 / ITEMS
    between = sum(y.mean(1).var(ddof=1) / 3 for y in sides)
    return float(np.sqrt(max(items + between - both, both)))


def answers(store: Path, key: str) -> np.ndarray:
    lines = (store / "evaluate" / key / "samples.jsonl").read_text().splitlines()
    return np.array([i["value"] for i in map(json.loads, lines) if i["column"] == "honesty"])


def test_seeds_shared_two_by_two_alone_are_refused(tmp_path):
    fill(tmp_path, [replace(PAFT, seed=s) for s in (0, 1)])
    fill(tmp_path, [replace(PAFT, seed=s, merge=Slerp()) for s in (2, 1)])
    fill(tmp_path, [replace(with_lambda(PAFT, 1e-4), seed=s) for s in (0, 3)])
    fill(tmp_path, [replace(with_lambda(PAFT, 1e-4), seed=s, merge=Slerp()) for s in (2, 3)])

    with pytest.raises(ValueError, match="share seeds two by two, and none all together"):
        compare(tmp_path, "merge=ties", "merge=slerp")


# --- words that select too little or too much --------------------------------------------------------


def test_selector_values_may_hold_commas_and_any_notation(tmp_path):
    fill(tmp_path, [replace(with_lambda(PAFT, 1e-4), merge=Ties(weights=[1.0, 0.5])), PAFT])

    found = select(rows(tmp_path), "merge.weights=1.0,0.5,lambda=0.0001")

    assert [r["merge.weights"] for r in found.rows] == ["1.0,0.5"]


@pytest.mark.parametrize(
    ("left", "right", "message"),
    [
        ("merge=tees", "merge=dare", "no cell has merge=tees; there are ties, dare, none"),
        ("lamda=0", "merge=dare", "no setting 'lamda' to select by; did you mean lambda?"),
        ("lambda=much", "merge=dare", "no cell has lambda=much; there are 1e-4, 0, none"),
        ("zebra", "merge=dare", "neither the beginning of a key nor a selector"),
        ("0123456789abcdef", "merge=dare", "no finished evaluation or merge has a key"),
        (
            "merge=ties",
            "paradigm=parallel",
            "2 cells of paradigm=parallel fit one cell of merge=ties; name one of merge",
        ),
        ("merge=ties,lambda=0", "merge=ties,lambda=0", "select the same cell"),
    ],
)
def test_mistakes_are_told(store, left, right, message):
    with pytest.raises(ValueError, match=message):
        compare(store, left, right)


def test_a_beginning_of_many_keys_lists_them(store):
    keys = [str(r["evaluate_key"]) for r in rows(store)]
    start = next(k[0] for k in keys if sum(o[0] == k[0] for o in keys) > 1)

    with pytest.raises(ValueError, match=f"keys begin with {start}: "):
        compare(store, start, "paradigm=base")


def test_other_items_and_other_columns_are_refused(tmp_path):
    short = replace(PAFT, evaluate=replace(EVALUATE, limit=8))
    apart = replace(PAFT, evaluate=replace(EVALUATE, tasks={"other": TaskConfig("t", "m", in_average=False)}))
    whole, limited, other = (stage.key for stage in fill(tmp_path, [PAFT, short, apart]))
    samples = tmp_path / "evaluate" / limited / "samples.jsonl"
    renamed = samples.read_text().replace('"item": ', '"item": 1')
    samples.write_text(renamed)

    with pytest.raises(ValueError, match="did not answer the same items of"):
        compare(tmp_path, whole, limited)
    with pytest.raises(ValueError, match="no score in common"):
        compare(tmp_path, whole, other)


def test_command_prints_differences_and_exits_with_2_on_a_mistake(store, capsys):
    main(["compare", "merge=ties", "merge=dare", "--store", str(store)])

    printed = capsys.readouterr().out
    assert "A = merge=ties · B = merge=dare · mean over 2 pairs of cells" in printed
    assert "paired, over items and seeds" in printed
    assert "A and B also differ in merge.normalize: weights against none" in printed

    with pytest.raises(SystemExit) as exit_:
        main(["--store", str(store), "compare", "merge=tees", "merge=dare"])

    assert exit_.value.code == 2
    assert capsys.readouterr().err.startswith("error: merge=tees: no cell has")

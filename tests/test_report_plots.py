"""How the report names, compares and draws rows of a synthetic store."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from synthetic_store import PAFT, fill, grid

from paft.config import L1Config, L1Method, LoraConfig, Paradigm
from paft.merge.methods import Slerp, Ties
from paft.objectives import ORPO, DPOLoss
from paft.report.columns import Column, score_columns
from paft.report.labels import labels
from paft.report.numbers import short
from paft.report.plots import by_layer, conflict_by_layer, sparsity_bars, training_curves
from paft.report.scope import blocks
from paft.report.score_plots import lambda_places, scores_by_lambda, scores_by_method
from paft.report.study_plots import front, heat_map, pareto
from paft.report.table import rows
from paft.report.trainings import adapters, merge_reports


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("paper") / "stages"
    fill(root, grid())
    return root


# --- labels ------------------------------------------------------------------------------------------


def test_labels_name_only_what_differs(tmp_path):
    merges = [Ties(density=0.2), Ties(density=0.8), Slerp()]
    fill(tmp_path, [replace(PAFT, merge=m) for m in merges])

    assert labels(rows(tmp_path)) == ["SLERP", "TIES density=0.2", "TIES density=0.8"]


def test_labels_name_any_option_that_differs(tmp_path):
    branch = PAFT.sft
    cells = [PAFT, replace(PAFT, sft=replace(branch, epochs=2, lora=LoraConfig(rank=8)))]
    losses = [
        replace(PAFT, merge=Slerp(), preference=replace(PAFT.preference, loss=DPOLoss(x)))
        for x in ("sigmoid", "ipo", "hinge")
    ]
    fill(tmp_path, [*cells, *losses])

    assert set(labels(rows(tmp_path))) == {
        *("TIES sft.lora.rank=16 sft.epochs=1", "TIES sft.lora.rank=8 sft.epochs=2"),
        *("SLERP loss=sigmoid", "SLERP loss=ipo", "SLERP loss=hinge"),
    }


def test_labels_name_an_option_of_both_branches_once_and_shorten_numbers(tmp_path):
    both = {"lr": 0.00012345678901234567}
    other = replace(PAFT, sft=replace(PAFT.sft, **both), preference=replace(PAFT.preference, **both))
    fill(tmp_path, [replace(PAFT, sft=replace(PAFT.sft, lr=PAFT.preference.lr)), other])

    assert labels(rows(tmp_path)) == ["TIES lr=1.235e-4", "TIES lr=2e-4"]


def test_options_of_the_penalty_tell_nothing_apart_at_lambda_0(tmp_path):
    proximal = L1Config(1e-4, method=L1Method.proximal)
    fill(tmp_path, [PAFT, replace(PAFT, sft=replace(PAFT.sft, l1=proximal))])

    assert labels(rows(tmp_path)) == ["TIES", "TIES"]


def test_labels_fall_back_to_the_key_where_no_option_tells_rows_apart(tmp_path):
    fill(tmp_path, [PAFT])
    (row,) = rows(tmp_path)
    other = row | {"evaluate_key": "0123456789abcdef"}

    assert labels([row, other]) == [f"TIES {row['evaluate_key'][:6]}", "TIES 012345"]


def test_baselines_join_every_block_whose_data_they_share(tmp_path):
    other = replace(PAFT.data, preference=replace(PAFT.data.preference, num_rows=99))
    base, sft = (replace(PAFT, paradigm=p) for p in (Paradigm.base, Paradigm.sft))
    fill(tmp_path, [PAFT, replace(PAFT, data=other), base, sft])

    found = [[r["paradigm"] for r in block] for _, block in blocks(rows(tmp_path))]

    assert found == [["parallel", "sft", "base"]] * 2


def test_short_writes_lambdas_as_one_types_them():
    values = (None, 0.0, 1e-4, 2.5e-5, 0.5, 1.0)
    assert [short(v) for v in values] == ["–", "0", "1e-4", "2.5e-5", "0.5", "1"]


def test_best_goes_by_the_direction_of_the_column(store):
    table = rows(store)
    by_name = {c.name: c for c in score_columns(table)}

    assert by_name["bits"].best(table) == min(r["bits"] for r in table)
    assert by_name["honesty"].best(table) == pytest.approx(100 * max(r["honesty"] for r in table))
    assert Column("honesty", percent=True).best(table[:1]) is None


# --- figures -----------------------------------------------------------------------------------------


def test_scores_by_lambda_draws_a_line_per_merge_and_a_level_per_baseline(store):
    figure = scores_by_lambda(rows(store), ["honesty"])

    (ax,) = figure.axes
    drawn = {label for _, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    assert drawn == {
        *("SLERP", "Task Arithmetic", "TIES", "DARE TIES", "Linear"),
        *("SFT-alone", "DPO-alone", "base"),
    }
    assert [t.get_text() for t in ax.get_xticklabels()] == ["0", "1e-4", "1e-3"]


def test_figures_bear_missing_and_equal_values(store):
    equal = [
        r | {"honesty": 0.5, "honesty_stderr": None, "mmlu_dev_bits": None, "average": None}
        for r in rows(store)
    ]

    for table in (equal, equal[:1], [r for r in equal if r["paradigm"] == "sft"]):
        for figure in (scores_by_lambda(table), scores_by_method(table)):
            figure.canvas.draw()
    assert sparsity_bars([]) is conflict_by_layer({}) is training_curves({}) is None


def test_lambda_places_put_zero_left_of_the_logarithms():
    places = lambda_places({0.0, 1e-4, 1e-2})

    assert places == pytest.approx({0.0: -4.6, 1e-4: -4.0, 1e-2: -2.0})
    assert lambda_places({0.0}) == {0.0: -0.5}


def test_by_layer_means_over_the_modules_of_a_layer():
    tensors = {
        "model.layers.1.a.weight": {"cosine": 1.0},
        "model.layers.0.a.weight": {"cosine": 0.2},
        "model.layers.0.b.weight": {"cosine": 0.4},
        "lm_head.weight": {"cosine": 9.0},
    }

    assert by_layer(tensors, "cosine") == pytest.approx({0: 0.3, 1: 1.0})


def test_adapters_and_merge_reports_are_named_apart_and_ordered_by_lambda(tmp_path):
    cells = grid(merges=[Ties()], lambdas=[1e-3, 0.0])
    fill(tmp_path, [*cells, *(replace(c, preference=ORPO()) for c in cells[:2])])
    ((_, block),) = blocks(rows(tmp_path))

    names = [a.label for a in adapters(tmp_path, block)]

    sparse = "SFT_sparse, λ=1e-3"
    assert names == ["SFT, λ=0", sparse, "DPO", "ORPO", "DPO on SFT, λ=0", f"DPO on {sparse}"]
    assert list(merge_reports(tmp_path, block)) == [
        "SFT, λ=0 + DPO",
        "SFT, λ=0 + ORPO",
        f"{sparse} + DPO",
        f"{sparse} + ORPO",
    ]


def test_heat_map_has_a_panel_for_each_objective_and_a_number_in_each_cell(tmp_path):
    cells = grid(merges=[Ties(), Slerp()], lambdas=[0.0, 1e-4])
    fill(
        tmp_path,
        [*cells, *(replace(c, preference=ORPO()) for c in cells), replace(cells[0], merge=Ties(density=0.1))],
    )
    table = rows(tmp_path)

    panels = heat_map(table).axes

    assert [ax.get_title() for ax in panels] == ["SFT + DPO", "SFT + ORPO"]
    plain = [r for r in table if r["paradigm"] == "parallel" and r.get("merge.density") != 0.1]
    assert len(plain) == 8
    drawn = {text.get_text().split("\n")[0] for ax in panels for text in ax.texts}
    assert drawn == {f"{100 * r['average']:.2f}" for r in plain}
    assert heat_map([r for r in table if r["paradigm"] != "parallel"]) is None


def contrast(text: str, ground: np.ndarray) -> float:
    """WCAG 2's contrast ratio of two colours."""
    linear = [
        np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
        for c in map(np.array, (to_rgb(text), ground[:3]))
    ]
    light, dark = sorted((float(c @ (0.2126, 0.7152, 0.0722)) for c in linear), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("equal", [True, False])
def test_numbers_of_the_heat_map_can_be_read(store, equal):
    table = [r | ({"average": 0.3} if equal else {}) for r in rows(store)]

    (ax,) = heat_map(table).axes

    ground = ax.images[0].get_array()
    places = [(text, *map(int, text.get_position()[::-1])) for text in ax.texts]
    assert len(places) == 15
    assert all(contrast(text.get_color(), ground[y, x]) > 3.5 for text, y, x in places)


def test_a_log_of_one_value_draws_no_panel():
    one = pd.DataFrame({"step": [0, 1], "train/loss": [2.0, 1.0], "train/sparsity": [0.1, np.nan]})

    assert [ax.get_title() for ax in training_curves({"a": one}).axes if ax.axison] == ["loss"]
    assert training_curves({"a": one[:1]}) is None


def test_lambda_0_is_on_the_line_of_every_kind_of_penalty(tmp_path):
    penalties = [L1Config(w, method=m) for w in (1e-4, 1e-3) for m in L1Method]
    fill(tmp_path, [PAFT, *(replace(PAFT, sft=replace(PAFT.sft, l1=p)) for p in penalties)])

    (ax,) = scores_by_lambda(rows(tmp_path), ["honesty"]).axes

    drawn = {
        line.get_label(): len(line.get_xdata()) for line in ax.get_lines() if "TIES" in str(line.get_label())
    }
    assert drawn == {"TIES l1.method=subgradient": 3, "TIES l1.method=proximal": 3}


def test_legend_of_many_lines_leaves_the_panels_their_room():
    tensors = {f"model.layers.{n}.a.weight": {"cosine": 0.1 * n, "sign_conflict": 0.3} for n in range(4)}
    heights = []
    for count in (2, 12):
        label = "SFT_sparse, λ=1e-4 lr=1.235e-3 l1.method=subgradient + DPO "
        figure = conflict_by_layer({f"{label}{n}": {"layers": tensors} for n in range(count)})
        figure.canvas.draw()
        heights.append(figure.axes[0].get_window_extent().height)

    assert heights[1] > 0.9 * heights[0]


def test_front_holds_what_no_other_beats():
    assert front([[1, 3], [2, 2], [3, 1], [2, 1], [2, 2]]) == [True, True, True, False, True]


def test_pareto_draws_every_cell_in_three_panels_and_needs_its_columns(store):
    table = rows(store)

    figure = pareto(table)

    assert [(ax.get_xlabel(), ax.get_ylabel()) for ax in figure.axes] == [
        ("mmlu dev (%)", "tool call (%)"),
        ("mmlu dev (%)", "honesty (%)"),
        ("tool call (%)", "honesty (%)"),
    ]
    points = {(round(100 * r["mmlu_dev"], 6), round(100 * r["tool_call"], 6)) for r in table}
    drawn = {
        tuple(round(float(v[0]), 6) for v in line.get_data())
        for line in figure.axes[0].lines
        if len(line.get_xdata()) == 1
    }
    assert points <= drawn
    assert pareto(table, ["tool_call", "absent", "mmlu_dev_bits"]) is None

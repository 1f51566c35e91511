"""What difference a study can find, against simulated t tests and the committed files of the first one."""

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from paft.report.saved import read_csv
from paft.study.__main__ import main
from paft.study.power import SIZES, Variances, first_study, least_difference, power_table

DOCS = Path(__file__).parents[2] / "docs"
FIRST = DOCS / "study/gsm8k_hh"


def test_least_difference_is_found_four_times_in_five():
    """By seeds alone, where the t test of their means is exact."""
    variances, seeds = Variances(items=0.0, seeds=9.0), 5
    least = least_difference(variances, seeds, 10**9)

    error = variances.stderr(seeds, 10**9) * seeds**0.5
    draws = np.random.default_rng(0).normal(least, error, (20000, seeds))
    found = float(np.mean(stats.ttest_1samp(draws, 0.0, axis=1).pvalue < 0.05))

    assert found == pytest.approx(0.8, abs=0.01)  # three standard errors of a share of 20000


def test_a_correction_for_four_tests_asks_for_more():
    found = Variances(items=400.0, seeds=9.0)
    assert least_difference(found, 5, 500, 4) > least_difference(found, 5, 500) > 0


def test_more_seeds_or_items_never_ask_for_more():
    found = Variances(items=400.0, seeds=9.0)
    sizes = [(3, 100), (3, 500), (5, 500), (5, 1000), (8, 1000)]
    least = [found.stderr(*size) for size in sizes]
    assert least == sorted(least, reverse=True)


def test_standard_error_of_the_mean_of_two_independent_skills():
    found = Variances(items=400.0, seeds=9.0)
    assert found.stderr(4, 100) == pytest.approx(((400 / 100 + 9 / 4) / 2) ** 0.5)


def test_the_page_s_table_is_what_the_first_study_s_files_give(tmp_path, capsys):
    main(["power", "--out", str(tmp_path), "--first", str(DOCS / "study")])

    assert (tmp_path / "power.csv").read_bytes() == (DOCS / "study2/power.csv").read_bytes()
    table = power_table(FIRST)
    assert [(row["seeds"], row["items"]) for row in table] == list(SIZES)
    assert [dict(row) for row in read_csv(tmp_path / "power.csv")] == [pytest.approx(row) for row in table]


def test_variances_of_the_first_study_give_back_its_printed_error():
    """The mean of five merges varied over seeds by less than a single one, so the bound is not below it."""
    question = "DPO: L1 (1e-4) against none, mean of five merges"
    rows = read_csv(FIRST / "comparisons.csv")
    (printed,) = [r for r in rows if (r["question"], r["column"]) == (question, "gsm8k_choice")]
    found = first_study(FIRST)

    bound = (found.items / printed["num_items"] + found.seeds / printed["num_seeds"]) ** 0.5
    assert bound >= printed["stderr"] * 0.99


def test_a_folder_without_the_difference_is_refused_with_a_sentence(tmp_path, capsys):
    with pytest.raises(SystemExit) as exit:
        main(["power", "--out", str(tmp_path), "--first", str(tmp_path)])
    assert exit.value.code == 2
    assert "error: " in capsys.readouterr().err

"""Lists of comparisons: each is what `compare` finds, and all are corrected together."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from synthetic_store import PAFT, fill, with_lambda

from paft.config import Paradigm
from paft.merge.methods import DareTies, Ties
from paft.report.__main__ import main
from paft.report.compare import compare
from paft.report.markdown import filled
from paft.report.questions import answers, read_questions
from paft.report.statistics import holm

HEAD = "topic,question,both,left,right,columns\n"
LIST = (
    HEAD
    + "a,TIES against DARE,,merge=ties,merge=dare,average honesty\n"
    + 'a,"TIES against DARE, dense",lambda=0,merge=ties,merge=dare,average\n'
    + "b,sparsity,paradigm=sequential,lambda=1e-4,lambda=0,preference_sparsity:sft_sparsity\n"
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("asked") / "stages"
    sparse = [replace(with_lambda(PAFT, w), seed=s) for w in (0.0, 1e-4) for s in (0, 1, 2)]
    cells = [
        replace(c, merge=m(seed=c.seed) if m is DareTies else m()) for c in sparse for m in (Ties, DareTies)
    ]
    fill(root, [*cells, *(replace(c, paradigm=Paradigm.sequential) for c in sparse)])
    return root


def asked(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "questions.csv"
    path.write_text(text)
    return path


def test_answers_against_compare(store, tmp_path):
    found = answers(store, read_questions(asked(tmp_path, LIST)))

    assert [row["column"] for row in found] == [
        "average",
        "honesty",
        "average",
        "preference_sparsity - sft_sparsity",
    ]
    both = {d.column.name: d for d in compare(store, "merge=ties", "merge=dare").differences}
    dense = {
        d.column.name: d for d in compare(store, "lambda=0,merge=ties", "lambda=0,merge=dare").differences
    }
    for row, expected in zip(found, (both["average"], both["honesty"], dense["average"]), strict=False):
        assert row["difference"] == pytest.approx(100 * expected.difference.value)
        assert (row["low"], row["p"]) == pytest.approx((100 * expected.difference.low, expected.difference.p))
    assert [row["num_pairs"] for row in found] == [2, 2, 1, 1]


def test_all_are_corrected_together(store, tmp_path):
    found = answers(store, read_questions(asked(tmp_path, LIST)))

    assert [row["p_corrected"] for row in found] == pytest.approx(holm([row["p"] for row in found]))


def test_sides_may_be_measured_by_different_columns(store, tmp_path):
    row = answers(store, read_questions(asked(tmp_path, LIST)))[-1]

    assert row["difference"] == pytest.approx(row["left"] - row["right"])
    assert row["why"] == "" and len(row["evaluate_keys"].split()) == 6


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("a,x,,merge=ties,merge=linear,average\n", "no cell has merge=linear; there are"),
        ("a,x,lambda=0,merge=ties,merge=dare,nothing\n", "there is no column 'nothing'; there are"),
    ],
)
def test_a_question_without_an_answer_says_why(store, tmp_path, line, why):
    good, bad = answers(
        store, read_questions(asked(tmp_path, HEAD + "a,y,,merge=ties,merge=dare,average\n" + line))
    )

    assert why in bad["why"] and bad["difference"] is bad["p_corrected"] is None
    assert good["p_corrected"] == good["p"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD, "asks nothing"),
        (
            HEAD + "a,x,,merge=ties,merge=dare\n",
            "row 2: the columns must be topic, question, both, left, right, columns",
        ),
        ("question,left,right\nx,a,b\n", "row 2: the columns must be"),
    ],
)
def test_a_list_that_is_none_is_refused(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_questions(asked(tmp_path, text))


def test_a_list_of_which_nothing_is_answered_ends_with_what_to_run(store, tmp_path, capsys):
    nothing = asked(tmp_path, HEAD + "a,x,lambda=5,merge=ties,merge=dare,average\n")
    with pytest.raises(SystemExit, match="2"):
        main(["--out", str(tmp_path / "out"), "ask", str(nothing), "--store", str(store)])

    said = capsys.readouterr()
    assert "no cell has lambda=5" in said.out
    assert (
        f"error: {store} answers none of the questions of {nothing}" in said.err and "make study" in said.err
    )
    assert not (tmp_path / "out").exists()  # an earlier list of answers stays


def test_command_writes_what_a_page_can_show(store, tmp_path, capsys):
    main(["--out", str(tmp_path), "ask", str(asked(tmp_path, LIST)), "--store", str(store)])

    table = pd.read_csv(tmp_path / "comparisons.csv")
    assert list(table.question) == [
        "TIES against DARE",
        "TIES against DARE",
        "TIES against DARE, dense",
        "sparsity",
    ]
    assert "TIES against DARE" in capsys.readouterr().out
    page = tmp_path / "page.md"
    page.write_text("<!-- comparisons comparisons.csv: | column=honesty -->\n<!-- end -->\n")
    assert f"| TIES against DARE | honesty | {table.left[1]:.3g} | {table.right[1]:.3g} |" in filled(page)
    with pytest.raises(SystemExit, match="2"):
        main(["ask", str(tmp_path / "none.csv")])

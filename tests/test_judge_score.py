"""`python -m paft.judge score`: the public leaderboard's figures from its files, and what files are refused."""

import json
import re
from pathlib import Path

import pytest

from paft.judge.__main__ import main
from paft.judge.metrics import shares, win_rate

SHARED = Path(__file__).resolve().parents[1] / "../shared/data/alpaca_eval"
PUBLIC = pytest.mark.skipif(not SHARED.is_dir(), reason="the public files are not here")
LEADERBOARD = {
    "phi-2": {
        "win_rate": 2.350209543026152,
        "standard_error": 0.4496590405673333,
        "n_wins": 15,
        "n_wins_base": 785,
        "n_draws": 3,
        "n_total": 803,
        "discrete_win_rate": 2.054794520547945,
    },
    "gemma-2b-it": {
        "win_rate": 3.4019714381366457,
        "standard_error": 0.5389981250162534,
        "n_wins": 23,
        "n_wins_base": 782,
        "n_draws": 0,
        "n_total": 805,
        "discrete_win_rate": 2.857142857142857,
        "avg_length": 1041,
    },
}
"""Rows of alpaca-eval's leaderboard file for weighted_alpaca_eval_gpt4_turbo; that of phi-2 counts the length of two
empty answers which its file of outputs is without."""
ASKED = ("Say hello.", "Count to three.", "Name a colour.")
ROUNDING = 1e-9
"""Of float64 sums of some 800 numbers in another order."""


def rows(texts: dict[str, str], generator: str) -> list[dict[str, str]]:
    return [{"instruction": i, "output": o, "generator": generator} for i, o in texts.items()]


REFERENCE = rows(dict(zip(ASKED, ("Hello!", "1, 2, 3", "Red"), strict=True)), "reference")
OUTPUTS = rows(dict(zip(ASKED, ("Hi", "One two three", "Red"), strict=True)), "mine")
ANNOTATIONS = [
    {"instruction": r["instruction"], "output_1": r["output"], "output_2": o["output"], "preference": p}
    for r, o, p in zip(REFERENCE, OUTPUTS, (1.25, 2, 1.5), strict=True)
]


@pytest.fixture
def files(tmp_path):
    def written(**changed) -> list[str]:
        contents = {"outputs": OUTPUTS, "reference": REFERENCE, "annotations": ANNOTATIONS} | changed
        words = ["score", "--data", str(tmp_path)]
        for name, content in contents.items():
            path = tmp_path / f"{name}.json"
            if content is not None:
                path.write_text(content if isinstance(content, str) else json.dumps(content))
            words += [f"--{name}", str(path)]
        return words

    return written


def scored(capsys, words: list[str]) -> dict:
    main([*words, "--json"])
    return json.loads(capsys.readouterr().out)


def refused(capsys, words: list[str]) -> str:
    with pytest.raises(SystemExit) as exit:
        main(words)
    assert exit.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
    return said


@PUBLIC
@pytest.mark.parametrize("model", LEADERBOARD)
def test_figures_are_the_public_leaderboards(capsys, tmp_path, model):
    words = ["score", "--outputs", str(SHARED / f"outputs_{model}.json")]
    words += ["--reference", str(SHARED / "reference_outputs_gpt4_1106_preview.json")]
    words += ["--annotations", str(SHARED / f"annotations_{model}.json"), "--data", str(tmp_path)]

    figures = scored(capsys, words)

    public = LEADERBOARD[model]
    assert {name: figures[name] for name in public} == pytest.approx(public, rel=ROUNDING)
    assert (figures["instructions"], figures["outputs"], figures["annotations"]) == (
        805,
        *2 * (public["n_total"],),
    )
    assert figures["length_controlled_winrate"] is None
    assert (
        "df_gamed.csv" in figures["length_controlled_reason"]
        or "alpaca-eval" in figures["length_controlled_reason"]
    )


def test_probability_draw_and_win_count_as_what_they_are(capsys, files):
    figures = scored(capsys, files())

    assert figures["win_rate"] == pytest.approx(100 * (0.25 + 1 + 0.5) / 3)
    # the standard deviation of 0.25, 1, 0.5 with n - 1, over the root of 3
    assert figures["standard_error"] == pytest.approx(100 * 0.38188130791298666 / 3**0.5)
    assert (figures["n_wins"], figures["n_wins_base"], figures["n_draws"]) == (1, 1, 1)
    assert figures["discrete_win_rate"] == pytest.approx(50)


def test_text_has_each_figure_on_a_line(capsys, files):
    main(files())

    lines = capsys.readouterr().out.splitlines()
    assert ["win_rate", "58.3333"] in [line.split() for line in lines]
    assert any(line.startswith("length_controlled_reason") for line in lines)


def test_draw_may_be_zero_and_unread_judgements_do_not_count():
    assert shares([{"preference": value} for value in (0, None, 2, 1)]) == [0.5, 1.0, 0.0]
    assert win_rate([{"preference": 2}])["standard_error"] is None


def test_json_lines_are_read_too(capsys, tmp_path, files):
    words = files()
    lines = tmp_path / "outputs.jsonl"
    lines.write_text("\n".join(map(json.dumps, OUTPUTS)) + "\n")

    assert scored(capsys, [*words, "--outputs", str(lines)])["outputs"] == 3


OTHER = rows({"Who are you?": "Me"}, "mine")
WRONG = {
    "no file": ({"outputs": None}, "--outputs .*outputs.json is not a file"),
    "broken": ({"outputs": "[{"}, "cannot be read: broken JSON"),
    "an object": ({"reference": {}}, "must be a list of objects"),
    "empty": ({"annotations": []}, "is an empty list"),
    "a row that is none": ({"outputs": ["Hi"]}, "row 1 must be an object, got 'Hi'"),
    "column missing": (
        {"outputs": [{"instruction": "a", "text": "b"}]},
        "row 1 has no 'output', it has 'instr",
    ),
    "no text": ({"outputs": [{"instruction": "a", "output": 3}]}, "row 1: 'output' must be text, got 3"),
    "twice": ({"outputs": [*OUTPUTS, OUTPUTS[0]]}, "the instruction 'Say hello.' more than once"),
    "judged twice": ({"annotations": [*ANNOTATIONS, ANNOTATIONS[1]]}, "'Count to three.' more than once"),
    "foreign": ({"outputs": OTHER}, "the reference has no answer to the instruction 'Who are you\\?'"),
    "judgement missing": (
        {"annotations": ANNOTATIONS[:1]},
        "no judgement of 2 instructions, the first being 'Count",
    ),
    "judgement of another": (
        {"outputs": OUTPUTS[:2]},
        "the outputs have no answer to the instruction 'Name a c",
    ),
    "other outputs": (
        {"outputs": rows(dict.fromkeys(ASKED, "No"), "x")},
        "output_2 is not the model's answer in 3",
    ),
    "other reference": (
        {"reference": rows(dict.fromkeys(ASKED, "No"), "x")},
        "output_1 is not the reference's",
    ),
    "no preference": (
        {"annotations": [{**ANNOTATIONS[0], "preference": 3}]},
        "row 1 has the preference 3; it must",
    ),
    "text": ({"annotations": [{**ANNOTATIONS[0], "preference": "2"}]}, "row 1 has the preference '2'"),
    "none is read": (
        {"annotations": [a | {"preference": None} for a in ANNOTATIONS]},
        "there is no win rate",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_files_are_refused_by_name(capsys, files, wrong):
    changed, said = WRONG[wrong]

    message = refused(capsys, files(**changed))

    assert re.search(said, message), message

"""PAFT's judging beside the package alpaca-eval's own: the same figures, the same prompts, the same preferences."""

import importlib.util
import json
import random

import numpy as np
import pandas as pd
import pytest
from test_judge_score import PUBLIC, SHARED

from paft.config import AlpacaEvalConfig, TaskConfig
from paft.config.judge import ANNOTATOR
from paft.config.judged import LENGTH_CONTROLLED, WIN_RATE
from paft.evaluate.judged import judged_scores
from paft.judge.metrics import length_controlled_rate, win_rate
from paft.judge.outputs import Pair, read_annotations
from paft.judge.package import GAMED, folder, imported
from paft.judge.prompts import Annotator, switched

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("alpaca_eval") is None, reason="the package alpaca-eval is not installed"
)
WORDS = ("red", "blue", "a", "much longer word", "one\nline", "äöü", '"quoted"', "")
INSTRUCTIONS = 60
METRICS = (WIN_RATE, LENGTH_CONTROLLED)


@pytest.fixture(scope="module")
def annotations() -> list[dict]:
    draw = random.Random(0)

    def text() -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(1, 12)))

    values = [1, 2, 0, 1.5, None, *(1 + draw.random() for _ in range(INSTRUCTIONS - 5))]
    return [
        {"instruction": f"{n} {text()}", "output_1": text(), "output_2": text(), "preference": value}
        for n, value in enumerate(values)
    ]


@pytest.fixture(scope="module")
def gamed(tmp_path_factory):
    """A file of the form of the hub's: two models' judgements, and how hard each instruction is."""
    draw, folder = np.random.default_rng(0), tmp_path_factory.mktemp("data")
    size = 2 * 805
    table = pd.DataFrame(
        {
            "model": np.repeat(["short", "long"], 805),
            "index": np.tile(np.arange(805), 2),
            "preference": draw.random(size),
            "instruction_difficulty": np.tile(draw.normal(size=805), 2),
            "std_delta_len": draw.normal(size=size),
            "not_gamed_baseline": False,
        }
    )
    table.to_csv(folder / GAMED, index=False)
    return folder


def test_win_rate_is_the_packages(annotations):
    theirs = imported("alpaca_eval.metrics").get_winrate(pd.DataFrame(annotations).dropna())

    ours = win_rate(annotations)

    assert ours == pytest.approx({name: float(value) for name, value in theirs.items()}, rel=1e-12)


def test_length_controlled_rate_is_the_packages_on_the_same_frame(annotations, gamed, monkeypatch):
    module = imported("alpaca_eval.metrics.glm_winrate")
    names = {"generator_1": "reference", "generator_2": "mine", "annotator": "judge"}
    monkeypatch.setattr(module, "hf_hub_download", lambda **_: str(gamed / GAMED))
    theirs = module.get_length_controlled_winrate(
        pd.DataFrame(annotations).assign(**names), save_weights_dir=None
    )
    before = module.hf_hub_download

    rates, shares = length_controlled_rate(annotations, gamed)

    assert rates == {name: float(theirs[name]) for name in rates}
    assert 100 * np.mean(shares) == pytest.approx(rates["length_controlled_winrate"])
    assert module.hf_hub_download is before


def test_rate_is_not_the_plain_one_and_leaves_nothing_in_the_package(annotations, gamed):
    import sklearn

    def files() -> dict:
        return {path: path.stat().st_mtime_ns for path in folder().rglob("*.csv")}

    before, routing = files(), sklearn.get_config()["enable_metadata_routing"]

    rates, _ = length_controlled_rate(annotations, gamed)

    assert abs(rates["length_controlled_winrate"] - win_rate(annotations)["win_rate"]) > 0.1
    assert files() == before and sklearn.get_config()["enable_metadata_routing"] == routing


@PUBLIC
@pytest.mark.parametrize("model", ["phi-2", "gemma-2b-it"])
def test_both_rates_of_public_annotations_are_the_packages(gamed, monkeypatch, model):
    file = SHARED / f"annotations_{model}.json"
    module = imported("alpaca_eval.metrics.glm_winrate")
    monkeypatch.setattr(module, "hf_hub_download", lambda **_: str(gamed / GAMED))
    theirs = module.get_length_controlled_winrate(pd.read_json(file), save_weights_dir=None)

    rows = read_annotations(file, "x")
    ours = win_rate(rows) | length_controlled_rate(rows, gamed)[0]

    # pandas reads numbers of more than fifteen digits to about one part in 1e15
    assert ours == pytest.approx({name: float(theirs[name]) for name in ours}, rel=1e-9)


def test_prompts_and_preferences_are_the_packages(annotations):
    """Every pair, in the order drawn for it, in the words of the annotator; and what an answer means."""
    answers = {}

    def complete(prompts, **_):
        for number, prompt in enumerate(prompts):
            top = [{"token": token, "logprob": -0.1 * (number + place)} for place, token in enumerate("mM")]
            answers[prompt] = {"message": {"content": "m"}, "logprobs": {"content": [{"top_logprobs": top}]}}
        return {"completions_all": [answers[prompt] for prompt in prompts]}

    settings = Annotator(ANNOTATOR).settings
    names = ("fn_completion_parser", "completion_parser_kwargs", "completion_key", "batch_size")
    theirs = imported("alpaca_eval.annotators.pairwise_evaluator").SinglePairwiseAnnotator(
        prompt_template=settings["prompt_template"],
        fn_completions=complete,
        seed=0,
        annotation_column="preference",
        packages_for_which_to_show_version=None,
        **{name: settings[name] for name in names},
    )
    pairs = [Pair(row["instruction"], row["output_1"], row["output_2"]) for row in annotations]
    asked = pd.DataFrame(annotations)[["instruction", "output_1", "output_2"]]
    judged = theirs(asked).set_index("instruction")["preference"]

    chatml = imported("alpaca_eval.utils").prompt_to_chatml
    by_messages = {json.dumps(chatml(prompt), sort_keys=True): answer for prompt, answer in answers.items()}
    for pair in pairs:
        question = Annotator(ANNOTATOR).question(pair)
        answer = by_messages[json.dumps(list(question.messages), sort_keys=True)]
        assert Annotator(ANNOTATOR).preference(pair, answer) == pytest.approx(
            judged[pair.instruction], abs=1e-12
        )
    assert len({switched(pair.instruction) for pair in pairs}) == 2


def test_columns_of_a_cell_are_both_rates_as_shares(annotations, gamed, tmp_path):
    (tmp_path / "annotations.json").write_text(json.dumps(annotations))
    tasks = {name: TaskConfig("alpaca_eval", metric) for name, metric in zip("ab", METRICS, strict=True)}
    config = AlpacaEvalConfig(name="alpaca_eval", tasks=tasks, length_data=str(gamed))

    scores, samples = judged_scores(tmp_path, config)

    figures = win_rate(annotations) | length_controlled_rate(annotations, gamed)[0]
    names = {"a": ("win_rate", "standard_error"), "b": ("length_controlled_winrate", "lc_standard_error")}
    for column, (rate, error) in names.items():
        assert 100 * scores[column].score == pytest.approx(figures[rate])
        assert 100 * scores[column].stderr == pytest.approx(figures[error])
    # an answer that could not be read has no preference, and is predicted all the same
    assert [scores[column].num_items for column in names] == [INSTRUCTIONS - 1, INSTRUCTIONS]
    assert len(samples) == 2 * INSTRUCTIONS - 1

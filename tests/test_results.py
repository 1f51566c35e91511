"""Scores out of lm-eval's dictionaries, as recorded from lm-eval 0.4.13 for the six leaderboard tasks.

`golden/openllm_results.json` is what `simple_evaluate` returned for each task on made-up rows with its dummy
model (environment left out, two items a filter kept, gsm8k's scores set by hand): the shape is lm-eval's own.
"""

import copy
import json
import logging
import math
import statistics
from pathlib import Path

import pytest
import torch

from paft.config import EvaluateConfig, TaskConfig
from paft.evaluate.items import from_samples
from paft.evaluate.parts import items, subtasks
from paft.evaluate.results import Score, as_json, average, score, with_stderr

RECORDED = json.loads((Path(__file__).parent / "golden/openllm_results.json").read_text())


@pytest.fixture(scope="module")
def columns(compose) -> dict[str, TaskConfig]:
    return compose("evaluate=open_llm").evaluate.tasks


@pytest.fixture(scope="module")
def scores(columns) -> dict[str, Score]:
    return {column: score(column, task, RECORDED[task.task]) for column, task in columns.items()}


def subjects() -> dict[str, dict]:
    results = RECORDED["mmlu"]["results"]
    groups = {"mmlu", "mmlu_stem", "mmlu_other", "mmlu_social_sciences", "mmlu_humanities"}
    return {name: result for name, result in results.items() if name not in groups}


def test_each_column_reads_the_metric_of_the_leaderboard(scores):
    expected = {
        "arc": ("arc_challenge", "acc_norm,none", 25),
        "hellaswag": ("hellaswag", "acc_norm,none", 10),
        "truthfulqa": ("truthfulqa_mc2", "acc,none", 0),
        "winogrande": ("winogrande", "acc,none", 5),
        "gsm8k": ("gsm8k", "exact_match,strict-match", 5),
    }
    for column, (task, metric, shots) in expected.items():
        found = scores[column]
        assert found.score == RECORDED[task]["results"][task][metric], column
        assert (found.num_fewshot, found.num_items) == (shots, 40), column
    assert scores["gsm8k"].score == 0.125, "strict-match, not flexible-extract"


def test_standard_errors_are_those_of_the_same_metric(scores):
    assert (
        scores["arc"].stderr == RECORDED["arc_challenge"]["results"]["arc_challenge"]["acc_norm_stderr,none"]
    )
    assert scores["gsm8k"].stderr == 0.053


def test_mmlu_is_the_plain_mean_of_57_subjects(scores):
    values = [result["acc,none"] for result in subjects().values()]
    assert len(values) == 57
    assert scores["mmlu"].score == pytest.approx(statistics.fmean(values), abs=1e-15)
    weighted = RECORDED["mmlu"]["groups"]["mmlu"]["acc,none"]
    assert abs(scores["mmlu"].score - weighted) > 1e-4, "the recorded subjects differ in size"
    assert scores["mmlu"].num_items == RECORDED["mmlu"]["groups"]["mmlu"]["sample_len"]
    assert (scores["mmlu"].num_fewshot, scores["mmlu"].version) == (5, "1.0")


def test_mmlu_standard_error_is_that_of_a_mean_of_independent_scores(scores):
    errors = torch.tensor([r["acc_stderr,none"] for r in subjects().values()], dtype=torch.float64)
    assert scores["mmlu"].stderr == pytest.approx(float(errors.square().sum().sqrt() / 57), rel=1e-12)


def test_mmlu_standard_error_against_simulation():
    """The mean of 57 averages of coin throws, drawn 4000 times, spreads as the formula says."""
    generator = torch.Generator().manual_seed(0)
    p, n = torch.linspace(0.2, 0.9, 57), torch.arange(20, 77)
    draws = torch.stack([torch.binomial(n.float(), p, generator=generator) / n for _ in range(4000)]).mean(1)
    result = {
        f"mmlu_{i}": {"acc,none": float(p[i]), "acc_stderr,none": float((p[i] * (1 - p[i]) / n[i]).sqrt())}
        for i in range(57)
    }
    raw = {"results": result, "group_subtasks": {"mmlu": list(result)}}
    found = score("mmlu", TaskConfig(task="mmlu", metric="acc,none", mean_over="mmlu_"), raw)
    assert found.stderr == pytest.approx(float(draws.std()), rel=0.05)  # 4000 draws: 1.1 % standard error


def test_average_is_the_plain_mean_of_six_columns(scores):
    assert average(scores) == pytest.approx(statistics.fmean(s.score for s in scores.values()), abs=1e-15)
    assert len(scores) == 6


def test_a_column_outside_the_average_is_left_out(scores):
    odd = Score(**{**scores["arc"].__dict__, "score": 99.0, "in_average": False})
    assert average(scores | {"odd": odd}) == average(scores)
    assert average({"odd": odd}) is None


def test_subtasks_are_of_the_group_alone(columns):
    raw = copy.deepcopy(RECORDED["mmlu"])
    raw["results"]["mmlu_pro"] = {"acc,none": 1.0}  # another column's task in the same call
    raw["groups"].pop("mmlu_stem")  # a group that aggregates nothing is in results, not in groups
    assert subtasks(columns["mmlu"], raw) == sorted(subjects())


def test_missing_metric_names_what_lm_eval_gave(columns):
    wrong = TaskConfig(task="gsm8k", metric="exact_match,none")
    with pytest.raises(ValueError, match=r"evaluate\.tasks\.gsm8k: .*no 'exact_match,none'") as error:
        score("gsm8k", wrong, RECORDED["gsm8k"])
    assert "exact_match,strict-match" in str(error.value) and "flexible-extract" in str(error.value)
    assert "stderr" not in str(error.value)


def test_missing_task_names_what_lm_eval_gave():
    with pytest.raises(ValueError, match=r"for arc_easy; it gave \['arc_challenge'\]"):
        score("arc", TaskConfig(task="arc_easy", metric="acc,none"), RECORDED["arc_challenge"])


def test_wrong_prefix_names_the_subtasks():
    with pytest.raises(ValueError, match=r"no subtask of mmlu starts with 'mmmlu_'.*mmlu_anatomy"):
        subtasks(TaskConfig(task="mmlu", metric="acc,none", mean_over="mmmlu_"), RECORDED["mmlu"])


def test_an_error_that_lm_eval_does_not_give_is_none():
    raw = {"results": {"t": {"bits_per_byte,none": 1.0, "bits_per_byte_stderr,none": "N/A"}}}
    assert score("t", TaskConfig(task="t", metric="bits_per_byte,none"), raw).stderr is None


def test_items_are_those_of_the_columns_filter(columns):
    kept = items("gsm8k", columns["gsm8k"], RECORDED["gsm8k"])
    assert len(RECORDED["gsm8k"]["samples"]["gsm8k"]) == 4, "two items under each of two filters"
    assert [item["item"] for item in kept] == [0, 1]


def test_items_of_a_group_are_told_apart(columns):
    kept = items("mmlu", columns["mmlu"], RECORDED["mmlu"])
    names = [item["item"] for item in kept]
    assert len(names) == len(set(names)) == 2 * 57
    assert "mmlu_anatomy/0" in names


def bits(pairs: list[tuple[float, float]], subtask: str = "") -> list[dict]:
    """Items of (bits, bytes) as lm-eval gives them."""
    prefix = f"{subtask}/" if subtask else ""
    return [{"item": f"{prefix}{n}", "value": (-b * math.log(2), size)} for n, (b, size) in enumerate(pairs)]


def test_bits_per_byte_error_against_simulation():
    """The ratio of sums over resampled items spreads as the delta method says."""
    generator = torch.Generator().manual_seed(1)
    num_bytes = torch.randint(20, 200, (300,), generator=generator).double()
    drawn = num_bytes * (1 + 0.3 * torch.randn(300, generator=generator).double())
    picks = torch.randint(300, (4000, 300), generator=generator)
    resampled = drawn[picks].sum(1) / num_bytes[picks].sum(1)
    found = from_samples("t", bits(list(zip(drawn.tolist(), num_bytes.tolist(), strict=True)))).stderr
    assert found == pytest.approx(float(resampled.std()), rel=0.05)


NO_ERROR = Score("t", "bits_per_byte,none", 1.0, None, False, False, None, None, 2)


def test_bits_per_byte_of_items_by_hand():
    """Ratio 3 bits / 3 bytes = 1, residuals +-0.5, whose variance has n - 1 = 1 below it."""
    found = with_stderr(NO_ERROR, bits([(1.5, 1), (1.5, 2)])).stderr
    assert found == pytest.approx(math.sqrt(2 * (0.5**2 + 0.5**2)) / 3)


def test_bits_per_byte_of_subtasks_is_a_mean_of_ratios_and_so_is_its_error():
    """Two subtasks whose ratios have errors of 1/3 sqrt(2 * 0.5) and 0: half of the root of their squares' sum."""
    apart = [*bits([(1.5, 1), (1.5, 2)], "a"), *bits([(40, 20), (80, 40), (60, 30)], "b")]
    found = with_stderr(NO_ERROR, apart)
    assert found.stderr == pytest.approx(math.sqrt(2 * (0.5**2 + 0.5**2)) / 3 / 2)
    assert from_samples("t", apart).score == pytest.approx((1 + 2) / 2)


def test_bits_per_byte_of_subtasks_against_simulation():
    """Few items of very different sizes: the error of the mean of ratios, drawn 4000 times, not of the pooled one."""
    generator = torch.Generator().manual_seed(2)
    sizes, levels = torch.tensor([5.0, 2000.0]), torch.tensor([2.0, 1.0])
    noise = torch.randn(4000, 2, 40, generator=generator) * 0.5
    drawn = sizes[:, None] * (levels[:, None] + noise)
    true = (drawn.sum(2) / (40 * sizes)).mean(1).std()
    pairs = [[(float(x), float(size)) for x in row] for row, size in zip(drawn[0], sizes, strict=True)]

    found = with_stderr(NO_ERROR, [*bits(pairs[0], "a"), *bits(pairs[1], "b")]).stderr

    assert found == pytest.approx(float(true), rel=0.25)  # one draw of 80 items: 8 % standard error


@pytest.mark.parametrize("pairs", [{"": 1}, {"a": 1, "b": 5}, {"a": 1, "b": 1}])
def test_one_item_shows_no_error(pairs):
    scored = [item for name, n in pairs.items() for item in bits([(1.0 + i, 2) for i in range(n)], name)]
    assert with_stderr(NO_ERROR, scored).stderr is None


def test_a_metric_that_lm_eval_calls_lower_is_better_is_named_where_more_is_taken_as_better(caplog):
    raw = {"results": {"t": {"wer,none": 0.3}}, "higher_is_better": {"t": {"wer": False}}}
    turned = TaskConfig(task="t", metric="wer,none", higher_is_better=False, in_average=False)
    with caplog.at_level(logging.WARNING, logger="paft"):
        score("right", turned, raw)
        assert not caplog.text
        score("speech", TaskConfig(task="t", metric="wer,none"), raw)
    assert (
        "evaluate.tasks.speech takes more as better, and lm-eval says that lower wer,none of t" in caplog.text
    )


def test_a_given_error_is_kept(scores):
    assert with_stderr(scores["arc"], [{"value": 1.0}]) == scores["arc"]


def test_json_has_the_columns_and_the_average(scores):
    written = json.loads(json.dumps(as_json(scores, EvaluateConfig(name="x", tasks={}, limit=3))))
    assert written["average"] == average(scores) and written["limit"] == 3
    assert written["tasks"]["mmlu"]["score"] == scores["mmlu"].score

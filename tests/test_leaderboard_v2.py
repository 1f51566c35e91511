"""Open LLM Leaderboard v2 and IFEval: lm-eval's tasks on made-up rows, scored as the leaderboard's page says."""

import importlib.util
import random
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from conftest import train
from lm_eval import simple_evaluate
from open_llm_rows import Row, write
from test_local_rows import Told, lm_evals, local

from paft.config import EvaluateConfig, TaskConfig
from paft.evaluate.columns import columns_of
from paft.evaluate.items import from_samples
from paft.evaluate.packages import require_packages
from paft.evaluate.parts import items
from paft.evaluate.results import average, score, with_stderr

FOLDERS = ("leaderboard", "ifeval")
BBH = {
    "boolean_expressions": 2,
    "causal_judgement": 2,
    "date_understanding": 6,
    "disambiguation_qa": 3,
    "formal_fallacies": 2,
    "geometric_shapes": 11,
    "hyperbaton": 2,
    "logical_deduction_five_objects": 5,
    "logical_deduction_seven_objects": 7,
    "logical_deduction_three_objects": 3,
    "movie_recommendation": 6,
    "navigate": 2,
    "object_counting": 19,
    "penguins_in_a_table": 5,
    "reasoning_about_colored_objects": 18,
    "ruin_names": 6,
    "salient_translation_error_detection": 6,
    "snarks": 2,
    "sports_understanding": 2,
    "temporal_sequences": 4,
    "tracking_shuffled_objects_five_objects": 5,
    "tracking_shuffled_objects_seven_objects": 7,
    "tracking_shuffled_objects_three_objects": 3,
    "web_of_lies": 2,
}
MUSR = {"murder_mysteries": 2, "object_placements": 5, "team_allocation": 3}
GPQA = ("diamond", "extended", "main")
"""The numbers of choices on huggingface.co/docs/leaderboards/open_llm_leaderboard/normalization."""


def normalized(value: float, num_choices: int) -> float:
    """The page's function."""
    lower_bound = 1 / num_choices
    return 0.0 if value < lower_bound else (value - lower_bound) / (1.0 - lower_bound)


def published(column: str, raw: dict[str, Any]) -> float:
    """The column from lm-eval's results, by the page."""
    results = raw["results"]
    if column == "gpqa":
        return normalized(raw["groups"]["leaderboard_gpqa"]["acc_norm,none"], 4)
    if column == "mmlu_pro":
        return normalized(results["leaderboard_mmlu_pro"]["acc,none"], 10)
    choices = BBH if column == "bbh" else MUSR
    values = [(results[f"leaderboard_{column}_{name}"]["acc_norm,none"], n) for name, n in choices.items()]
    return statistics.fmean(normalized(value, n) for value, n in values)


# --- rows ---------------------------------------------------------------------------------------------


def made_up(out: Path) -> None:
    manager = lm_evals(FOLDERS)
    for name in BBH:
        choices = (manager.task_index[f"leaderboard_bbh_{name}"].cfg or {})["doc_to_choice"]
        rows = [{"input": f"{name} {n}?", "target": choices[n % len(choices)]} for n in range(4)]
        write(out, f"SaylorTwift/bbh/{name}/test", rows)
    for name, num_choices in MUSR.items():
        write(out, f"TAUR-Lab/MuSR/{name}", [musr(name, n, num_choices) for n in range(6)])
    for number, name in enumerate(GPQA):
        write(out, f"Idavidrein/gpqa/gpqa_{name}/train", [gpqa(n) for n in range(3 + 2 * number)])
    for split, num_rows in (("validation", 5), ("test", 12)):
        write(out, f"TIGER-Lab/MMLU-Pro/{split}", [mmlu_pro(n) for n in range(num_rows)])


def musr(name: str, n: int, num_choices: int) -> Row:
    choices = [f"choice {n} {k}" for k in range(num_choices)]
    asked = {"narrative": f"A story of {name}, {n}.", "question": "Who?", "choices": repr(choices)}
    return {**asked, "answer_index": n % num_choices, "answer_choice": choices[n % num_choices]}


def gpqa(n: int) -> Row:
    wrong = {f"Incorrect Answer {k}": f"{n} + {k}" for k in (1, 2, 3)}
    return {"Question": f"What is {n}?", "Correct Answer": f"{n}", **wrong}


def mmlu_pro(n: int) -> Row:
    options = [f"{n} {k}" for k in range(10 if n % 2 else 4)]
    answer = n % len(options)
    return {
        "question": f"Which {n}?",
        "options": options,
        "answer": "ABCDEFGHIJ"[answer],
        "answer_index": answer,
    }


@pytest.fixture(scope="module")
def config(compose) -> EvaluateConfig:
    return compose("evaluate=leaderboard_v2").evaluate


@pytest.fixture(scope="module")
def raws(config, tmp_path_factory) -> dict[str, dict[str, Any]]:
    """What lm-eval returns for the columns of choices."""
    rows = tmp_path_factory.mktemp("rows")
    made_up(rows)
    tasks = {c: t for c, t in config.tasks.items() if c not in ("ifeval", "math")}
    manager = local(EvaluateConfig(name="v2", tasks=tasks, data_dir=str(rows)), FOLDERS)
    return {
        column: dict(
            simple_evaluate(Told(), tasks=[task.task], bootstrap_iters=2, task_manager=manager) or {}
        )
        for column, task in tasks.items()
    }


# --- scores -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("column", ["bbh", "gpqa", "musr", "mmlu_pro"])
def test_a_column_against_the_published_normalization(column, config, raws):
    task, raw = config.tasks[column], raws[column]
    found, scored = score(column, task, raw), items(column, task, raw)

    assert found.score == pytest.approx(published(column, raw), abs=1e-12)
    assert from_samples(task.task, scored).score == pytest.approx(found.score, abs=1e-12)
    assert len({one["item"] for one in scored}) == len(scored) == found.num_items


def test_some_parts_are_below_guessing_and_some_above(config, raws):
    results = raws["bbh"]["results"]
    below = [n for n, c in BBH.items() if results[f"leaderboard_bbh_{n}"]["acc_norm,none"] < 1 / c]

    assert 0 < len(below) < len(BBH)


def test_numbers_of_choices_against_lm_evals_task_files():
    index = lm_evals(FOLDERS).task_index
    assert {n: len((index[f"leaderboard_bbh_{n}"].cfg or {})["doc_to_choice"]) for n in BBH} == BBH


def test_standard_error_above_chance_is_that_of_the_rescaled_items(config, raws):
    task, raw = config.tasks["gpqa"], raws["gpqa"]
    found = score("gpqa", task, raw)
    alone = [raw["results"][f"leaderboard_gpqa_{name}"]["acc_norm_stderr,none"] for name in GPQA]
    shares = [n / 15 for n in (3, 5, 7)]

    assert found.score > 0
    expected = sum((share * error) ** 2 for share, error in zip(shares, alone, strict=True)) ** 0.5 / 0.75
    assert found.stderr == pytest.approx(expected, rel=1e-12)


def followed(*answers: list[bool]) -> dict[str, Any]:
    """lm-eval's results of IFEval, for an item the instructions that were followed."""
    flat = [one for answer in answers for one in answer]
    whole = statistics.fmean(all(answer) for answer in answers)
    samples = [
        {
            "doc_id": number,
            "filter": "none",
            "arguments": [("prompt", {})],
            "prompt_level_strict_acc": all(answer),
            "inst_level_strict_acc": answer,
        }
        for number, answer in enumerate(answers)
    ]
    name = "leaderboard_ifeval"
    results = {
        "prompt_level_strict_acc,none": whole,
        "prompt_level_strict_acc_stderr,none": 0.1,
        "inst_level_strict_acc,none": sum(flat) / len(flat),
        "inst_level_strict_acc_stderr,none": "N/A",
    }
    sizes = {name: {"effective": len(answers)}}
    return {"results": {name: results}, "samples": {name: samples}, "n-samples": sizes}


def test_ifeval_is_the_mean_of_prompts_and_instructions(config):
    task = config.tasks["ifeval"]
    raw = followed([True], [True, False], [False, False, False], [True, True])
    scored = items("ifeval", task, raw)

    found = with_stderr(score("ifeval", task, raw), scored)

    assert found.score == pytest.approx((2 / 4 + 4 / 8) / 2)
    assert from_samples(task.task, scored).score == pytest.approx(found.score)
    assert (
        found.stderr is not None and found.metric == "prompt_level_strict_acc,none inst_level_strict_acc,none"
    )


def test_a_share_of_all_instructions_has_an_error_over_items():
    task = TaskConfig("leaderboard_ifeval", "inst_level_strict_acc,none")
    answers: list[list[bool]] = [[True], [True, False], [False, False, False], [True, True]]
    raw = followed(*answers)
    found = with_stderr(score("c", task, raw), items("c", task, raw))

    draw = random.Random(0)
    drawn = (draw.choices(answers, k=len(answers) * 50) for _ in range(2000))
    simulated = statistics.stdev(sum(map(sum, many)) / sum(map(len, many)) for many in drawn) * 50**0.5
    assert found.stderr == pytest.approx(simulated * (4 / 3) ** 0.5, rel=0.05)  # 2000 draws: 1.6 % of it


def test_the_average_is_the_plain_mean_of_six(config, raws):
    scores = {column: score(column, config.tasks[column], raw) for column, raw in raws.items()}
    assert average(scores) == pytest.approx(statistics.fmean(s.score for s in scores.values()))
    assert list(config.tasks) == ["ifeval", "bbh", "math", "gpqa", "musr", "mmlu_pro"]


# --- refusals -----------------------------------------------------------------------------------------


def lacks(module: str) -> bool:
    return importlib.util.find_spec(module) is None


@pytest.mark.parametrize(
    ("task", "module", "line"),
    [
        ("ifeval", "langdetect", "pip install langdetect immutabledict$"),
        ("leaderboard_ifeval", "langdetect", "pip install langdetect immutabledict$"),
        ("leaderboard_math_algebra_hard", "math_verify", r"pip install 'math-verify\[antlr4_9_3\]'$"),
    ],
)
def test_what_a_task_lacks_is_said_with_the_line_that_installs_it(task, module, line):
    if not lacks(module):
        pytest.skip(f"{module} is installed")
    with pytest.raises(ValueError, match=f"lm-eval's task {task} needs {module}, .*{line}"):
        require_packages([task])
    require_packages(["arc_challenge"])


@pytest.mark.parametrize("choice", ["leaderboard_v2", "ifeval"])
def test_columns_are_lm_evals(compose, choice):
    evaluate = compose(f"evaluate={choice}").evaluate

    assert columns_of(evaluate, lm_evals(FOLDERS)).config == evaluate


def test_another_metric_that_a_task_has_not_is_refused(config):
    tasks = {"c": TaskConfig("ifeval", "prompt_level_strict_acc,none", mean_with=["acc,none"])}
    with pytest.raises(ValueError, match=r"evaluate\.tasks\.c\.mean_with=acc,none is no metric of ifeval"):
        columns_of(EvaluateConfig(name="c", tasks=tasks), lm_evals(FOLDERS))


def test_pooling_is_of_a_group(config):
    with pytest.raises(ValueError, match=r"evaluate\.tasks\.c\.pooled must be false without mean_over"):
        EvaluateConfig(name="c", tasks={"c": TaskConfig("ifeval", "a,none", pooled=True)})


@pytest.mark.parametrize("choice", ["leaderboard_v2", "ifeval"])
def test_a_plan_needs_neither_packages_nor_rows(choice, tmp_path):
    done = train("paradigm=base", f"evaluate={choice}", "plan=true", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


# --- with the packages --------------------------------------------------------------------------------

SOLVED = "We add, so the answer is $\\boxed{%d}$."


def instruction(n: int) -> Row:
    comma = {
        "instruction_id_list": ["punctuation:no_comma", "change_case:english_lowercase"],
        "kwargs": [{}, {}],
    }
    title = {"instruction_id_list": ["detectable_format:title"], "kwargs": [{}]}
    return {"key": n, "prompt": f"Write about {n}.", **(comma if n % 2 else title)}


@pytest.mark.skipif(
    lacks("langdetect") or lacks("math_verify"), reason="packages of lm-eval's tasks are absent"
)
@pytest.mark.parametrize("column", ["ifeval", "math"])
def test_generated_answers_are_scored_by_lm_evals_own_tasks(column, config, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "nltk.download", lambda *_, **__: True
    )  # no instruction of these rows counts sentences
    task = config.tasks[column]
    write(tmp_path, "wis-k/instruction-following-eval/train", [instruction(n) for n in range(4)])
    for name in maths():
        rows = [
            {"problem": f"{n} + 1", "solution": SOLVED % (n + 1), "level": f"Level {5 - n % 2}"}
            for n in range(4)
        ]
        write(tmp_path, f"DigitalLearningGmbH/MATH-lighteval/{name}/test", rows)
        write(tmp_path, f"DigitalLearningGmbH/MATH-lighteval/{name}/train", rows)
    manager = local(EvaluateConfig(name="v2", tasks={column: task}, data_dir=str(tmp_path)), FOLDERS)

    raw = dict(simple_evaluate(Writer(), tasks=[task.task], bootstrap_iters=2, task_manager=manager) or {})
    found = score(column, task, raw)

    assert found.score == pytest.approx(0.5 * (0.0 + 2 / 6) if column == "ifeval" else 0.5)
    assert from_samples(task.task, items(column, task, raw)).score == pytest.approx(found.score)


def maths() -> Iterable[str]:
    index = lm_evals(FOLDERS).task_index
    return [
        str((e.cfg or {})["dataset_name"])
        for n, e in index.items()
        if n.startswith("leaderboard_math_") and n[-5:] == "_hard" and e.kind.name == "TASK"
    ]


class Writer(Told):
    """Solves 0 + 1; writes of anything else in small letters and without a title, with a comma."""

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        asked = [str(request.args[0]).rpartition("Problem:")[2] for request in requests]
        return [
            SOLVED % 1 if "0 + 1" in text else "all in small letters, and this is english." for text in asked
        ]

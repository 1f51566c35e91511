"""A task is one entry: a name, or a file of the user's; what cannot be scored is refused before anything is trained."""

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path

import lm_eval.tasks
import pytest
from conftest import train
from lm_eval.tasks import TaskManager
from lm_eval.tasks._index import TaskIndex
from synthetic_store import PAFT
from tiny import MODEL

from paft.command.compose import with_new_tasks
from paft.config import RunConfig, TaskConfig, Template
from paft.evaluate import columns, index
from paft.evaluate.columns import columns_of, manager_for, task_manager
from paft.evaluate.stage import score_tasks
from paft.graph.build import build
from paft.graph.tasks import task_sha256
from paft.model.base import base_folder, load_tokenizer
from paft.proof.base import load_base

TASK = """task: mybench
dataset_path: json
dataset_kwargs: {data_files: {test: %s}}
output_type: multiple_choice
test_split: test
doc_to_text: !function mine.question
doc_to_choice: answers
doc_to_target: 0
metric_list:
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""


@pytest.fixture
def file(tmp_path, monkeypatch) -> Path:
    """A task of the user's, with its data and a function."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"q": f"q{n}", "answers": ["yes", "no"]}) + "\n" for n in range(3)))
    (tmp_path / "mine.py").write_text("def question(doc):\n    return doc['q']\n")
    path = tmp_path / "mybench.yaml"
    path.write_text(TASK % data)
    return path


def with_tasks(**tasks: TaskConfig) -> RunConfig:
    return replace(PAFT, evaluate=replace(PAFT.evaluate, tasks=tasks))


def known(**tasks: TaskConfig) -> columns.Columns:
    evaluate = replace(with_tasks(**tasks).evaluate, trust_task_code=True)
    return columns_of(evaluate, manager_for(evaluate))


# --- on the command line ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ["+evaluate.tasks.mine={task: mybench, metric: 'acc,none'}"],
        ["+evaluate.tasks.mine.task=mybench", "+evaluate.tasks.mine.metric='acc,none'"],
        ["++evaluate.tasks.mine.task=mybench", "evaluate.tasks.mine.metric='acc,none'"],
    ],
    ids=["at once", "word by word", "one plus"],
)
def test_a_task_is_added_on_the_command_line(compose, words):
    before = compose("seed=1").evaluate.tasks

    tasks = compose(*with_new_tasks(["seed=1", *words])).evaluate.tasks

    assert tasks == {**before, "mine": TaskConfig("mybench", "acc,none")}


def test_words_without_a_new_task_stay_as_they_are():
    words = ["-m", "+callbacks.mine=null", "evaluate.tasks.honesty.num_items=3,4", "++evaluate.tasks={}"]

    assert with_new_tasks(words) == words


def test_a_new_task_can_be_swept_over(tmp_path):
    words = ("+evaluate.tasks.mine.task=paft_honesty", "+evaluate.tasks.mine.num_fewshot=0,1")

    done = train("-m", "experiment=smoke", "plan=true", *words, "logs=out", cwd=tmp_path)

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("2 cells")


def test_a_setting_that_no_task_has_is_refused_with_those_there_are(tmp_path):
    words = ("+evaluate.tasks.mine.task=x", "+evaluate.tasks.mine.metrik=acc")

    done = train("plan=true", *words, cwd=tmp_path)

    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "metrik" in done.stderr and "it has: task, metric, num_fewshot" in done.stderr


# --- metrics ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "first"), [("paft_mmlu_dev", "acc,none"), ("paft_tool_call", "exact_match,none")]
)
def test_the_metric_is_the_first_of_the_tasks_own_unless_it_is_named(task, first):
    assert known(mine=TaskConfig(task)).config.tasks == {"mine": TaskConfig(task, first)}


@pytest.mark.parametrize(
    ("settings", "keys"),
    [
        ({"output_type": "multiple_choice"}, ["acc,none", "acc_norm,none"]),
        (
            {"metric_list": [{"metric": "exact_match"}], "filter_list": [{"name": "a"}, {"name": "b"}]},
            ["exact_match,a", "exact_match,b"],
        ),
        ({"metric_list": [{"metric": "/folder/mine.share"}]}, ["share,none"]),
        ({"class": "Mine"}, []),
    ],
    ids=["by default", "filters", "function", "a class's own"],
)
def test_metrics_are_those_that_a_tasks_file_tells(settings, keys):
    assert columns.metric_keys(settings) == keys


def test_a_metric_that_a_task_does_not_have_is_refused_with_those_it_has():
    told = r"evaluate\.tasks\.c\.metric=acc is no metric of paft_mmlu_dev, which has 'acc,none' 'bits_per_byte,none'; "
    with pytest.raises(ValueError, match=f"{told}did you mean 'acc,none'"):
        known(c=TaskConfig("paft_mmlu_dev", "acc"))


def test_a_metric_that_nobody_tells_must_be_given(tmp_path, monkeypatch):
    monkeypatch.setattr(columns, "TASKS", tmp_path)
    (tmp_path / "odd.yaml").write_text("task: odd\nclass: !function odd.Odd\n")

    with pytest.raises(ValueError, match=r"evaluate\.tasks\.c\.metric must be given"):
        known(c=TaskConfig("odd"))
    assert known(c=TaskConfig("odd", "any,none")).config.tasks["c"].metric == "any,none"


def test_a_first_metric_that_is_better_when_lower_is_refused_until_it_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(columns, "TASKS", tmp_path)
    (tmp_path / "bits.yaml").write_text("task: bits\nmetric_list: [{metric: bits_per_byte}]\n")

    with pytest.raises(ValueError, match=r"evaluate\.tasks\.c: lower bits_per_byte is better"):
        known(c=TaskConfig("bits"))
    known(c=TaskConfig("bits", higher_is_better=False, in_average=False))


# --- files --------------------------------------------------------------------------------------------


def test_a_file_dropped_beside_pafts_own_tasks_is_used_by_its_name(tmp_path, monkeypatch, file):
    monkeypatch.setattr(columns, "TASKS", file.parent)

    assert task_manager({"mybench"}).all_tasks == ["mybench"]
    assert known(c=TaskConfig("mybench")).config.tasks["c"].metric == "acc_norm,none"


@pytest.mark.parametrize("num_items", [None, 2])
def test_a_task_in_a_file_is_scored_under_its_own_name(file, num_items):
    base = base_folder(MODEL)
    tasks = {
        "c": TaskConfig(str(file), num_items=num_items),
        "h": TaskConfig("paft_honesty", num_items=num_items),
    }
    evaluate = replace(with_tasks(**tasks).evaluate, limit=3, trust_task_code=True)

    scores, samples = score_tasks(load_base(base, MODEL), load_tokenizer(base, Template.chatml), evaluate)

    assert (scores["c"].task, scores["c"].metric) == ("mybench", "acc_norm,none")
    assert len([s for s in samples if s["column"] == "c"]) == (num_items or 3)
    assert list(scores) == ["c", "h"]


@pytest.mark.parametrize("include", ["mybench.yaml", "[mybench.yaml]"])
def test_code_of_a_file_is_refused_by_name_and_not_loaded(file, include):
    (file.parent / "mine.py").write_text("raise SystemExit('it ran')\n")
    outer = file.parent / "outer.yaml"
    outer.write_text(f"include: {include}\ntask: outer\n")

    for path in (file, outer):
        told = rf"tasks\.c\.task={path}: .*mybench\.yaml runs the Python function mine\.question; .*trust_task_code"
        with pytest.raises(ValueError, match=told):
            manager_for(with_tasks(c=TaskConfig(str(path))).evaluate)


def test_a_file_without_code_needs_no_trust(file):
    file.write_text(file.read_text().replace("!function mine.question", "q"))
    evaluate = with_tasks(c=TaskConfig(str(file))).evaluate

    assert columns_of(evaluate, manager_for(evaluate)).config.tasks["c"].task == "mybench"


def test_a_group_in_a_file_is_refused_before_its_tasks_are_loaded(file):
    (file.parent / "mine.py").write_text("raise SystemExit('it ran')\n")
    inner = file.parent / "inner.yaml"
    inner.write_text("group: all_of_it\ntask: [mybench]\n")
    group = file.parent / "group.yaml"
    group.write_text("include: inner.yaml\n")
    evaluate = replace(
        with_tasks(c=TaskConfig(str(group), "acc,none")).evaluate, include_path=str(file.parent)
    )

    for tried in (evaluate, replace(evaluate, trust_task_code=True)):
        with pytest.raises(ValueError, match="must be one task, got a group"):
            columns_of(tried, manager_for(tried))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("lists.yaml", "include: [part.yaml]\ntask: t\n"),
        ("tag.yaml", "task: t\ndoc_to_text: !<!function> part.f\n"),
        ("linked.yaml", None),
    ],
)
def test_what_lm_eval_reads_of_a_file_is_in_the_key_however_it_is_named(tmp_path, name, text):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "part.yaml").write_text("task: part\n")
    (elsewhere / "part.py").write_text("def f(doc):\n    return ''\n")
    (elsewhere / "real.yaml").write_text("task: t\ndoc_to_text: !function part.f\n")
    file = (tmp_path if text is None else elsewhere) / name
    file.symlink_to(elsewhere / "real.yaml") if text is None else file.write_text(text)
    before = task_sha256(file)
    part = elsewhere / ("part.yaml" if name == "lists.yaml" else "part.py")
    part.write_text(part.read_text() + "# changed\n")

    assert task_sha256(file) != before


def test_the_digest_of_a_plain_file_is_the_one_that_keys_were_made_with(file):
    file.write_text(re.sub("dataset_kwargs.*", "", file.read_text()))
    parts = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (file, file.parent / "mine.py")]

    assert task_sha256(file) == hashlib.sha256("\0".join(parts).encode()).hexdigest()


def test_the_content_of_a_tasks_files_is_part_of_the_key_and_older_keys_stay(file):
    keys = [build(with_tasks(c=TaskConfig(str(file)))).key]
    (data,) = file.parent.glob("*.jsonl")
    for part, more in ((file, "# changed"), (file.parent / "mine.py", "# changed"), (data, "{}")):
        part.write_text(f"{part.read_text()}\n{more}\n")
        keys.append(build(with_tasks(c=TaskConfig(str(file)))).key)
    (file.parent / "unrelated.yaml").write_text("task: other\n")

    assert len(set(keys)) == 4
    assert build(with_tasks(c=TaskConfig(str(file)))).key == keys[-1]
    assert "sha256" not in build(PAFT).identity["config"]["evaluate"]["tasks"]["tool_call"]


def test_a_file_that_is_not_there_is_refused_when_the_graph_is_built(tmp_path):
    with pytest.raises(ValueError, match=r"gone\.yaml is not a file"):
        build(with_tasks(c=TaskConfig(str(tmp_path / "gone.yaml"))))


@pytest.mark.parametrize("text", ["task: [", "dataset_path: x\n", "task: mine\ndataset_path: json\n"])
def test_a_file_that_is_no_task_is_refused_with_the_reason(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)  # `datasets` looks for the rows of a json set in all of the working folder
    (tmp_path / "mine.yaml").write_text(text)

    with pytest.raises(
        ValueError, match=r"evaluate\.tasks\.c\.task=.*mine\.yaml cannot be loaded by lm-eval: \w+"
    ):
        known(c=TaskConfig(str(tmp_path / "mine.yaml")))


def test_two_tasks_of_one_name_are_refused(file):
    file.write_text(file.read_text().replace("task: mybench", "task: paft_honesty"))

    with pytest.raises(ValueError, match="has the name paft_honesty, as paft_honesty has"):
        known(a=TaskConfig("paft_honesty"), b=TaskConfig(str(file)))


@pytest.mark.slow
def test_a_grid_with_an_unknown_metric_trains_nothing(tmp_path):
    words = ("experiment=smoke", "-m", "evaluate.tasks.mmlu_dev.metric='acc,none','bogus,none'", "logs=out")

    done = train(*words, cwd=tmp_path)

    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "evaluate.tasks.mmlu_dev.metric=bogus,none is no metric of paft_mmlu_dev" in done.stderr
    assert not list(tmp_path.glob("out/stages/*/*/stage.json"))


# --- lm-eval's index -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_lm_evals_index_is_made_once_and_is_that_of_its_own_manager(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "mine.yaml").write_text("task: arc_easy\ndataset_path: mine\ntag: places\n")
    folders = [str(columns.TASKS), str(tmp_path)]
    theirs = TaskManager(include_path=folders)
    read: list[Path] = []
    plain = TaskIndex.build
    monkeypatch.setattr(
        TaskIndex, "build", staticmethod(lambda paths, **k: read.extend(paths) or plain(paths, **k))
    )

    ours = []
    for rows in (None, {"sft_data": "x"}):
        index.lm_evals_index.cache_clear()  # as in another process
        ours.append(task_manager({"mmlu", "arc_easy"}, rows, str(tmp_path)))

    assert [path for path in read if str(path) not in folders] == [Path(lm_eval.tasks.__file__).parent]
    for manager in ours:
        assert manager.task_index == theirs.task_index
        for names in ("all_tasks", "all_subtasks", "all_groups", "all_tags"):
            assert getattr(manager, names) == getattr(theirs, names)
    assert ours[1].load(["paft_honesty"])["tasks"]["paft_honesty"].config.metadata["sft_data"] == "x"
    ours[0].task_index.pop("mmlu")
    assert "mmlu" in task_manager({"mmlu", "arc_easy"}).task_index


@pytest.fixture
def own_folder(tmp_path, monkeypatch) -> Path:
    """In place of lm-eval's tasks, with one; and a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "one.yaml").write_text("task: one\ntag: some\n")
    monkeypatch.setattr(index, "TASKS", folder)
    return folder


def indexed() -> dict[str, TaskIndex]:
    """As another process has it."""
    index.lm_evals_index.cache_clear()
    found = dict(index.lm_evals_index())
    index.lm_evals_index.cache_clear()
    return found


@pytest.mark.parametrize("change", ["added", "removed", "rewritten"])
def test_a_kept_index_follows_its_files(own_folder, change):
    first = indexed()
    assert first["one"].cfg == {"task": "one", "tag": "some"} and first["some"].tags == {"one"}
    match change:
        case "added":
            (own_folder / "two.yaml").write_text("task: two\n")
        case "removed":
            (own_folder / "one.yaml").unlink()
        case "rewritten":
            (own_folder / "one.yaml").write_text("task: two\ntag: some\n")

    second = indexed()

    assert second == TaskIndex.build([own_folder]) != first
    assert len(list((own_folder.parent / "cache/paft/tasks").iterdir())) == 1


@pytest.mark.parametrize(
    "kept", ["", "[]", "{}", '{"state": 1, "entries": {}}', '{"state": "STATE", "entries": [1]}']
)
def test_a_kept_index_that_cannot_be_read_is_made_anew(own_folder, kept):
    first = indexed()
    (file,) = (own_folder.parent / "cache/paft/tasks").iterdir()
    state = json.loads(file.read_text())["state"]
    file.write_text(kept.replace("STATE", state))

    assert indexed() == first
    assert json.loads(file.read_text())["state"] == state


def test_an_index_that_cannot_be_kept_is_made_each_time(own_folder, tmp_path):
    (tmp_path / "cache").write_text("a file, where a folder would be")

    assert [*indexed()] == [*indexed()] == ["one", "some"]

"""`evaluate.data_dir`: lm-eval's tasks on files of this disk ask what lm-eval asks of the same rows."""

import gzip
import json
import shutil
import zlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lm_eval.tasks
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import train
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager
from open_llm_rows import ARC, GSM8K, HELLASWAG, arc, made_up, real, write

from paft.config import EvaluateConfig, TaskConfig
from paft.evaluate.columns import require_items
from paft.evaluate.leaves import leaves
from paft.evaluate.local import read_locally
from paft.graph.build import build
from paft.private import task_settings

SHARED = Path(__file__).resolve().parents[1] / "../shared/data/open_llm"
V1 = {
    "arc": TaskConfig("arc_challenge", "acc_norm,none", num_fewshot=25),
    "hellaswag": TaskConfig("hellaswag", "acc_norm,none", num_fewshot=10),
    "anatomy": TaskConfig("mmlu_anatomy", "acc,none", num_fewshot=5),
    "truthfulqa": TaskConfig("truthfulqa_mc2", "acc,none", num_fewshot=0),
    "winogrande": TaskConfig("winogrande", "acc,none", num_fewshot=5),
    "gsm8k": TaskConfig("gsm8k", "exact_match,strict-match", num_fewshot=5),
}
SUBJECTS = ("anatomy", "virology")


class Told(LM):
    """Answers any request with what its own text determines, and keeps the texts."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Any] = []

    def _kept(self, requests: list[Instance]) -> list[int]:
        self.asked += [request.args for request in requests]
        return [zlib.crc32(repr(request.args).encode()) for request in requests]

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        return [(-(number % 1000) / 10, number % 2 == 0) for number in self._kept(requests)]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        return [f"#### {101 + number % 2}" for number in self._kept(requests)]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        raise NotImplementedError


def asked_and_scored(task: Any, shots: int | None, limit: int | None, **more: Any) -> tuple[list[Any], Any]:
    lm = Told()
    raw = simple_evaluate(
        lm, tasks=[task], num_fewshot=shots, limit=limit, bootstrap_iters=2, fewshot_random_seed=1234, **more
    )
    assert raw is not None
    return lm.asked, raw["results"]


def with_rows(folder: Path, tasks: dict[str, TaskConfig] = V1, **settings: Any) -> EvaluateConfig:
    return EvaluateConfig(name="local", tasks=tasks, data_dir=str(folder), **settings)


FOLDERS = ("arc", "hellaswag", "mmlu/default", "truthfulqa", "winogrande", "gsm8k")
"""Of lm-eval's tasks: reading all of them takes seconds."""


def lm_evals(folders: Iterable[str] = FOLDERS) -> TaskManager:
    tasks = Path(lm_eval.tasks.__file__).parent
    return TaskManager(include_path=[tasks / folder for folder in folders], include_defaults=False)


def local(config: EvaluateConfig, folders: Iterable[str] = FOLDERS) -> TaskManager:
    manager = lm_evals(folders)
    read_locally({task.task for task in config.tasks.values()}, Path(str(config.data_dir)), manager)
    return manager


def checked(config: EvaluateConfig) -> None:
    require_items(config, local(config))


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    made_up(tmp_path / "rows", SUBJECTS)
    return tmp_path / "rows"


def theirs(name: str, rows: Path) -> ConfigurableTask:
    """lm-eval's task with the same rows in the way its documentation has for local files."""
    index = lm_evals()
    settings = task_settings(index.task_index[name].yaml_path)
    folder = rows / settings["dataset_path"] / (settings.get("dataset_name") or "")
    files = {file.stem: str(file) for file in folder.glob("*.jsonl")}
    own = {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": files}}
    return index.load([settings | own])["tasks"][name]


# --- prompts, examples and metrics --------------------------------------------------------------------


@pytest.mark.parametrize("column", V1)
def test_requests_and_metrics_against_lm_eval_on_the_same_rows(column, rows):
    same_as_lm_evals(V1[column], rows, None)


@pytest.mark.skipif(not SHARED.is_dir(), reason="development data is absent")
@pytest.mark.parametrize("column", V1)
def test_requests_of_real_rows_against_lm_eval(column, tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.getbasetemp() / "real"
    if not folder.is_dir():
        real(SHARED, folder)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))

    same_as_lm_evals(V1[column], folder, 20)


def same_as_lm_evals(task: TaskConfig, rows: Path, limit: int | None) -> None:
    manager = local(with_rows(rows))
    asked, scored = asked_and_scored(task.task, task.num_fewshot, limit, task_manager=manager)
    told, given = asked_and_scored(theirs(task.task, rows), task.num_fewshot, limit, task_manager=lm_evals())

    assert len(asked) >= 2 and asked == told
    assert scored == given


def test_a_group_reads_every_part(rows):
    config = with_rows(rows, {"mmlu": TaskConfig("mmlu", "acc,none", mean_over="mmlu_")})
    manager = local(config)
    parts = leaves(["mmlu"], manager)

    assert len(parts) == 57 and {f"mmlu_{subject}" for subject in SUBJECTS} < set(parts)
    with pytest.raises(
        ValueError, match=r"there is no file .*cais/mmlu/\w+/test\.jsonl; it may also end in \.json,"
    ):
        checked(config)


# --- files --------------------------------------------------------------------------------------------


def as_shards(file: Path) -> None:
    table = pa.Table.from_pylist([json.loads(line) for line in file.read_text().splitlines()])
    for number, part in enumerate((table.slice(0, 2), table.slice(2))):
        pq.write_table(part, file.with_name(f"{file.stem}-0000{number}-of-00002.parquet"))


def as_gzip(file: Path) -> None:
    file.with_suffix(".json.gz").write_bytes(
        gzip.compress(b"[" + b",".join(file.read_bytes().splitlines()) + b"]")
    )


@pytest.mark.parametrize("repack", [as_shards, as_gzip])
def test_other_kinds_of_files_hold_the_same_rows(rows, repack: Callable[[Path], None]):
    task = V1["arc"]
    before = asked_and_scored(task.task, 2, None, task_manager=local(with_rows(rows)))
    for split in ("train", "test"):
        repack(rows / ARC / f"{split}.jsonl")
        (rows / ARC / f"{split}.jsonl").unlink()

    assert asked_and_scored(task.task, 2, None, task_manager=local(with_rows(rows))) == before


def test_a_data_set_without_configs_may_have_a_folder_of_data(rows):
    shutil.move(rows / HELLASWAG, rows / "data")
    (rows / HELLASWAG).mkdir()
    shutil.move(rows / "data", rows / HELLASWAG / "data")

    checked(with_rows(rows, {"c": V1["hellaswag"]}))


def test_examples_need_rows_only_where_there_are_some(rows):
    (rows / ARC / "train.jsonl").unlink()

    checked(with_rows(rows, {"c": replace(V1["arc"], num_fewshot=0)}))
    with pytest.raises(ValueError, match=rf"there is no file {rows}/{ARC}/train\.jsonl"):
        checked(with_rows(rows, {"c": V1["arc"]}))


def test_two_files_of_one_split_are_refused(rows):
    (rows / GSM8K / "test.json").write_text("[]")

    with pytest.raises(ValueError, match=r"test\.json and .*test\.jsonl are both the split test; remove one"):
        checked(with_rows(rows, {"c": V1["gsm8k"]}))


# --- what is wrong with a row -------------------------------------------------------------------------


def without(row: dict[str, Any], column: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != column}


@pytest.mark.parametrize(
    ("column", "name", "change", "told"),
    [
        ("arc", f"{ARC}/test", lambda row: without(row, "question"), r"row 2 has no column 'question'"),
        ("arc", f"{ARC}/test", lambda row: row | {"answerKey": "E"}, "row 2: "),
        ("arc", f"{ARC}/test", lambda row: row | {"more": 1}, r"row 2 has a column 'more'"),
        ("hellaswag", f"{HELLASWAG}/validation", lambda row: row | {"label": "x"}, r"row 2: invalid literal"),
        ("anatomy", "cais/mmlu/anatomy/test", lambda row: row | {"answer": 4}, r"row 2: the answer is 4"),
        ("gsm8k", f"{GSM8K}/test", lambda row: [], r"row 2 must be an object"),
    ],
)
def test_a_row_that_no_task_can_read_is_named(rows, column, name, change, told):
    file = rows / f"{name}.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    lines[1] = change(lines[1])
    file.write_text("\n".join(map(json.dumps, lines)))

    with pytest.raises(ValueError, match=rf"{file}, {told}"):
        checked(with_rows(rows, {"c": V1[column]}))


@pytest.mark.parametrize(
    ("column", "name", "missing", "told"),
    [
        ("arc", f"{ARC}/test", "choices", r"row 1: UndefinedError: 'choices' is undefined"),
        ("arc", f"{ARC}/train", "choices", r"row 1: UndefinedError: 'choices' is undefined"),
        ("hellaswag", f"{HELLASWAG}/validation", "ctx_b", r"row 1: there is no 'ctx_b' in it"),
        (
            "anatomy",
            "cais/mmlu/anatomy/test",
            "answer",
            r"row 1: there is no column 'answer', which is doc_to_target",
        ),
        (
            "winogrande",
            "allenai/winogrande/winogrande_xl/validation",
            "option1",
            r"row 1: there is no 'option1' in it",
        ),
    ],
)
def test_a_column_that_all_rows_lack_is_named(rows, column, name, missing, told):
    file = rows / f"{name}.jsonl"
    lines = [without(json.loads(line), missing) for line in file.read_text().splitlines()]
    file.write_text("\n".join(map(json.dumps, lines)))

    with pytest.raises(ValueError, match=rf"{file}, {told}"):
        checked(with_rows(rows, {"c": V1[column]}))


def test_rows_behind_the_limit_are_not_looked_at(rows):
    write(rows, f"{ARC}/test", [arc(1), arc(2) | {"answerKey": "E"}])

    checked(with_rows(rows, {"c": replace(V1["arc"], num_fewshot=0)}, limit=1))


# --- the key ------------------------------------------------------------------------------------------


def test_the_content_of_the_folder_is_part_of_the_key_and_not_where_it_lies(compose, rows, tmp_path):
    words = ("paradigm=base", "evaluate=open_llm")
    hub = build(compose(*words))
    key = build(compose(*words, f"evaluate.data_dir={rows}")).key
    moved = shutil.copytree(rows, tmp_path / "moved")
    (moved / ".cache").mkdir()
    (moved / ".cache/lock").write_text("of hf download")

    assert "data_sha256" not in hub.identity["config"]["evaluate"]
    assert build(compose(*words, f"evaluate.data_dir={moved}")).key == key != hub.key
    (moved / f"{ARC}/test.jsonl").write_text(json.dumps(arc(1)))
    assert build(compose(*words, f"evaluate.data_dir={moved}")).key != key


def test_a_plan_needs_the_folder_and_no_model(rows, tmp_path):
    words = ("paradigm=base", "evaluate=open_llm", "plan=true")

    done = train(*words, f"evaluate.data_dir={rows}", cwd=tmp_path)
    gone = train(*words, "evaluate.data_dir=nowhere", cwd=tmp_path)

    assert done.returncode == 0, done.stderr
    assert gone.returncode == 2 and "error: evaluate.data_dir must be a folder, got nowhere" in gone.stderr

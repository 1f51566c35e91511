"""lm-eval's own tasks on rows of this disk: prompts, examples and metrics as they are, nothing asked of the hub."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from datasets import Dataset
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager

from paft.config import EvaluateConfig, EvaluateSplit
from paft.evaluate.leaves import leaves
from paft.evaluate.packages import lacking
from paft.evaluate.rows import LocalSplits
from paft.evaluate.splits import has_own_validation
from paft.private import task_settings

OF_FILES = ("arrow", "csv", "json", "pandas", "parquet", "text")
"""Names of data sets that are files of a task's own (`dataset_kwargs.data_files`)."""
FIELDS = ("doc_to_text", "doc_to_target", "doc_to_choice")
Rows = Callable[[Dataset], Dataset]


class LocalTask(ConfigurableTask):
    """A task of lm-eval whose data set is `LocalSplits` of the folder `data_dir`."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.data_dir = Path(config["data_dir"])
        # lm-eval leaves in the settings what tells it to make this class
        settings = {name: value for name, value in config.items() if name not in ("class", "data_dir")}
        if callable(settings.get("process_docs")):
            settings["process_docs"] = self._placed(settings["process_docs"])
        try:
            super().__init__(config=settings)
        except Exception as error:
            if not hasattr(self, "task_docs"):
                raise
            # with all rows read, lm-eval tries the first item
            raise ValueError(f"{self.place(self.scored, 0)}: {said(error)}") from error

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **_: Any) -> None:
        """Read nothing yet: a split is read when it is asked for."""
        self.dataset = LocalSplits(self.data_dir, self.DATASET_PATH, self.DATASET_NAME)

    def fewshot_docs(self) -> Any:
        """As lm-eval's; None where the split of the examples has no file, which `require_rows` refuses if it is asked
        for."""
        split = self.examples
        return None if split and not self.dataset.has(split) else super().fewshot_docs()

    @property
    def scored(self) -> str:
        """The split of the items."""
        return str(self.config.test_split or self.config.validation_split)

    @property
    def examples(self) -> str | None:
        """The split that few-shot examples are drawn from, by lm-eval's rules; None where they are no rows."""
        if self.fewshot_cfg.split is not None or self.fewshot_cfg.samples is not None:
            return self.fewshot_cfg.split
        return self.config.training_split or self.config.validation_split or self.config.test_split

    def _placed(self, process_docs: Rows) -> Rows:
        """`process_docs`, with the file and the row in the error of one that it cannot take."""

        def processed(rows: Dataset) -> Dataset:
            try:
                return process_docs(rows)
            except Exception:
                for number in range(len(rows)):
                    try:
                        process_docs(rows.select([number]))
                    except Exception as error:
                        split = next(name for name, there in self.dataset.items() if there is rows)
                        raise ValueError(f"{self.place(split, number)}: {said(error)}") from error
                raise

        return processed

    def place(self, split: str, number: int) -> str:
        """Where the row of this number, from 0, of a split stands."""
        return str(self.dataset.places[split][number])


def read_locally(names: Iterable[str], data_dir: Path, manager: TaskManager) -> None:
    """Let `manager` load those of its tasks that read a data set of the hub as `LocalTask`s.

    Raises `ValueError` for a task with code of its own in place of lm-eval's.
    """
    for name in leaves(names, manager):
        entry = manager.task_index.get(name)
        path = (entry.cfg or {}).get("dataset_path") if entry else None
        if (
            entry is None
            or entry.yaml_path is None
            or path in OF_FILES
            or (path is None and "class" not in (entry.cfg or {}))
        ):
            continue
        try:
            settings = task_settings(entry.yaml_path)
        except ModuleNotFoundError as error:
            raise lacking(f"lm-eval's task {name}", error) from None
        if "class" in settings:
            if "custom_dataset" in settings:
                continue  # its items are no rows of the hub
            raise ValueError(
                f"evaluate.data_dir: {name} reads its items by code of its own; evaluate it without data_dir"
            )
        local = {"class": LocalTask, "data_dir": str(data_dir)}
        manager.task_index[name] = replace(entry, yaml_path=None, cfg=settings | local)


def require_rows(name: str, manager: TaskManager, num_fewshot: int | None, config: EvaluateConfig) -> None:
    """Raise `ValueError` naming file, row and field for what a local task cannot be asked with.

    Every item up to `config.limit` is put into words, and so is the first example where there are to be some.
    """
    try:
        task = manager.load([name])["tasks"][name]
    except ValueError:
        raise
    except Exception as error:  # whatever templates and functions of a task raise
        raise ValueError(f"evaluate.data_dir: {name} cannot read its rows: {said(error)}") from error
    if not isinstance(task, LocalTask):
        return
    _require_docs(task, task.eval_docs, task.scored, config.limit)
    if config.split is EvaluateSplit.validation and has_own_validation(task):
        _require_docs(task, task.validation_docs(), str(task.config.validation_split), config.limit)
    shots = task.config.num_fewshot if num_fewshot is None else num_fewshot
    if shots and task.examples:
        task.dataset.files(task.examples)  # refuses what is not there
        _require_docs(task, task.fewshot_docs(), task.examples, 1)


def _require_docs(task: LocalTask, docs: Any, split: str, limit: int | None) -> None:
    same = len(docs) == len(task.dataset[split])  # else some were left out, and places are not known
    for number, doc in enumerate(islice(docs, limit)):
        try:
            _require_words(task, doc)
        except Exception as error:
            place = task.place(split, number) if same else f"item {number + 1} of {task.config.task}"
            raise ValueError(f"{place}: {said(error)}") from error


def _require_words(task: LocalTask, doc: dict[str, Any]) -> None:
    """Put an item into words, raising whatever its templates raise, and `ValueError` for a gold that is no choice."""
    for field in FIELDS:
        written = getattr(task.config, field)
        if isinstance(written, str) and written.strip() and "{" not in written and written not in doc:
            raise ValueError(
                f"there is no column {written!r}, which is {field} of {task.config.task}; there are {', '.join(doc)}"
            )
    task.doc_to_text(doc)
    target = task.doc_to_target(doc)
    if task.config.doc_to_choice is not None:
        choices = task.doc_to_choice(doc)
        given = target if isinstance(target, list) else [target]
        for gold in given:
            if gold not in choices and gold not in range(len(choices)):
                raise ValueError(
                    f"the answer is {gold!r}, and the choices are {choices!r:.200} or their numbers from 0"
                )


def said(error: Exception) -> str:
    """What a template or a function says of a row."""
    if isinstance(error, KeyError) and error.args:
        return f"there is no {error.args[0]!r} in it"
    return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"

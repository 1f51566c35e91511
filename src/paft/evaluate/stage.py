"""The `evaluate` stage: a model folder in, results.json, samples.jsonl and answers.parquet out, scored by lm-eval."""

import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lm_eval import simple_evaluate
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager
from psutil import virtual_memory
from transformers import PreTrainedTokenizerBase

from paft.config import Backend, EvaluateConfig, ModelConfig, TaskConfig, Template
from paft.config.judged import JudgedConfig
from paft.device import computed_in
from paft.evaluate.above_base import compared
from paft.evaluate.answers import answers, write_answers
from paft.evaluate.backends import Scored, load, made_by
from paft.evaluate.columns import Columns, columns_of, manager_for
from paft.evaluate.folder import model_folder
from paft.evaluate.judged import judged_scores
from paft.evaluate.lm import lm_of
from paft.evaluate.parts import items
from paft.evaluate.results import Score, as_json, score, with_stderr
from paft.evaluate.splits import choose
from paft.files.journal import Gone
from paft.files.jsonfile import write_json
from paft.graph.configs import EvaluateStage
from paft.graph.stage import Stage
from paft.graph.tasks import refuse_changed_files
from paft.model.base import base_folder, load_tokenizer
from paft.model.paths import FastPaths
from paft.process.gpu import has_gpu
from paft.proof.record import device_of, proved_paths
from paft.store.context import Context
from paft.store.damage import WORK

log = logging.getLogger("paft")

VALUES = ("column", "item", "value")
"""Of an item in samples.jsonl; its texts are in answers.parquet."""


def run(stage: Stage[EvaluateStage], inputs: dict[str, Path], out: Path, context: Context) -> dict[str, Any]:
    """Score the `model` among the inputs, or the base where there is none; returns every column's score.

    What a judge has read is scored from the `judge` among them, and no model is loaded.
    """
    config = stage.config
    base = base_folder(config.model, offline=context.running.offline)
    if "model" in inputs and (inputs["model"] / "merge.json").is_file():
        # the report of the merge outlives the merged model (merge.keep=false)
        shutil.copy(inputs["model"] / "merge.json", out / "merge.json")
    if isinstance(config.evaluate, JudgedConfig):
        return _judged(inputs["judge"], config.evaluate, config.template, out)
    refuse_changed_files(config.evaluate)
    device = device_of(context.running.trainer)
    folder = model_folder(inputs, base, out / WORK / "model", config.evaluate.dtype)
    with context.spread(stage, inputs | {"model": folder}, out) as devices:
        results = evaluate_model(
            folder,
            base,
            config.model,
            config.template,
            config.evaluate,
            out,
            _rows(inputs),
            inputs.get("base"),
            device=device,
            paths=proved_paths(base, config.model, device) if config.evaluate.backend is Backend.hf else None,
        )
    scores = {column: task["score"] for column, task in results["tasks"].items()}
    return {"average": results["average"], **scores} | ({"devices": devices} if devices > 1 else {})


def take_part(stage: Stage[EvaluateStage], inputs: dict[str, Path], out: Path, context: Context) -> None:
    """Compute into the journal in `out` what the process that holds the stage has not come to; write nothing else.

    Not where a second model would be in its way, on a GPU that others use or in little memory; nor where answers are
    judged, are vLLM's, or the model is yet to be made of an adapter.
    """
    config, trainer = stage.config, context.running.trainer
    evaluate, offline = config.evaluate, context.running.offline
    if isinstance(evaluate, JudgedConfig) or evaluate.backend is not Backend.hf:
        return
    base = base_folder(config.model, offline=offline)
    folder, device = inputs.get("model", base), device_of(trainer)
    if (folder / "adapter").is_dir() or not _has_room(folder, device):
        return
    log.info("%-10s %s  taking part, as another process has it", stage.name, stage.key)
    try:
        paths = proved_paths(base, config.model, device)
        scored = _scored(folder, base, config.model, config.template, evaluate, out / WORK, device, paths)
        with context.spread(stage, inputs, out):
            scores_of(load(scored), evaluate, _rows(inputs))
    except Gone:
        return  # it has all
    except Exception as error:  # whatever it is, the process that holds the stage meets it, too
        log.warning("%s: taking part in it failed: %s: %s", stage, type(error).__name__, error)


def _has_room(folder: Path, device: str) -> bool:
    if device == "cuda":
        return has_gpu()
    return 2 * sum(file.stat().st_size for file in folder.glob("*.safetensors")) < virtual_memory().available


def _rows(inputs: Mapping[str, Path]) -> dict[str, str]:
    return {name: str(folder) for name, folder in inputs.items() if name not in ("model", "base")}


def evaluate_model(
    folder: Path,
    base: Path,
    model: ModelConfig,
    template: Template,
    config: EvaluateConfig,
    out: Path,
    rows: Mapping[str, str] | None = None,
    scored_base: Path | None = None,
    *,
    device: str | None = None,
    paths: FastPaths | None = None,
) -> dict[str, Any]:
    """Score the model in `folder` (tokenizer from `base`) and write results.json and samples.jsonl to `out`.

    `rows` are the data folders that hold the items of tasks with `rows`: sft_data, preference_data; `scored_base` the
    base's evaluate folder for columns with `above_base`, None of the base itself. `paths` are what the base was proved
    to take on `device`. Returns the content of results.json.
    """
    scored = _scored(folder, base, model, template, config, out / WORK, device, paths)
    scores, samples = compared(*scores_of(load(scored), config, rows), config, scored_base)
    results = as_json(scores, config) | {"template": template.value, **made_by(config.backend)}
    dtype = scored.model.dtype.value
    results |= {"lm_eval": version("lm-eval"), "dtype": dtype}
    if config.backend is Backend.hf:
        results["computed_in"] = computed_in(dtype, device or "cpu")
    _write(results, samples, out)
    return results


def _scored(
    folder: Path,
    base: Path,
    model: ModelConfig,
    template: Template,
    config: EvaluateConfig,
    work: Path,
    device: str | None,
    paths: FastPaths | None,
) -> Scored:
    tokenizer = load_tokenizer(base, template, trust_remote_code=model.trust_remote_code)
    loaded_as = replace(model, dtype=config.dtype or model.dtype)
    return Scored(folder, tokenizer, loaded_as, config, work, device, paths)


def _judged(annotations: Path, config: JudgedConfig, template: Template, out: Path) -> dict[str, Any]:
    scores, samples = judged_scores(annotations, config)
    results = as_json(scores, config) | {"template": template.value}
    _write(results, samples, out)
    return {"average": results["average"], **{column: s.score for column, s in scores.items()}}


def _write(results: dict[str, Any], samples: list[dict[str, Any]], out: Path) -> None:
    write_json(out / "results.json", results)
    with (out / "samples.jsonl").open("w") as file:
        file.writelines(json.dumps({name: sample[name] for name in VALUES}) + "\n" for sample in samples)
    write_answers(samples, out)


def score_tasks(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    config: EvaluateConfig,
    rows: Mapping[str, str] | None = None,
    *,
    device: str | None = None,
) -> tuple[dict[str, Score], list[dict[str, Any]]]:
    """`scores_of` a model of transformers, on the named device, or where it is."""
    lm = lm_of(
        model,
        tokenizer,
        config.batch_size,
        device,
        chats=config.apply_chat_template,
        generation_batch_size=config.generation_batch_size,
    )
    return scores_of(lm, config, rows)


def scores_of(
    lm: LM, config: EvaluateConfig, rows: Mapping[str, str] | None = None
) -> tuple[dict[str, Score], list[dict[str, Any]]]:
    """Every column's score, and per item its metric values: what a paired test needs.

    lm-eval takes one number of shots per call, so tasks are grouped by it. Its response cache is never used:
    its key does not name the model.
    """
    manager = manager_for(config, rows)
    known = columns_of(config, manager)
    config = known.config
    scores: dict[str, Score] = {}
    samples: list[dict[str, Any]] = []
    for shots in dict.fromkeys(t.num_fewshot for t in config.tasks.values()):
        columns = {c: t for c, t in config.tasks.items() if t.num_fewshot == shots}
        raw = _evaluated(lm, known, columns, shots, manager)
        for column, task in columns.items():
            scored = items(column, task, raw)
            samples += [item | texts for item, texts in zip(scored, answers(column, task, raw), strict=True)]
            scores[column] = with_stderr(score(column, task, raw), scored)
    return {column: scores[column] for column in config.tasks}, samples


def _evaluated(
    lm: LM,
    known: Columns,
    columns: Mapping[str, TaskConfig],
    shots: int | None,
    manager: TaskManager,
) -> dict[str, Any]:
    """lm-eval's own results of the tasks of some columns."""
    config, names = known.config, dict.fromkeys(t.task for t in columns.values())
    tasks, chosen = choose(config, names, manager, known.files)
    raw = simple_evaluate(
        lm,
        tasks=tasks,
        num_fewshot=shots,
        limit=config.limit if chosen is None else None,
        samples=chosen,
        apply_chat_template=config.apply_chat_template,
        task_manager=manager,
        bootstrap_iters=1000,
        random_seed=config.seed,
        numpy_random_seed=config.seed,
        torch_random_seed=config.seed,
        fewshot_random_seed=config.seed,
    )
    assert raw is not None, "simple_evaluate returns results on rank 0"
    results: dict[str, Any] = raw
    return results

"""`evaluate=open_llm` on local rows against lm-eval's own `HFLM`, item by item: answers and log-likelihoods."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from open_llm_rows import made_up, real
from test_lm_eval_hf import same_answers
from test_local_rows import SHARED, SUBJECTS, V1, local, with_rows
from tiny import MODEL

from paft.config import DType, ModelConfig, Template
from paft.evaluate.lm import SparingLM
from paft.model.base import base_folder, load_tokenizer
from paft.proof.base import load_base


def same_as_hflm(column: str, rows: Path, model: ModelConfig, limit: int, rel: float = 1e-6) -> None:
    ours, theirs = (evaluated(kind, column, rows, model, limit) for kind in (SparingLM, HFLM))
    name = V1[column].task

    assert len(ours["samples"][name]) >= limit
    for a, b in zip(ours["samples"][name], theirs["samples"][name], strict=True):
        assert a["arguments"] == b["arguments"]
        same_answers(a["filtered_resps"], b["filtered_resps"], rel)
    for metric, value in theirs["results"][name].items():
        if isinstance(value, float):  # 1e-5: of TruthfulQA a mean of shares of log-likelihoods
            assert ours["results"][name][metric] == pytest.approx(value, abs=1e-5), metric


def evaluated(kind: type[HFLM], column: str, rows: Path, model: ModelConfig, limit: int) -> dict[str, Any]:
    folder, config = base_folder(model), with_rows(rows)
    base, tokenizer = load_base(folder, model), load_tokenizer(folder, Template.chatml)
    lm = kind(pretrained=base, tokenizer=tokenizer, device="cpu", batch_size=4)
    task = config.tasks[column]
    raw = simple_evaluate(
        lm,
        tasks=[task.task],
        num_fewshot=task.num_fewshot,
        limit=limit,
        bootstrap_iters=2,
        task_manager=local(config),
    )
    assert raw is not None
    return dict(raw)


@pytest.mark.parametrize("column", V1)
def test_made_up_rows_against_hflm(column, tmp_path):
    made_up(tmp_path, SUBJECTS)

    same_as_hflm(column, tmp_path, MODEL, 2)


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="development data is absent")
@pytest.mark.parametrize("column", V1)
def test_real_rows_on_smollm2_against_hflm(column, tmp_path, compose):
    real(SHARED, tmp_path)

    model = replace(compose("model=smollm2_135m").model, dtype=DType.float32)
    # thirty layers in float32 and sums of down to -100 nats: measured 5e-4 nats at most
    same_as_hflm(column, tmp_path, model, 3, rel=1e-5)

"""An evaluation that was cut short goes on where it was, and ends with the bytes of one that was not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import MODEL

from paft.config import EvaluateConfig, TaskConfig, Template
from paft.evaluate.lm import SparingLM
from paft.evaluate.stage import evaluate_model
from paft.files.journal import Journal
from paft.forward.loglikelihood import LogLikelihoods
from paft.model.base import base_folder

CONFIG = EvaluateConfig(
    name="few",
    limit=6,
    batch_size=2,
    tasks={
        "mmlu_dev": TaskConfig(task="paft_mmlu_dev", metric="acc,none", num_fewshot=2),
        "calls": TaskConfig(task="paft_tool_call", metric="exact_match,none", num_fewshot=1),
        "honesty": TaskConfig(task="paft_honesty", metric="acc,none"),
    },
)
FILES = ("results.json", "samples.jsonl")


class Cut(Exception):
    pass


def counted(monkeypatch: pytest.MonkeyPatch, cut_after: float = float("inf")) -> list[str]:
    """Every forward pass from now on, by its kind; the one behind `cut_after` raises `Cut`."""
    done: list[str] = []

    def counting(kind: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            if args[0].journal is None:  # the proof of the base
                return forward(*args, **kwargs)
            if len(done) >= cut_after:
                raise Cut
            done.append(kind)
            return forward(*args, **kwargs)

        return run

    monkeypatch.setattr(LogLikelihoods, "_score", counting("score", LogLikelihoods._score))
    monkeypatch.setattr(SparingLM, "_generated", counting("generate", SparingLM._generated))
    return done


def evaluated(out: Path) -> list[bytes]:
    out.mkdir(exist_ok=True)
    base = base_folder(MODEL)
    evaluate_model(base, base, MODEL, Template.chatml, CONFIG, out)
    return [(out / name).read_bytes() for name in FILES]


def test_an_evaluation_that_was_cut_short_against_one_that_was_not(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        every = counted(patch)
        whole = evaluated(tmp_path / "whole")
    assert {"score", "generate"} == set(every)
    for cut in (1, len(every) // 2, len(every) - 1):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Cut):
            counted(patch, cut)
            evaluated(tmp_path / str(cut))
        with pytest.MonkeyPatch.context() as patch:
            again = counted(patch)
            assert evaluated(tmp_path / str(cut)) == whole
        # a beginning that several texts share is forwarded once more where some of them are left
        assert len(every) - cut <= len(again) <= len(every) - cut + 1


def test_what_is_all_there_is_not_computed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = evaluated(tmp_path)
    again = counted(monkeypatch)
    assert evaluated(tmp_path) == first and again == []


def test_a_journal_without_its_last_line(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "work" / "a.jsonl")
    journal.put("a", [0.1, 1e-30])
    journal.put("b", {"c": True})
    path = tmp_path / "work" / "a.jsonl"
    path.write_bytes(path.read_bytes()[:-4])
    again = Journal(path)
    assert again.get("a") == [0.1, 1e-30] and again.get("b") is None
    again.put("b", 2)
    assert [Journal(path).get(name) for name in "ab"] == [[0.1, 1e-30], 2]

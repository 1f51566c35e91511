"""What a cell lacks is said in one sentence before its first stage, and what it did not reach after its last."""

import json
import shutil
from pathlib import Path

import httpx
import pytest
import torch
from conftest import train
from datasets.exceptions import DatasetNotFoundError
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from transformers import GPT2Config, GPT2LMHeadModel

from paft.command.launchers import refused_jobs
from paft.command.preflight import before_stages, require_devices
from paft.config import Sparsity, TinyModel, TrainerConfig
from paft.files.hub import unavailable
from paft.graph.build import build
from paft.model.base import base_folder
from paft.report.page import warnings
from paft.report.table import rows
from paft.training.target import missed, reached

SMALL = ("experiment=smoke", "trainer.progress_bar=false", "callbacks=none")
NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")


def refused_before_any_stage(tmp_path: Path, *words: str, **env: str) -> str:
    """The sentence of a command that must end with code 2, one error and no stage."""
    done = train(*words, f"logs={tmp_path / 'out'}", cwd=tmp_path, **env)

    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert not list(tmp_path.glob("out/stages/*/*/stage.json"))
    told = [line for line in done.stderr.splitlines() if not line.startswith("Error executing job")]
    assert len(told) == 1 and told[0].startswith("error: ")
    return told[0]


# --- the hub ------------------------------------------------------------------------------------------

ANSWER = httpx.Response(403, request=httpx.Request("GET", "https://huggingface.co"))
WHY = {
    "its owner must grant access, asked for at huggingface.co/org/m": GatedRepoError("x", response=ANSWER),
    "there is no such repository": RepositoryNotFoundError("x", response=ANSWER),
    "the repository has no such commit": RevisionNotFoundError("x", response=ANSWER),
    "it is not in the cache of this machine": LocalEntryNotFoundError("x"),
    "the hub cannot be reached": ConnectionError("Couldn't reach 'x' on the Hub (OfflineModeIsEnabled)"),
    "or it is private and `hf auth login`": DatasetNotFoundError("Dataset 'x' doesn't exist"),
    "asked for at huggingface.co/org/m, and": DatasetNotFoundError("Dataset 'x' is a gated dataset"),
    "ValueError: Unknown split": ValueError("\nUnknown split\nmore\n"),
}


@pytest.mark.parametrize("why", WHY)
def test_what_the_hub_does_not_give_is_one_sentence(why):
    said = str(unavailable("org/m at 0123", "org/m", WHY[why], "use another"))

    assert said.startswith("org/m at 0123 cannot be had from the Hugging Face hub: ")
    assert why in said and said.endswith("; use another") and "\n" not in said


def test_full_disk_is_no_fault_of_the_hub():
    with pytest.raises(OSError, match="No space left"):
        unavailable("m", "org/m", OSError(28, "No space left on device"), "")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("model=mistral_7b",), "mistralai/Mistral-7B-v0.1 at 26bca36bde83 cannot be had"),
        ((*SMALL, "data=gsm8k_hh"), "openai/gsm8k at e53f048856ff cannot be had"),
        ((*SMALL, "evaluate=open_llm"), "the items of one of arc_challenge, gsm8k, hellaswag,"),
    ],
)
def test_nothing_is_trained_for_what_the_hub_does_not_give(tmp_path, words, says):
    cache = str(tmp_path / "cache")
    said = refused_before_any_stage(tmp_path, *words, HF_HOME=cache, HF_HUB_OFFLINE="1")
    assert says in said and "from the Hugging Face hub: it is not in the cache" in said


# --- devices and launchers ----------------------------------------------------------------------------


@NO_GPU
@pytest.mark.slow
def test_gpu_that_is_not_there_is_told_before_any_stage(tmp_path):
    said = refused_before_any_stage(tmp_path, *SMALL, "trainer=gpu")
    assert "sees no GPU here; write trainer=cpu, or run it where there are" in said


@NO_GPU
def test_finished_cell_needs_no_gpu(compose):
    require_devices(TrainerConfig(accelerator="cpu", devices=4))
    before_stages(compose("trainer=gpu"), [])
    with pytest.raises(ValueError, match=r"trainer\.devices=4 needs as many GPUs, .* sees no GPU here"):
        require_devices(TrainerConfig(accelerator="gpu", devices=4))


def test_slurm_that_is_not_there_is_told_before_any_cell(tmp_path):
    words = ("-m", *SMALL, "lambda=0,1", "hydra/launcher=slurm")
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="pip install -e '.[cluster]'")
    done = train(*words, "logs=out", cwd=tmp_path, PATH=str(tmp_path))

    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.startswith("error: hydra/launcher=slurm needs SLURM's sbatch")
    assert not (tmp_path / "out/stages").exists()


def test_launcher_of_one_cell_is_refused(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="pip install -e '.[cluster]'")
    said = refused_before_any_stage(tmp_path, *SMALL, "hydra/launcher=slurm")
    assert "starts the cells of a grid, and this is one cell, which runs here; add -m" in said


def test_jobs_that_slurm_does_not_take_are_told_in_its_words():
    errors = pytest.importorskip("submitit.core.utils", reason="pip install -e '.[cluster]'")
    error = errors.FailedJobError(
        "sbatch: error: invalid partition specified: none\nsbatch: error: Batch job"
    )

    said = refused_jobs(error)
    assert said and said.startswith("SLURM took no job: sbatch: error: invalid partition specified: none; ")
    assert refused_jobs(RuntimeError("x")) is None


# --- layers -------------------------------------------------------------------------------------------


@pytest.fixture
def gpt2(tmp_path: Path) -> Path:
    """A base whose layers are none of PAFT's default names."""
    folder = shutil.copytree(base_folder(TinyModel(name="tiny")), tmp_path / "gpt2")
    GPT2LMHeadModel(
        GPT2Config(vocab_size=259, n_embd=8, n_layer=1, n_head=1, bos_token_id=0, eos_token_id=0)
    ).save_pretrained(folder)
    return folder


def test_layers_that_a_base_has_not_are_told_before_its_rows_are_read(compose, gpt2):
    config = compose(
        *("experiment=smoke", "model=local", f"model.path={gpt2}", "paradigm=preference"),
        "preference.lora.target_modules=[q_proj,c_attn]",
    )
    stages = list(build(config).walk())

    with pytest.raises(
        ValueError,
        match=r"preference\.lora\.target_modules \['q_proj'\] match .* of gpt2; it has c_attn, c_fc, ",
    ):
        before_stages(config, stages)


@pytest.mark.slow
def test_misspelt_layer_is_told_before_the_data(tmp_path):
    said = refused_before_any_stage(tmp_path, *SMALL, "sft.lora.target_modules=[q_prj]")
    assert "sft.lora.target_modules ['q_prj'] match no linear layer of llama; it has down_proj," in said


# --- a target that was not reached --------------------------------------------------------------------


def test_a_target_is_measured_as_it_was_set():
    means = {"share_below_1e-5": 0.5, "share_zero": 0.25, "share_below_tenth_rms": 0.75}
    sparsity = {"mean_over_layers": means}

    assert reached({"target_sparsity": None}, sparsity) is None
    assert reached({"target_sparsity": 0.9}, sparsity) == 0.5
    assert reached({"target_sparsity": 0.9, "target_measure": Sparsity.zero}, sparsity) == 0.25
    assert reached({"target_sparsity": 0.9, "target_measure": "below_tenth_rms"}, sparsity) == 0.75


@pytest.mark.parametrize(("wanted", "share"), [(0.9, 0.86), (0.9, 0.9), (0.5, 0.54)])
def test_a_target_that_was_reached_needs_no_word(wanted, share):
    assert missed(wanted, share) is None


def test_a_missed_target_says_what_to_change():
    low, high = missed(0.9, 0.018), missed(0.5, 0.62)

    assert low and "target_sparsity=0.9 was not reached: 1.8% of the delta" in low and "larger lambda" in low
    assert high and "target_sparsity=0.5 was not reached: 62.0% of the delta" in high
    assert "smaller lambda" in high


@pytest.mark.slow
def test_a_missed_target_is_told_when_the_training_ends_and_in_the_report(tmp_path):
    words = ("paradigm=sft", "sft.l1.target_sparsity=0.9", f"logs={tmp_path}")
    done = train(*SMALL, *words, cwd=tmp_path)

    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("stages/sft/*/sparsity.json")
    share = json.loads(path.read_text())["mean_over_layers"]["share_below_1e-5"]
    said = f"sft.l1.target_sparsity=0.9 was not reached: {share:.1%} of the delta count as zero"
    assert said in done.stdout
    assert any(line.startswith(said) for line in warnings(rows(tmp_path / "stages")))
    assert said in (tmp_path / "report/index.html").read_text()


@pytest.mark.parametrize(
    "words",
    [
        ("sft.adapter={}",),
        ("preference.checkpoint={}",),
        ("model=local", "model.path={}"),
        ("data=jsonl", "data.sft.path={}", "data.preference.path=b.jsonl"),
        ("evaluate.data_dir={}",),
        ("evaluate.include_path={}",),
        ("evaluate.tasks.tool_call.task={}.yaml",),
        ("evaluate=alpaca_eval", "judge=annotations", "judge.file={}"),
        ("evaluate=alpaca_eval", "judge=local", "judge.path={}"),
    ],
)
def test_a_name_that_no_disk_can_hold_is_a_path_that_is_not_there(words, compose):
    """Asked about one, pathlib raises."""
    with pytest.raises(ValueError, match="nnnnnnn"):
        build(compose("model=tiny", *(word.format("n" * 400) for word in words)))

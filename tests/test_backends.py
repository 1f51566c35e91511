"""`evaluate.backend`: what vLLM is told, what it is not asked, and that its scores are not taken for those of hf.

vLLM itself is not here: its class in lm-eval is read, not run.
"""

import ast
import inspect
from dataclasses import replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lm_eval
import pytest
import transformers
from conftest import train
from synthetic_store import PAFT, fill
from tiny import MODEL
from transformers import AutoTokenizer, GenerationConfig

from paft.config import Backend, EvaluateConfig, HardwareConfig, Paradigm, RunConfig, TaskConfig, Template
from paft.config.running import TrainerConfig
from paft.evaluate.backends import ENGINES, Scored, load, made_by
from paft.evaluate.columns import columns_of, manager_for, task_manager
from paft.evaluate.lm import end_ids
from paft.evaluate.vllm import arguments, written
from paft.files.jsonfile import read_object, write_json
from paft.graph.build import build
from paft.model.base import base_folder, load_tokenizer
from paft.report.build import Report, write_report
from paft.report.changes import changed_items, page
from paft.report.compare import compare
from paft.report.terminal import print_changes, print_comparison, print_table

absent = pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is here: nothing is missing")
GPU = {
    "trainer": TrainerConfig(accelerator="gpu"),
    "hardware": HardwareConfig(name="h100_80gb", accelerator="gpu"),
}
ASKED = """task: asked
dataset_path: json
dataset_kwargs: {data_files: {test: rows.jsonl}}
output_type: generate_until
test_split: test
doc_to_text: "{{question}}"
doc_to_target: answer
metric_list: [{metric: exact_match}]
generation_kwargs: {until: ["."], %s}
"""


def by_vllm(**settings: Any) -> EvaluateConfig:
    tasks = {"calls": TaskConfig("paft_tool_call", "exact_match,none")}
    return EvaluateConfig(name="few", **{"tasks": tasks, "backend": Backend.vllm} | settings)


def scored(tmp_path: Path, template: Template = Template.chatml, **settings: Any) -> Scored:
    folder = base_folder(MODEL)
    return Scored(folder, load_tokenizer(folder, template), MODEL, by_vllm(**settings), tmp_path)


# --- what vLLM is told --------------------------------------------------------------------------------


def lm_evals_init() -> inspect.Signature:
    """That of `VLLM.__init__`, from lm-eval's source: the module loads only where vLLM is."""
    source = (Path(lm_eval.__file__).parent / "models/vllm_causallms.py").read_text()
    (kind,) = (n for n in ast.parse(source).body if isinstance(n, ast.ClassDef) and n.name == "VLLM")
    (init,) = (n for n in kind.body if isinstance(n, ast.FunctionDef) and n.name == "__init__")
    init.body, init.returns = [ast.Pass()], None
    for argument in (*init.args.args, init.args.kwarg):
        argument.annotation = None
    found: dict[str, Any] = {}
    exec(compile(ast.unparse(init), "vllm_causallms.py", "exec"), found)
    return inspect.signature(found["__init__"])


@pytest.mark.parametrize("chats", [False, True])
def test_arguments_against_the_signature_of_lm_evals_class(tmp_path, chats):
    told = arguments(scored(tmp_path, apply_chat_template=chats), tmp_path / "vllm")
    bound = lm_evals_init().bind(None, **told)

    assert set(bound.arguments["kwargs"]) == {"generation_config"}, "the rest goes on to vLLM's own LLM"
    assert bound.arguments["dtype"] == "float32" and bound.arguments["batch_size"] == "auto"
    assert told["add_bos_token"] is (False if chats else None)


def test_the_folder_holds_pafts_tokenizer_and_where_a_text_ends(tmp_path):
    asked = scored(tmp_path)
    folder = written(asked)
    read = AutoTokenizer.from_pretrained(folder)

    assert read.chat_template == asked.tokenizer.chat_template
    text = "<|im_start|>user\nWhat is 2 + 2?<|im_end|>\n"
    assert read(text).input_ids == asked.tokenizer(text).input_ids
    ends = GenerationConfig.from_pretrained(folder).eos_token_id
    model = transformers.AutoModelForCausalLM.from_pretrained(asked.folder)
    assert ends == end_ids(model.generation_config, asked.tokenizer)
    assert asked.tokenizer.convert_tokens_to_ids("<|im_end|>") in ends


@absent
def test_everything_up_to_lm_evals_class_runs_and_only_vllm_is_missing(tmp_path):
    with pytest.raises(ModuleNotFoundError) as error:
        load(scored(tmp_path))

    assert error.value.name == "vllm" and (tmp_path / "vllm/tokenizer_config.json").is_file()


# --- what is refused ----------------------------------------------------------------------------------


@absent
def test_a_missing_package_is_refused_with_the_line_that_installs_it():
    with pytest.raises(ValueError, match=r"backend=vllm needs the package vllm.*pip install 'paft\[vllm\]'"):
        manager_for(by_vllm())


@absent
def test_the_command_line_refuses_it_before_anything_is_trained(tmp_path):
    words = ("experiment=smoke", "evaluate.backend=vllm", "logs=out")

    done = train(*words, cwd=tmp_path)
    on_gpu = train(*words, "trainer=gpu", "-m", "lambda=0,1e-4", cwd=tmp_path)

    assert done.returncode == 2 and "computes on a GPU, got trainer.accelerator=cpu" in done.stderr
    assert on_gpu.returncode == 2 and "pip install 'paft[vllm]'" in on_gpu.stderr
    assert not list(tmp_path.glob("out/stages/*/*/stage.json"))


def test_judged_answers_are_transformers_own(compose):
    with pytest.raises(
        ValueError, match=r"evaluate\.backend must be hf where answers are judged, got 'vllm'"
    ):
        compose("evaluate=alpaca_eval", "judge=openai", "evaluate.backend=vllm", "trainer=gpu")


@pytest.mark.parametrize("setting", ["num_beams: 3", "penalty_alpha: 0.6", "max_length: 9"])
def test_a_generation_setting_that_vllm_lacks_is_refused_by_task_and_name(tmp_path, setting):
    file = tmp_path / "asked.yaml"
    file.write_text(ASKED % setting)
    tasks = {"mine": TaskConfig("asked", "exact_match,none")}
    manager = task_manager({"asked"}, include_path=str(tmp_path))

    with pytest.raises(
        ValueError, match=rf"tasks\.mine\.task=asked: asked has generation_kwargs\.{setting}, "
    ):
        columns_of(by_vllm(tasks=tasks), manager)
    columns_of(by_vllm(tasks=tasks, backend=Backend.hf), manager)
    file.write_text(ASKED % "do_sample: true, temperature: 0.7, top_p: 0.9, max_gen_toks: 8")
    columns_of(by_vllm(tasks=tasks), task_manager({"asked"}, include_path=str(tmp_path)))


def test_a_task_that_shows_pictures_is_refused(tmp_path):
    (tmp_path / "asked.yaml").write_text(ASKED % "max_gen_toks: 8" + "doc_to_image: [picture]\n")
    manager = task_manager({"asked"}, include_path=str(tmp_path))

    with pytest.raises(ValueError, match=r"asked has doc_to_image: .* evaluate\.backend=vllm cannot do"):
        columns_of(by_vllm(tasks={"mine": TaskConfig("asked", "exact_match,none")}), manager)


# --- keys ---------------------------------------------------------------------------------------------


def cell(backend: Backend) -> RunConfig:
    base = replace(PAFT, paradigm=Paradigm.base)
    return replace(base, evaluate=replace(base.evaluate, backend=backend), **GPU)


def test_the_backend_is_in_the_key_where_it_is_not_hf():
    asked, plain = build(cell(Backend.vllm)), build(cell(Backend.hf))

    assert asked.key != plain.key and "backend" not in plain.identity["config"]["evaluate"]
    assert asked.identity["config"]["evaluate"]["backend"] == "vllm"
    assert plain.key == build(replace(PAFT, paradigm=Paradigm.base)).key


# --- what stands with a score -------------------------------------------------------------------------


def test_every_backend_says_its_package_and_version():
    assert made_by(Backend.hf) == {"backend": "hf", "backend_version": version("transformers")}
    assert set(ENGINES) == set(Backend)


@pytest.fixture
def both(tmp_path: Path) -> Path:
    """A store with the base scored by either backend."""
    store = tmp_path / "stages"
    told = {Backend.hf: "5.23.1", Backend.vllm: "0.11.2"}
    for target, (backend, number) in zip(fill(store, [*map(cell, told)]), told.items(), strict=True):
        file = store / "evaluate" / target.key / "results.json"
        write_json(file, read_object(file) | {"backend": backend.value, "backend_version": number})
    return store


MIXED = "Scores of several backends stand together here: hf 5.23.1, vllm 0.11.2."


def test_a_table_of_two_backends_says_so_in_the_terminal_and_on_the_page(both, tmp_path, capsys):
    report = Report(both)
    write_report(report, tmp_path / "report")
    print_table(report.cells)

    assert MIXED in capsys.readouterr().out
    html = (tmp_path / "report/index.html").read_text()
    assert html.count(MIXED) == 1 and "scores by hf 5.23.1, vllm 0.11.2" in html
    assert ",vllm 0.11.2," in (tmp_path / "report/results.csv").read_text()
    again = Report(tmp_path / "report")
    assert [row["backend"] for row in again.table] == [row["backend"] for row in report.table]


def test_one_backend_of_two_versions_is_no_mix(both, capsys):
    for file in both.glob("evaluate/*/results.json"):
        write_json(file, read_object(file) | {"backend": "hf"})
    print_table(Report(both).cells)

    assert "several backends" not in capsys.readouterr().out


def test_a_comparison_of_two_backends_says_so_even_where_they_are_asked_for(both, capsys):
    sides = "evaluate.backend=hf", "evaluate.backend=vllm"
    print_comparison(compare(both, *sides), *sides)
    assert MIXED in capsys.readouterr().out

    changed = changed_items(both, *sides)
    print_changes(changed, *sides, show=0, page=Path("items.html"))
    assert MIXED in capsys.readouterr().out and MIXED in page(changed, *sides)

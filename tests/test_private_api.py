"""What PAFT takes from inside of libraries is in one file, and there in the versions that are pinned."""

import ast
import inspect
from pathlib import Path

import lightning as L
import lm_eval.tasks
import pytest
import torch
from chat_tokenizers import TEMPLATES, tokenizer_of
from lm_eval.models.huggingface import HFLM
from peft import LoraConfig
from tiny import MODEL
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from wandb_workspaces.reports import v2 as wr

from paft import private
from paft.evaluate.lm import SparingLM
from paft.model.base import base_folder

ROOT = Path(__file__).parents[1]
DOCUMENTED = {"_replace", "_fields", "_asdict", "_target_"}
"""Of named tuples, and a key of Hydra's configs."""
EXTENDED = {"_model_generate", "_loglikelihood_tokens"}
"""Methods of lm-eval's model that are there to be overridden."""


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in DOCUMENTED | EXTENDED


def private_names(path: Path) -> list[str]:
    """Attributes and imports of a file that are private to others."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            owner = ast.unparse(node.value)
            if owner not in ("self", "cls", "super()"):
                names.append(f"{owner}.{node.attr}")
        if isinstance(node, ast.ImportFrom) and not str(node.module).startswith(("paft", "__future__")):
            parts = [*str(node.module).split("."), *(alias.name for alias in node.names)]
            names += filter(is_private, parts)
    return names


@pytest.mark.parametrize("folder", ["src", "benchmarks"])
def test_no_other_file_has_a_private_name_of_a_library(folder):
    files = [p for p in (ROOT / folder).rglob("*.py") if p.name != "private.py"]
    assert {p.name: names for p in files if (names := private_names(p))} == {}


def test_the_one_file_has_those():
    assert private_names(ROOT / "src/paft/private.py")


def test_methods_of_ours_that_override_private_ones_are_there():
    overridden = {n for n, value in vars(SparingLM).items() if inspect.isfunction(value) and hasattr(HFLM, n)}
    assert not [name for name in overridden if is_private(name)]
    assert all(inspect.isfunction(getattr(HFLM, name)) for name in EXTENDED)


def test_hydras_sweeper_takes_overrides_apart():
    from hydra.core.override_parser.overrides_parser import OverridesParser

    overrides = OverridesParser.create().parse_overrides(["a=1,2", "b=3"])
    (batch,) = private.BasicSweeper.split_arguments(overrides, max_batch_size=None)
    assert batch == [["a=1", "b=3"], ["a=2", "b=3"]]


def test_transformers_names_attention_and_undivided_layers():
    base = AutoModelForCausalLM.from_pretrained(base_folder(MODEL), attn_implementation="eager")
    assert private.attention_of(base) == "eager"
    assert private.undivided(base) == ["LlamaDecoderLayer"]
    assert not private.is_stateful(base)


def test_torchs_softmax_backward_against_autograd():
    x = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    output, grad = x.softmax(-1), torch.randn(2, 3, 5, dtype=torch.float64)
    output.backward(grad)
    torch.testing.assert_close(private.softmax_backward(grad, output.detach(), -1, x.dtype), x.grad)


def test_peft_puts_a_layer_of_ours():
    from peft import get_peft_model
    from peft.tuners.lora import Linear

    class Ours(Linear):
        pass

    config = LoraConfig(target_modules=["q_proj"])
    private.register_lora(config, {torch.nn.Linear: Ours})
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base_folder(MODEL)), config)
    assert sum(isinstance(m, Ours) for m in model.modules()) == MODEL.num_layers


def test_lightnings_module_says_where_rows_go():
    module = L.LightningModule()
    private.move_only_rows(module, torch.device("meta"))
    assert module.device == torch.device("meta")


def test_a_report_of_wandb_has_a_specification():
    assert (
        private.specification(wr.Report(project="paft", entity="someone", title="a title")).display_name
        == "a title"
    )


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("generation", [True, False])
def test_a_rendering_against_apply_chat_template(template, generation):
    tokenizer = tokenizer_of("byte level", template)
    messages = [{"role": "user", "content": "Q <s>"}] + [{"role": "assistant", "content": " a\n"}] * (
        not generation
    )
    rendered = private.rendered(tokenizer, messages, generation=generation)
    assert rendered == tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=generation
    )


def test_a_tokenizer_that_renders_in_its_own_way_is_asked():
    class Own(PreTrainedTokenizerFast):
        def apply_chat_template(self, *args, **options):
            return "its own way"

    own = Own(tokenizer_object=tokenizer_of("byte level", "chatml").backend_tokenizer)
    assert private.rendered(own, [], generation=True) == "its own way"


def test_lm_evals_task_file_is_read_with_what_it_includes_and_its_functions():
    tasks = Path(lm_eval.tasks.__file__).parent

    challenge = private.task_settings(tasks / "arc/arc_challenge.yaml")
    assert (challenge["task"], challenge["dataset_path"]) == ("arc_challenge", "allenai/ai2_arc")
    assert callable(private.task_settings(tasks / "hellaswag/hellaswag.yaml")["process_docs"])


def test_a_manager_of_lm_eval_that_learns_another_index_against_one_that_reads_both_folders(tmp_path):
    written = {
        "theirs/one.yaml": "task: one\ndataset_path: x\ntag: numbers\n",
        "theirs/two.yaml": "task: two\ndataset_path: x\n",
        "theirs/both.yaml": "group: both\ntask: [one, two]\n",
        "mine/two.yaml": "task: two\ndataset_path: mine\n",
    }
    for name, text in written.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    theirs, mine, whole = (
        lm_eval.tasks.TaskManager(include_path=folders, include_defaults=False)
        for folders in ([tmp_path / "theirs"], [tmp_path / "mine"], [tmp_path / "theirs", tmp_path / "mine"])
    )
    private.know_also(mine, theirs.task_index)

    assert mine.task_index == whole.task_index and len(theirs.task_index) == 4
    for names in ("all_tasks", "all_subtasks", "all_groups", "all_tags"):
        assert getattr(mine, names) == getattr(whole, names)

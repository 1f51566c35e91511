"""Everything in conf/ composes into the typed config, and every wrong value is refused in words."""

import ast
import re
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import fields, is_dataclass
from itertools import product
from pathlib import Path

import pytest
from conftest import ROOT, train
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from paft import config as schema
from paft.command.mistakes import explain
from paft.graph.stage import canonical
from paft.merge.methods import METHODS, DareTies, Linear, Slerp, Ties
from paft.objectives import DPO, OBJECTIVES, ORPO, DPOLoss

CONF = ROOT / "conf"
GROUPS = sorted(p.name for p in CONF.iterdir() if p.is_dir())
COMMIT = "0123456789abcdef0123456789abcdef01234567"
REQUIRED = {
    "data=jsonl": ("data.sft.path=a.jsonl", "data.preference.path=b.jsonl"),
    "model=local": ("model.path=folder",),
    "model=hub": ("model.name=some", "model.repo=org/some", f"model.revision={COMMIT}"),
    "judge=local": ("judge.path=folder",),
    "judge=annotations": ("judge.file=a.json",),
    "evaluate=mt_bench": ("evaluate.questions.folder=folder",),
}
"""What a person must add to an option for it to say something."""
NEEDS = {
    "evaluate=gsm8k_hh": ("data.sft.held_out=8", "data.preference.held_out=8"),
    "evaluate=held_out": ("data.sft.held_out=8", "data.preference.held_out=8"),
    "evaluate=study2": ("data.sft.held_out=8", "data.preference.held_out=8"),
    "evaluate=study2_skills": ("data.sft.held_out=8", "data.preference.held_out=8"),
    "evaluate=gsm8k_exact": ("data.sft.held_out=8",),
    "evaluate=alpaca_eval": ("judge=openai",),
    "evaluate=mt_bench": ("judge=openai",),
    "judge=openai": ("evaluate=alpaca_eval",),
    "judge=local": ("evaluate=alpaca_eval",),
    "judge=annotations": ("evaluate=alpaca_eval",),
    "trainer=a100x8": ("strategy=ddp",),
} | {f"hardware={path.stem}": ("trainer=gpu",) for path in CONF.glob("hardware/*.yaml") if path.stem != "cpu"}
"""What some options are refused without."""


def options(group: str) -> list[str]:
    return sorted(p.stem for p in (CONF / group).glob("*.yaml"))


def refused(compose, *overrides: str) -> str:
    """What the person reads."""
    with pytest.raises((ValueError, HydraException, OmegaConfBaseException)) as caught:
        compose(*overrides)
    return explain(caught.value)


# --- what is shipped composes -------------------------------------------------------------------------


@pytest.mark.parametrize(("experiment", "merge"), product(options("experiment"), options("merge")))
def test_every_experiment_composes_with_every_merge(compose, experiment, merge):
    config = compose(f"experiment={experiment}", f"merge={merge}")

    expected = {"dare": "dareties"}.get(merge, merge.replace("_", ""))
    assert type(config.merge).__name__.lower() == expected


@pytest.mark.parametrize("choice", [f"{g}={o}" for g in GROUPS if g != "experiment" for o in options(g)])
def test_every_option_of_every_group_composes(compose, choice):
    config = compose(choice, *REQUIRED.get(choice, ()), *NEEDS.get(choice, ()))

    group = choice.partition("=")[0]
    assert is_dataclass(getattr(config, group)) or group == "callbacks"


@pytest.mark.parametrize("choice", REQUIRED)
def test_option_with_required_values_names_them(compose, choice):
    message = refused(compose, choice)

    keys = [value.partition("=")[0] for value in REQUIRED[choice]]
    assert message.startswith(f"{', '.join(keys)} must be given; add {keys[0]}=... ")


@pytest.mark.parametrize("path", sorted(CONF.rglob("*.yaml")), ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_yaml_files_are_short(path):
    if path.name != "train.yaml":
        assert len(path.read_text().splitlines()) <= 30


def test_defaults_in_yaml_are_the_contract(compose):
    config = compose()

    assert (config.paradigm, config.seed, config.store, config.plan) == ("parallel", 42, "logs/stages", False)
    assert config.sft.l1.weight == 1e-4
    assert isinstance(config.merge, Ties)
    assert config.model.name == "SmolLM2-135M"


def test_lambda_reaches_the_sft_penalty(compose):
    assert compose("lambda=0").sft.l1.weight == 0
    assert compose("lambda=3e-4").sft.l1.weight == 3e-4


def test_seed_reaches_the_drop_masks(compose):
    assert compose("seed=7", "merge=dare").merge.seed == 7


def test_sequential_orpo_is_a_row_of_the_tables(compose):
    config = compose("paradigm=sequential", "preference=orpo")

    assert config.paradigm is schema.Paradigm.sequential
    assert isinstance(config.preference, ORPO)


@pytest.mark.parametrize(
    "kind",
    sorted({*schema.SCHEMAS.values(), *METHODS.values(), *OBJECTIVES.values()}, key=lambda t: t.__name__),
)
def test_every_field_has_a_default_or_is_asked_for(kind):
    without = [f.name for f in fields(kind) if f.default is NO_DEFAULT and f.default_factory is NO_DEFAULT]

    assert without == []


# --- what is refused ----------------------------------------------------------------------------------

WRONG_TYPES = {
    "lambda=oops": ("lambda", "'oops'", "a number, at least 0"),
    "lambda=true": ("lambda", "True", "a number, at least 0"),
    "lambda=null": ("lambda", "None", "a number, at least 0"),
    "lambda=-1": ("lambda", "-1", "a finite number, at least 0"),
    "lambda=nan": ("lambda", "nan", "a finite number, at least 0"),
    "lambda=inf": ("lambda", "inf", "a finite number, at least 0"),
    "seed=x": ("seed", "'x'", "Integer"),
    "seed=-3": ("seed", "-3", "at least 0"),
    "seed=1.5": ("seed", "1.5", "Integer"),
    "paradigm=foo": ("paradigm", "'foo'", "parallel, sequential, sft, preference, base"),
    "plan=maybe": ("plan", "maybe", "bool"),
    "merge=foo": ("merge", "foo", "ties", "slerp", "dare_linear"),
    "model=gpt": ("model", "gpt", "smollm2_135m"),
    "merge.election=loud": ("merge.election", "loud", "mass, count"),
    "preference.loss=kto": ("preference.loss", "kto", "sigmoid, ipo, hinge"),
}


@pytest.mark.parametrize("override", WRONG_TYPES)
def test_wrong_value_names_key_received_and_allowed(compose, override):
    message = refused(compose, override)

    for part in WRONG_TYPES[override]:
        assert part in message


UNKNOWN = {
    ("merge.foo=1",): ("foo", "density", "election", "scope"),
    ("foo=1",): ("foo", "lambda", "paradigm", "store"),
    ("sft.foo=1",): ("foo", "global_batch_size", "max_steps"),
    ("sft.lora.foo=1",): ("foo", "rank", "alpha", "target_modules"),
    ("evaluate.tasks.honesty.foo=1",): ("foo", "metric", "num_fewshot"),
    ("merge=linear", "merge.density=.2"): ("density", "weights", "normalize"),
    ("preference=orpo", "preference.loss=ipo"): ("loss", "nll_scope"),
    ("preference=kto", "preference.label_smoothing=0"): (
        "label_smoothing",
        "desirable_weight",
        "undesirable_weight",
    ),
    ("+merge.foo=1",): ("foo", "density"),
    ("+foo=1",): ("foo", "paradigm"),
}


@pytest.mark.parametrize("overrides", UNKNOWN, ids=" ".join)
def test_unknown_key_lists_the_keys_there_are(compose, overrides):
    message = refused(compose, *overrides)

    for part in UNKNOWN[overrides]:
        assert part in message


OUT_OF_RANGE = [
    ("model=hub", "model.name=m", "model.repo=org/m", "model.revision=main"),
    ("data=zephyr", "data.sft.revision=v1.0"),
    ("data.sft.max_rows=0",),
    ("data.sft.max_length=1",),
    ("data.sft.max_prompt_length=256",),
    ("data.preference.max_prompt_length=0",),
    ("data.sft.num_rows=0",),
    ("sft.lora.rank=0",),
    ("sft.lora.alpha=0",),
    ("sft.lora.dropout=1",),
    ("sft.lora.target_modules=[]",),
    ("sft.lr=0",),
    ("preference.lr=-1",),
    ("sft.warmup_ratio=1",),
    ("sft.weight_decay=-0.1",),
    ("sft.beta1=1",),
    ("sft.beta2=-0.1",),
    ("sft.max_grad_norm=0",),
    ("sft.global_batch_size=0",),
    ("sft.epochs=0",),
    ("sft.max_steps=0",),
    ("preference.beta=0",),
    ("preference.label_smoothing=0.5",),
    ("preference=orpo", "preference.beta=-1"),
    ("preference=kto", "preference.beta=0"),
    ("preference=kto", "preference.desirable_weight=0"),
    ("preference=kto", "preference.undesirable_weight=-1"),
    ("merge.weights=[1]",),
    ("merge.density=7",),
    ("merge.density=0",),
    ("merge.sft_density=1.5",),
    ("merge.preference_density=-1",),
    ("merge=linear", "merge.weights=[1,-1]"),
    ("merge=slerp", "merge.t=1.5"),
    ("evaluate.batch_size=0",),
    ("evaluate.limit=0",),
    ("trainer.accelerator=tpu",),
    ("trainer.micro_batch_size=0",),
    ("trainer.checkpoint_every=0",),
    ("trainer.log_every=0",),
    ("hardware.peak_tflops=0",),
    ("hardware.efficiency=1.5",),
    ("model.shape.hidden_size=0",),
    ("seed=-1",),
]


@pytest.mark.parametrize("overrides", OUT_OF_RANGE, ids=" ".join)
def test_out_of_range_names_key_value_and_what_is_allowed(compose, overrides):
    message = refused(compose, *overrides)

    key, _, value = overrides[-1].partition("=")
    assert key.rpartition(".")[2] in message
    assert " must be " in message
    received = re.search(r"got ([^;]+)", message)
    assert received and same_value(received[1], value)


def same_value(shown: str, typed: str) -> bool:
    try:
        return ast.literal_eval(shown) == ast.literal_eval(typed)
    except (ValueError, SyntaxError):
        return shown.strip("'") == typed


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("higher_is_better=false",), r"evaluate\.tasks\.honesty\.in_average must be false where lower"),
        (
            ("metric='bits_per_byte,none'",),
            r"evaluate\.tasks\.honesty: lower bits_per_byte is better; set higher",
        ),
        (("metric='word_perplexity,none'", "in_average=false"), "lower word_perplexity is better"),
    ],
)
def test_no_average_takes_lower_as_better(compose, words, says):
    message = refused(compose, *(f"evaluate.tasks.honesty.{word}" for word in words))

    assert re.search(says, message)
    right = compose(*(f"evaluate.tasks.honesty.{name}=false" for name in ("higher_is_better", "in_average")))
    assert not right.evaluate.tasks["honesty"].in_average


# --- made in Python -----------------------------------------------------------------------------------


def test_text_stands_for_the_option_it_names():
    made = Linear(norm="branches")
    changed = Slerp()
    changed.space = "full"

    assert made.norm is schema.Norm.branches and changed.space is schema.Space.full
    assert DareTies(rescale="none", elect_on="unweighted").rescale is schema.Rescale.none
    assert Ties(scope="global").scope is schema.Scope.all
    assert DPO(lr=1e-4, loss="ipo").loss is DPOLoss.ipo
    assert schema.TaskConfig("t", "m", rows="sft").rows is schema.Rows.sft
    assert canonical(Linear(norm="branches")) == canonical(Linear(norm=schema.Norm.branches))
    assert canonical(Linear(norm="own")) == canonical(Linear())


@pytest.mark.parametrize(
    ("kind", "values", "says"),
    [
        (
            Linear,
            {"norm": "both"},
            r"Linear\.norm must be one of \['own', 'branches', 'merged', 'preference'\], got 'both'",
        ),
        (Slerp, {"space": None}, r"Slerp\.space must be one of \['delta', 'full', 'core', 'svd'\], got None"),
        (Slerp, {"dtype": "float16"}, r"Slerp\.dtype must be one of \['float32', 'bfloat16'\]"),
        (Ties, {"density": "0.3"}, r"Ties\.density must be of type float, got '0\.3'"),
        (
            Ties,
            {"weights": (1.0, 0.5)},
            r"Ties\.weights must be of type list, got \(1\.0, 0\.5\)",
        ),
        (Linear, {"normalize": "no"}, r"Linear\.normalize must be of type bool, got 'no'"),
        (schema.TinyModel, {"dtype": "half"}, r"TinyModel\.dtype must be one of"),
        (schema.SFTConfig, {"schedule": "linar"}, r"SFTConfig\.schedule must be one of"),
    ],
)
def test_what_no_field_holds_is_refused_in_python_too(kind, values, says):
    with pytest.raises(ValueError, match=says):
        kind(**values)


# --- ranges of a branch ------------------------------------------------------------------------------


@pytest.mark.parametrize("branch", ["sft", "preference"])
def test_range_error_names_the_branch_it_is_in(compose, branch):
    assert f"{branch}.lr must be positive" in refused(compose, f"{branch}.lr=0")


def test_label_smoothing_needs_the_sigmoid_loss(compose):
    message = refused(compose, "preference.loss=ipo", "preference.label_smoothing=0.1")

    assert "preference.loss=sigmoid" in message and "'ipo'" in message


def test_single_strategy_refuses_two_devices(compose):
    message = refused(compose, "trainer.devices=2")

    assert "2 devices" in message and "strategy=single" in message and "ddp" in message


def test_global_batch_must_divide_among_devices(compose):
    message = refused(compose, "trainer.devices=3", "strategy=ddp", "sft.global_batch_size=16")

    assert "sft.global_batch_size" in message and "16" in message and "multiple of the 3 devices" in message


# --- on the command line ------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [("lambda=oops",), ("-m", "lambda=1e-4,oops")], ids=" ".join)
def test_mistake_on_the_command_line_is_one_message_before_any_work(tmp_path, words):
    done = train(*words, "experiment=smoke", "logs=out", cwd=tmp_path)

    assert done.returncode == 2
    # Hydra itself says which job failed, when it came to a job
    assert done.stderr.splitlines()[-1].startswith("error: lambda must be a number, at least 0, got 'oops'")
    assert "Traceback" not in done.stderr + done.stdout
    assert not (tmp_path / "out" / "stages").exists()
    assert "Launching" not in done.stdout


@pytest.mark.parametrize("words", [(), ("-m",)], ids=["one", "grid"])
def test_unknown_choice_is_one_message_with_every_choice_there_is(tmp_path, words):
    done = train(*words, "merge=nothing", "logs=out", cwd=tmp_path)

    assert done.returncode == 2 and "Traceback" not in done.stderr + done.stdout
    said = done.stderr.splitlines()
    assert said[0] == "error: In 'train': Could not find 'merge/nothing'"
    assert {"ties", "breadcrumbs_ties", "linear", "dare_linear"} <= {line.strip() for line in said}


def test_hardware_comes_with_the_trainer_unless_named(compose):
    assert compose().hardware.name == "cpu"
    assert compose("trainer=gpu").hardware.name == "a100_80gb"
    assert compose("trainer=gpu", "hardware=h100_80gb").hardware.peak_tflops == 989
    assert compose("experiment=zephyr_mistral_7b", "hardware=a100_40gb").hardware.memory_gb == 40


def test_hardware_and_trainer_must_agree(compose):
    message = refused(compose, "trainer.accelerator=gpu")

    assert "trainer.accelerator=gpu but hardware=cpu is a cpu" in message and "trainer=gpu" in message


def test_a_reference_to_a_setting_of_another_type_is_named(compose):
    message = refused(compose, "evaluate.tasks.tool_call.rows=${seed}")

    assert "evaluate.tasks.tool_call.rows" in message and "expected one of [sft, preference]" in message


def test_multirun_flag_may_stand_anywhere(tmp_path):
    done = train("experiment=smoke", "-m", "lambda=1e-4,1e-3", "plan=true", "logs=out", cwd=tmp_path)

    assert done.returncode == 0, done.stderr
    assert "2 cells" in done.stdout


def test_missing_file_is_a_message_not_a_traceback(tmp_path):
    done = train("data=jsonl", *REQUIRED["data=jsonl"], "plan=true", cwd=tmp_path)

    assert done.returncode == 2
    assert "a.jsonl is not a file" in done.stderr and "Traceback" not in done.stderr


def test_help_names_every_group_and_root_key(tmp_path):
    done = train("--help", cwd=tmp_path)

    assert done.returncode == 0
    for word in [*GROUPS, "lambda", "seed", "paradigm", "store", "plan"]:
        assert f" {word}" in done.stdout
    assert list(Path(tmp_path).iterdir()) == []

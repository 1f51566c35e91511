"""From adapter folders to a model folder: streaming, refusals, the report, the command line."""

import json
import math
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from every_merge import may_refuse, merges
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM
from whole_weights import WRITTEN_OUT, merged_delta

from paft.config import MergeConfig, Rescale, Space
from paft.delta.adapter import read_adapter
from paft.delta.delta import zero_delta
from paft.files.safetensors import read_checkpoint
from paft.merge import stream
from paft.merge.__main__ import main
from paft.merge.apply import apply_adapters, merge_adapters, variant
from paft.merge.methods import DareLinear, Linear, Slerp, TaskArithmetic, Ties
from paft.merge.stream import rewrite
from paft.model.adapters import add_deltas

LAYERS = ["q_proj", "down_proj"]
Q = "model.layers.0.self_attn.q_proj.weight"


ADAPTER_SEEDS = {"sft": 1, "preference": 2}


def save_base(
    folder: Path,
    dtype: torch.dtype = torch.float32,
    *,
    tied: bool = False,
    hidden_size: int = 32,
    intermediate_size: int = 48,
    **options: Any,
) -> Path:
    torch.manual_seed(0)
    sizes = {"hidden_size": hidden_size, "intermediate_size": intermediate_size}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(vocab_size=64, num_hidden_layers=2, tie_word_embeddings=tied, **sizes, **heads)
    LlamaForCausalLM(config).to(dtype).save_pretrained(str(folder), **options)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(b"stale weights")
    return folder


def save_adapter(base: Path, folder: Path, seed: int, size: float = 0.05, **options: Any) -> Path:
    settings = {"r": 4, "lora_alpha": 4, "target_modules": LAYERS} | options
    model = get_peft_model(LlamaForCausalLM.from_pretrained(str(base)), LoraConfig(**settings))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * size
    model.save_pretrained(str(folder), save_embedding_layers=False)
    return folder


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, dict[str, Path], Path]:
    """A float32 base, two adapters of different rank, an output folder."""
    base = save_base(tmp_path / "base")
    sft = save_adapter(base, tmp_path / "sft", seed=1)
    preference = save_adapter(base, tmp_path / "preference", seed=2, r=6)
    return base, {"sft": sft, "preference": preference}, tmp_path / "out"


def weights_of(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def in_memory(base: Path, adapters: dict[str, Path], method: MergeConfig) -> dict[str, Tensor]:
    """The merge written out: dense deltas, pure functions, everything in memory, torch's casts."""
    branches = {b: {n: d.load() for n, d in read_adapter(f).items()} for b, f in adapters.items()}
    weights = weights_of(base)
    for name in {name for branch in branches.values() for name in branch}:
        weight = weights[name].float().numpy()
        deltas = [branch.get(name) or zero_delta(weight.shape) for branch in branches.values()]
        merged = merged_delta(method, name, weight, deltas, branches)
        weights[name] = torch.from_numpy(weight + merged).to(weights[name].dtype)
    return weights


@pytest.mark.parametrize("shard", [None, "20KB"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", WRITTEN_OUT, ids=variant)
def test_streaming_against_in_memory(
    tmp_path: Path, method: MergeConfig, dtype: torch.dtype, shard: str | None
) -> None:
    base = save_base(tmp_path / "base", dtype, **({"max_shard_size": shard} if shard else {}))
    sft = save_adapter(base, tmp_path / "sft", seed=1)
    preference = save_adapter(
        base, tmp_path / "preference", seed=2, r=6, target_modules=["q_proj", "up_proj"]
    )
    adapters = {"sft": sft, "preference": preference}
    merge_adapters(base, adapters, method, tmp_path / "out")
    merged, expected = weights_of(tmp_path / "out"), in_memory(base, adapters, method)
    assert merged.keys() == expected.keys()
    assert all(torch.equal(merged[name], expected[name]) for name in expected)
    assert all(merged[name].dtype == expected[name].dtype for name in expected)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Path]]:
    """A base of several blocks of rows, and two adapters."""
    folder = tmp_path_factory.mktemp("wide")
    base = save_base(folder / "base", hidden_size=256, intermediate_size=1100)
    return base, {b: save_adapter(base, folder / b, seed, r=16) for b, seed in ADAPTER_SEEDS.items()}


@pytest.mark.parametrize(
    "method", [m for m in (*WRITTEN_OUT, *merges()) if not (m.needs or may_refuse(m))], ids=variant
)
def test_neither_blocks_nor_threads_change_a_merge(
    wide: Any, tmp_path: Path, method: MergeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, adapters = wide
    reports = {}
    for threads in (1, 3):
        monkeypatch.setattr(stream, "THREADS", threads)
        reports[threads] = merge_adapters(base, adapters, method, tmp_path / f"{threads}")
    assert reports[1] == reports[3]
    one, three = (weights_of(tmp_path / n) for n in "13")
    assert all(torch.equal(one[name], three[name]) for name in one)
    if method in WRITTEN_OUT:
        for name, expected in in_memory(base, adapters, method).items():
            # a product of factors may round differently for fewer rows
            torch.testing.assert_close(one[name], expected, rtol=0, atol=1e-7)


def test_everything_but_the_changed_tensors_is_byte_for_byte(folders: Any) -> None:
    base, adapters, out = folders
    merge_adapters(base, adapters, TaskArithmetic(), out)
    changed = read_adapter(adapters["sft"]).keys()
    (path,) = read_checkpoint(base)
    before, after = path.read_bytes(), (out / path.name).read_bytes()
    ranges = {n: slice(t.begin, t.end) for n, t in read_checkpoint(base)[path].items()}
    assert before[: min(r.start for r in ranges.values())] == after[: min(r.start for r in ranges.values())]
    assert {name for name, r in ranges.items() if before[r] != after[r]} == set(changed)
    assert {p.name for p in out.iterdir()} == {p.name for p in base.iterdir()} - {"pytorch_model.bin"}


def test_a_merged_folder_is_a_model(folders: Any) -> None:
    base, adapters, out = folders
    apply_adapters(base, {"sft": adapters["sft"]}, out)
    tokens = torch.arange(10)[None]
    ours = LlamaForCausalLM.from_pretrained(str(out))(tokens).logits
    theirs = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(str(base)), str(adapters["sft"]))(
        tokens
    )
    torch.testing.assert_close(ours, theirs.logits, rtol=1e-4, atol=1e-5)


def test_applying_is_adding_in_memory(folders: Any) -> None:
    base, adapters, out = folders
    report = apply_adapters(base, adapters, out)
    model = LlamaForCausalLM.from_pretrained(str(base))
    add_deltas(model, list(adapters.values()), base)
    expected = model.state_dict()
    for name, tensor in weights_of(out).items():
        # torch and numpy multiply the factors with two BLAS libraries: the last place of float32 may differ
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=5e-8)
    assert report["variant"] == "apply weights=1,1"


def test_dare_does_not_depend_on_what_else_is_merged(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    for name, modules in {"both": LAYERS, "one": ["q_proj"]}.items():
        adapters = {}
        for branch, seed in {"sft": 1, "preference": 2}.items():
            folder = tmp_path / name / branch
            adapters[branch] = save_adapter(base, folder, seed, target_modules=modules, size=0.0)
            path = folder / "adapter_model.safetensors"
            save_file(
                {key: torch.full_like(value, 0.1 * seed) for key, value in load_file(path).items()}, path
            )
        merge_adapters(
            base, adapters, DareLinear(density=0.5, rescale=Rescale.none), tmp_path / f"{name}-out"
        )
    assert torch.equal(weights_of(tmp_path / "both-out")[Q], weights_of(tmp_path / "one-out")[Q])


def test_report_says_what_happened(folders: Any) -> None:
    base, adapters, out = folders
    report = merge_adapters(base, adapters, Slerp(t=0.25), out)
    dense = {
        name: [read_adapter(folder)[name].load()[:].astype(np.float64) for folder in adapters.values()]
        for name in read_adapter(adapters["sft"])
    }
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert report["method"] == "slerp"
    assert report["variant"] == "slerp space=delta t=0.25"
    assert report["weights"] == [0.75, 0.25]
    for name, (a, b) in dense.items():
        assert report["layers"][name] == {
            "cosine": pytest.approx((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-7),
            "sign_conflict": np.mean(a * b < 0),
            "linear": False,
        }
    for key in ("cosine", "sign_conflict"):
        assert report[key] == pytest.approx(np.mean([row[key] for row in report["layers"].values()]))
    assert (report["linear_share"], report["changed_tensors"]) == (0.0, 4)
    moved = [weights_of(out)[name] - weights_of(base)[name] for name in report["layers"]]
    assert report["delta_l2"] == pytest.approx(math.hypot(*(float(d.norm()) for d in moved)), rel=1e-4)


def test_full_slerp_of_lora_deltas_is_linear_everywhere(folders: Any) -> None:
    base, adapters, out = folders
    small = {b: save_adapter(base, f.with_name(f"small-{b}"), 3, size=0.003) for b, f in adapters.items()}
    assert merge_adapters(base, small, Slerp(space=Space.full), out)["linear_share"] == 1.0


def test_share_rounded_back_is_counted_in_the_stored_type(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", torch.bfloat16)
    sft = save_adapter(base, tmp_path / "sft", seed=1, size=0.004)
    report = apply_adapters(base, {"sft": sft}, tmp_path / "out")
    before, after = weights_of(base), weights_of(tmp_path / "out")
    same = sum(int((before[n] == after[n]).sum()) for n in report["layers"])
    assert report["rounded_back"] == same / sum(before[n].numel() for n in report["layers"])
    assert 0.2 < report["rounded_back"] < 0.98


def test_variant_states_every_option() -> None:
    assert variant(Ties(preference_density=0.25)) == (
        "ties weights=1,1 scale=1 density=0.5 preference_density=0.25 "
        "election=mass elect_on=weighted normalize=weights scope=tensor"
    )
    assert variant(Linear(keep=False)) == "linear weights=1,1 scale=1 normalize=true"


@pytest.mark.parametrize("key", ["base", "tokenizer", "template"])
def test_adapters_of_different_origin_are_refused(folders: Any, key: str) -> None:
    base, adapters, out = folders
    for branch, folder in adapters.items():
        origin = {"base": "b", "tokenizer": "t", "template": "c"} | {key: f"that of {branch}"}
        (folder / "paft.json").write_text(json.dumps(origin))
    with pytest.raises(ValueError) as error:
        merge_adapters(base, adapters, Ties(), out)
    named = [*map(str, adapters.values()), key, "that of sft", "that of preference"]
    assert all(text in str(error.value) for text in named)
    assert not out.exists()


def test_adapters_without_paft_json_are_compared_by_base_name(folders: Any, tmp_path: Path) -> None:
    base, adapters, out = folders
    other = save_adapter(save_base(tmp_path / "other"), tmp_path / "foreign", seed=3)
    with pytest.raises(ValueError, match="base_model_name_or_path"):
        merge_adapters(base, adapters | {"preference": other}, Ties(), out)


@pytest.mark.parametrize("branches", [["sft"], []])
def test_a_method_needs_two_adapters(folders: Any, branches: list[str]) -> None:
    base, adapters, out = folders
    with pytest.raises(ValueError, match="ties merges two adapters"):
        merge_adapters(base, {branch: adapters[branch] for branch in branches}, Ties(), out)


def test_an_adapter_of_another_model_is_refused(folders: Any, tmp_path: Path) -> None:
    _, adapters, out = folders
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 40, "num_attention_heads": 4, "num_key_value_heads": 2}
    wider = LlamaConfig(vocab_size=64, num_hidden_layers=2, **sizes)
    LlamaForCausalLM(wider).save_pretrained(str(tmp_path / "narrow"))
    with pytest.raises(
        ValueError, match=r"the adapter .*sft changes .*down_proj.* as \[32, 48\], the base has \[32, 40\]"
    ):
        apply_adapters(tmp_path / "narrow", {"sft": adapters["sft"]}, out)


def test_absent_and_tied_tensors_are_refused(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", tied=True)
    with pytest.raises(ValueError, match=r"changes model.nothing.weight, which .* it holds model\."):
        rewrite(base, tmp_path / "out", ["model.nothing.weight"], lambda weight: [])
    with pytest.raises(ValueError, match="ties it to the input embeddings"):
        rewrite(base, tmp_path / "out", ["lm_head.weight"], lambda weight: [])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_results_that_are_not_finite_leave_no_file(folders: Any, value: float) -> None:
    base, _, out = folders
    with pytest.raises(ValueError, match=f"{Q} is not finite"):
        rewrite(base, out, [Q], lambda weight: [weight.encode(weight[:] * np.float32(value))])
    assert list(out.iterdir()) == []


def test_the_base_is_never_overwritten(folders: Any) -> None:
    base, adapters, _ = folders
    with pytest.raises(ValueError, match="must differ from the base"):
        merge_adapters(base, adapters, Ties(), base / ".." / base.name)


def edit_header(path: Path, **changes: object) -> None:
    """Change the header entry of one tensor, keeping the bytes."""
    raw = path.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + length])
    header[Q] |= changes
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: p.write_bytes(p.read_bytes()[:-1]), "is damaged"),
        (lambda p: p.write_bytes(p.read_bytes() + b"x"), "is damaged"),
        (lambda p: p.write_bytes(b"abc"), "no safetensors file"),
        (lambda p: p.write_bytes(b"\xff" * 100), "no safetensors file"),
        (lambda p: p.write_bytes(struct.pack("<Q", 4) + b"{..}"), "damaged safetensors header"),
        (lambda p: edit_header(p, dtype="Q4"), "has dtype Q4, known are"),
        (lambda p: edit_header(p, shape=[3]), "spans 4096 bytes"),
        (lambda p: edit_header(p, data_offsets=[0, 4096]), "begins at byte"),
        (lambda p: edit_header(p, data_offsets=None), "damaged safetensors header"),
        (lambda p: p.unlink(), "holds neither"),
    ],
)
def test_damaged_checkpoints_are_refused(folders: Any, damage: Any, message: str) -> None:
    base, adapters, out = folders
    damage(base / "model.safetensors")
    with pytest.raises(ValueError, match=message):
        merge_adapters(base, adapters, Ties(), out)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", max_shard_size="20KB")
    shard = sorted(base.glob("*.safetensors"))[1]
    shutil.move(shard, tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=f"{shard.name} is missing"):
        read_checkpoint(base)


def test_command_line_takes_the_options_of_the_method(
    folders: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    base, adapters, out = folders
    paths = [f"--{name}={path}" for name, path in (adapters | {"base": base, "out": out}).items()]
    options = ["--density=0.25", "--weights", "0.5", "2", "--scope=global", "--elect-on=unweighted"]
    main(["--method=ties", *paths, *options])
    printed = capsys.readouterr().out
    assert "ties weights=0.5,2 scale=1 density=0.25 election=mass elect_on=unweighted" in printed
    assert "rounded_back" in printed
    assert (out / "model.safetensors").is_file()
    with pytest.raises(SystemExit):
        main(["--method=slerp", *paths, "--density=0.25"])
    assert "unrecognized arguments: --density" in capsys.readouterr().err


def test_command_line_never_mixes_two_models_in_a_folder(folders: Any, tmp_path: Path) -> None:
    """transformers would load the shards or the single file of the first merge in place of the second."""
    base, adapters, out = folders
    sharded = save_base(tmp_path / "sharded", max_shard_size="20KB")
    paths = [f"--{name}={path}" for name, path in (adapters | {"out": out}).items()]
    main(["--method=ties", f"--base={base}", *paths])
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises((ValueError, SystemExit), match=r"2|must be new or empty"):
        main(["--method=task_arithmetic", f"--base={sharded}", *paths])
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    with pytest.raises((ValueError, SystemExit)):
        main(["--method=ties", f"--base={base}", *paths[:-1], f"--out={base}"])
    assert not list(tmp_path.rglob("*.partial"))

"""What a bfloat16 model is computed in: its own type where the processor multiplies it, else float32."""

import pytest
import torch
from tiny import BFLOAT16, branch, make, rows_for, run

from paft import device
from paft.config import HardwareConfig, SFTConfig
from paft.cost.flops_and_bytes import item_bytes, weight_bytes
from paft.device import computed_in, multiplies_bfloat16
from paft.model.adapters import add_deltas
from paft.model.base import base_folder
from paft.proof.base import load_base

X86 = "processor\t: 0\nflags\t\t: fpu avx2 {}\n\nprocessor\t: 1\nflags\t\t: fpu avx512bw avx512vl avx512dq\n"


@pytest.fixture(params=[True, False], ids=["with-products", "without"])
def products(request, monkeypatch):
    """Whether this processor is taken for one that multiplies bfloat16 matrices."""
    monkeypatch.setattr(device, "multiplies_bfloat16", lambda: request.param)
    return request.param


def test_this_processor_is_told_as_onednn_tells_it():
    assert multiplies_bfloat16() == torch.ops.mkldnn._is_mkldnn_bf16_supported()


@pytest.mark.parametrize(
    ("told", "multiplies"),
    [
        (X86.format("avx512f avx512dq avx512bw avx512vl avx512_bf16"), True),
        (X86.format("avx512f avx512dq avx512bw avx512vl"), True),  # oneDNN widens them
        (X86.format("avx_vnni avx_vnni_int8 avx_ne_convert"), True),
        (X86.format("avx_vnni"), False),
        (X86.format("avx512f"), False),
        ("processor\t: 0\nFeatures\t: fp asimd bf16 sve\n", True),
        ("processor\t: 0\nFeatures\t: fp asimd\n", False),
        ("", False),
    ],
)
def test_flags_of_the_first_processor_tell(tmp_path, told, multiplies):
    (tmp_path / "cpuinfo").write_text(told)
    assert multiplies_bfloat16(tmp_path / "cpuinfo") is multiplies
    assert not multiplies_bfloat16(tmp_path / "none")


def test_only_bfloat16_on_a_cpu_is_widened(products):
    assert computed_in("bfloat16", "cpu") == ("bfloat16" if products else "float32")
    assert computed_in("float32", "cpu") == "float32"
    assert computed_in("bfloat16", "cuda") == "bfloat16"


def test_a_base_is_loaded_for_the_device_it_is_used_on(products):
    folder = base_folder(BFLOAT16)
    types = [load_base(folder, BFLOAT16, used_on=kind).dtype for kind in (None, "cpu", "cuda")]
    assert types == [getattr(torch, computed_in("bfloat16", "cpu"))] * 2 + [torch.bfloat16]


def test_a_plan_counts_the_bytes_at_work(products):
    cpu, gpu = HardwareConfig(), HardwareConfig(accelerator="gpu")
    assert [item_bytes(BFLOAT16), item_bytes(BFLOAT16, gpu)] == [2, 2]
    assert item_bytes(BFLOAT16, cpu) == weight_bytes(BFLOAT16, cpu) == (2 if products else 4)


def test_weights_stay_those_of_the_file_also_where_deltas_are_added(monkeypatch, tmp_path):
    """What a sequential training starts from is rounded to the stored type, whatever it is computed in."""
    config = branch(SFTConfig)
    module = make(config, steps=2)
    run(module, rows_for(config, 16))
    module.backbone.save(tmp_path, {})
    folder, weights = base_folder(BFLOAT16), []
    for multiplied in (True, False):
        monkeypatch.setattr(device, "multiplies_bfloat16", lambda m=multiplied: m)
        plain = load_base(folder, BFLOAT16)
        base = load_base(folder, BFLOAT16)
        add_deltas(base, [tmp_path], folder)
        weights.append({n: (p.float(), plain.get_parameter(n).float()) for n, p in base.named_parameters()})
    narrow, wide = weights
    assert all(torch.equal(a, b) for n in narrow for a, b in zip(narrow[n], wide[n], strict=True))
    assert any(not torch.equal(*pair) for pair in wide.values())


def test_training_in_either_type_gives_nearly_one_loss(monkeypatch):
    config, losses = branch(SFTConfig), []
    for multiplied in (True, False):
        monkeypatch.setattr(device, "multiplies_bfloat16", lambda m=multiplied: m)
        module = make(config, steps=4, model=BFLOAT16)
        losses.append([row["train/loss"] for row in run(module, rows_for(config, 16))])
        assert module.backbone.base.dtype == (torch.bfloat16 if multiplied else torch.float32)
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=5e-3)  # bfloat16 has 8 bits: 4e-3 a rounding

"""The tiny model, random rows of very different lengths, and a bare Lightning run: what training tests share."""

from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import Logger
from torch import Tensor

from paft.chat.tokens import IGNORE, Encoded, EncodedAnswer, EncodedPair
from paft.config import (
    BranchConfig,
    DType,
    L1Config,
    L1Of,
    LoraConfig,
    Schedule,
    SFTConfig,
    Template,
    TinyModel,
    TrainerConfig,
)
from paft.data.unpaired import mismatched, split_pairs
from paft.graph.configs import BranchStage
from paft.model.base import base_folder
from paft.objectives import CPO, DPO, KTO, ORPO, DPOLoss, KTOLoss, NLLScope, SimPO
from paft.training.batches import GlobalBatch, StepLoader
from paft.training.module import BranchModule
from paft.training.preference import PreferenceModule
from paft.training.sft import SFTModule
from paft.training.trainer import silence_expected_warnings

MODEL = TinyModel(name="tiny", dtype=DType.float32, hidden_size=32)
BFLOAT16 = TinyModel(name="tiny", dtype=DType.bfloat16, hidden_size=32)
MODULES: dict[type, type[BranchModule]] = {
    SFTConfig: SFTModule,
    DPO: PreferenceModule,
    ORPO: PreferenceModule,
    SimPO: PreferenceModule,
    CPO: PreferenceModule,
    KTO: PreferenceModule,
}
PAD = 0
VOCABULARY = 259


def branch(kind: type[BranchConfig], **settings: Any) -> Any:
    """A branch with plain AdamW: constant learning rate, no warm-up, no clipping to speak of."""
    plain = {"lr": 1e-2, "schedule": Schedule.constant, "warmup_ratio": 0.0, "max_grad_norm": 1e9}
    plain["lora"] = LoraConfig(rank=4, alpha=8)
    return kind(**(plain | {"global_batch_size": 8} | settings))


def tokens(generator: torch.Generator, low: int, high: int) -> list[int]:
    """Between `low` and `high` random tokens."""
    length = int(torch.randint(low, high + 1, (), generator=generator))
    ids: list[int] = torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()
    return ids


def sft_rows(num: int, seed: int = 0) -> list[Encoded]:
    """Rows whose answers have 1 to 60 tokens: a mean of row means is far from the mean over tokens."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for i in range(num):
        prompt, answer = tokens(generator, 2, 20), tokens(generator, *((1, 3) if i % 2 else (40, 60)))
        rows.append(Encoded([*prompt, *answer], [*[IGNORE] * len(prompt), *answer]))
    return rows


def pairs(num: int, seed: int = 0) -> list[EncodedPair]:
    generator = torch.Generator().manual_seed(seed)
    spans = [(2, 4), (30, 50)]
    return [
        EncodedPair(
            tokens(generator, 2, 20), tokens(generator, *spans[i % 2]), tokens(generator, *spans[i // 2 % 2])
        )
        for i in range(num)
    ]


def judged(num: int, seed: int = 0) -> list[EncodedAnswer]:
    """Good and bad answers in turn, each with another one to be mismatched with; of every three rows two are good."""
    rows = list(split_pairs(pairs(num, seed)))
    uneven = [row for i, row in enumerate(rows) if row.label or i % 4 == 1][:num]
    return list(mismatched(uneven, 1024, "rows"))


BRANCHES = {
    "sft": branch(SFTConfig),
    "sft+l1": branch(SFTConfig, l1=L1Config(1e-3)),
    "sft+l1 factors": branch(SFTConfig, l1=L1Config(1e-3, L1Of.factors)),
    "dpo": branch(DPO),
    "dpo ipo": branch(DPO, loss=DPOLoss.ipo),
    "dpo hinge": branch(DPO, loss=DPOLoss.hinge),
    "dpo smoothed": branch(DPO, label_smoothing=0.2),
    "dpo dpop": branch(DPO, loss=DPOLoss.dpop, beta=0.3),
    "dpo rpo": branch(DPO, sft_weight=1.0),
    "dpo ld": branch(DPO, ld_alpha=0.3),
    "kto": branch(KTO, beta=0.5, desirable_weight=1.3, undesirable_weight=0.7),
    "kto apo": branch(KTO, loss=KTOLoss.apo_zero_unpaired, undesirable_weight=1.5),
    "simpo": branch(SimPO),
    "cpo": branch(CPO),
    "orpo": branch(ORPO),
    "orpo response": branch(ORPO, nll_scope=NLLScope.response),
}
SAME = 5e-6
"""Relative distance of float32 gradients summed in another order; measured 2e-7 to 6e-7. A mean of row means
instead of one over tokens is off by more than 0.1."""


def rows_for(config: BranchConfig, num: int, seed: int = 0) -> Sequence[Any]:
    if isinstance(config, KTO):
        return judged(num, seed)
    return sft_rows(num, seed) if isinstance(config, SFTConfig) else pairs(num, seed)


def make(config: BranchConfig, *, steps: int = 1, model: TinyModel = MODEL, **settings: Any) -> BranchModule:
    """The branch's module with its model loaded."""
    seed, deltas = settings.pop("seed", 0), settings.pop("deltas", ())
    stage = BranchStage(model, config, Template.chatml, seed)
    trainer = TrainerConfig(**settings)
    module = MODULES[type(config)](
        base_folder(model), stage, trainer, num_steps=steps, pad_id=PAD, deltas=deltas
    )
    module.configure_model()
    return module


def move(module: BranchModule, seed: int = 1, scale: float = 0.05) -> BranchModule:
    """Give the second factors random values, so that both factors have a gradient."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, B, _ in module.backbone.factors():
            B.copy_(scale * torch.randn(B.shape, generator=generator))
    return module


def whole_batch(rows: Sequence[Any], step: int = 0) -> GlobalBatch[Any]:
    loader = StepLoader(rows, global_batch_size=len(rows), steps=1, seed=0)
    (batch,) = loader
    return GlobalBatch(**(batch.__dict__ | {"step": step}))


def adapter(module: BranchModule) -> dict[str, Tensor]:
    """The trained factors under peft's names, copied."""
    return {n: p.detach().clone() for n, p in module.backbone.peft.named_parameters() if p.requires_grad}


def gradients(module: BranchModule) -> dict[str, Tensor]:
    named = module.backbone.peft.named_parameters()
    return {n: p.grad.clone() for n, p in named if p.requires_grad and p.grad is not None}


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Frobenius norm of the difference over that of `b`, over all tensors together."""
    assert a.keys() == b.keys()
    off = sum(float((a[n].double() - b[n].double()).square().sum()) for n in b)
    return float((off / sum(float(b[n].double().square().sum()) for n in b)) ** 0.5)


class Log(Logger):
    """Keeps what was logged."""

    name, version = "log", 0

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[dict[str, float]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append(metrics)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass


def run(module: BranchModule, rows: Sequence[Any], *, start: int = 0) -> list[dict[str, float]]:
    """Train on global batches of the module's own size from step `start` to `num_steps`; one row of logs a step."""
    loader = StepLoader(
        rows, global_batch_size=module.config.global_batch_size, steps=module.num_steps, seed=module.seed
    )
    loader.load_state_dict({"start": start})
    silence_expected_warnings()
    log = Log()
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=module.num_steps - start,
        max_epochs=-1,
        logger=log,
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, loader)
    return log.rows


def gradient_of_a_step(config: BranchConfig, **settings: Any) -> dict[str, Tensor]:
    """What the optimizer is given in step 1, both factors already moved."""
    module = move(make(config, steps=2, **settings))
    run(module, rows_for(config, 8), start=1)
    return gradients(module)

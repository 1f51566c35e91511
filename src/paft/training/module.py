"""What the LightningModules share: the backbone, the optimizer step, what a checkpoint holds.

One Lightning batch is one global batch. It is cut into micro-batches whose losses are divided by the global
batch's totals, so the update depends neither on the micro-batch size nor on the number of devices.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import lightning as L
import torch
from torch import Tensor

from paft.config import TrainerConfig
from paft.device import forms_on
from paft.forward.batches import micro_batches
from paft.graph.configs import BranchStage
from paft.model.paths import FastPaths
from paft.model.policy import Policy
from paft.training.backbone import make_policy, recompute_activations
from paft.training.batches import GlobalBatch
from paft.training.nonfinite import LeftOut
from paft.training.schedule import schedule
from paft.training.strategy import largest_of_ranks, sent_with_the_last, shard


class BranchModule(L.LightningModule):
    """Base of `SFTModule` and `PreferenceModule`: subclasses say what a micro-batch's loss is.

    `base` is the base model's folder, `deltas` folders of what is added to it before a new delta is trained
    (sequential training), `num_steps` the length of the whole run, `paths` what the base was proved to take (None:
    it is proved when it is loaded).
    """

    def __init__(
        self,
        base: Path,
        stage: BranchStage,
        settings: TrainerConfig,
        *,
        num_steps: int,
        pad_id: int = 0,
        deltas: tuple[Path, ...] = (),
        cpu_offload: bool = False,
        paths: FastPaths | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False  # a batch is many passes, see the module's docstring
        self.strict_loading = False  # checkpoints hold what is trained only
        self.base_folder, self.model_config, self.config = base, stage.model, stage.branch
        self.seed, self.num_steps, self.settings = stage.seed, num_steps, settings
        self.pad_id, self.deltas, self.paths = pad_id, deltas, paths
        self.cpu_offload = cpu_offload
        self.left_out = LeftOut(settings.skip_nonfinite_steps)
        self.policy: Policy | None = None
        self.num_shards = 1
        """Devices that share one copy of the parameters."""
        self.seconds_elsewhere = 0.0
        """Spent by callbacks on work that is not this branch's training."""

    # --- what a subclass gives ---------------------------------------------------------------------

    def micro_loss(self, rows: list[Any], batch: GlobalBatch[Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """The rows' part of the global batch's loss, and sums to be logged (already divided by its totals)."""
        raise NotImplementedError

    def penalty(self) -> Tensor | None:
        """A term of the loss that does not depend on the rows; where factors are sharded, this rank's part of it."""
        return None

    # --- Lightning ---------------------------------------------------------------------------------

    def configure_model(self) -> None:
        if self.policy is not None:
            return
        policy = make_policy(
            self.base_folder, self.model_config, self.config, self.deltas, self.paths,
            seed=self.seed, device=self._root_device(), sharded=self.device_mesh is not None,
        )  # fmt: skip
        if self.settings.gradient_checkpointing:
            recompute_activations(policy, self.config)
        self.policy = policy.train()
        if self.device_mesh is not None:
            self.num_shards = shard(policy, self.device_mesh, cpu_offload=self.cpu_offload)
        policy.hold_base()

    def _root_device(self) -> torch.device:
        """Where the trainer will put the parameters; the CPU without a trainer."""
        try:
            return self.trainer.strategy.root_device
        except RuntimeError:  # it is attached to none
            return torch.device("cpu")

    @property
    def world_size(self) -> int:
        """Ranks of the trainer; 1 without one."""
        try:
            return self.trainer.world_size
        except RuntimeError:  # it is attached to none
            return 1

    @property
    def backbone(self) -> Policy:
        assert self.policy is not None, "configure_model has not run"
        return self.policy

    def configure_optimizers(self) -> Any:
        trainable = [p for p in self.parameters() if p.requires_grad]
        c = self.config
        fused = forms_on(trainable[0].device.type).fused_adamw or None  # None: as torch chooses
        betas = c.beta1, c.beta2
        optimizer = torch.optim.AdamW(
            trainable, lr=c.lr, betas=betas, weight_decay=c.weight_decay, fused=fused
        )
        factor = schedule(c.schedule, steps=self.num_steps, warmup_ratio=c.warmup_ratio)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.LambdaLR(optimizer, factor)}

    def on_train_start(self) -> None:
        self.backbone.follow()  # what a checkpoint has put into the trained parameters

    def on_validation_start(self) -> None:
        self.backbone.follow()  # also of a run that was killed after its last step

    def cpu(self) -> Self:
        """Where the module is: Lightning sends it to the host after `fit`, from where validation would bring it back,
        and that sends it once more. Its memory goes with it, when the stage ends."""
        return self

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """A global batch is lists of tokens; its micro-batches move when they become tensors."""
        return batch

    def training_step(self, batch: GlobalBatch[Any]) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()  # type: ignore[union-attr]
        logs = self._accumulate(batch)
        if batch.step == 0:
            self.backbone.refuse_untouched()
        logs["grad_norm"] = self._clip()
        if self.left_out.must_leave_out(batch.step, logs):
            optimizer.zero_grad()  # type: ignore[union-attr]  # a step without gradients changes nothing but is counted
        optimizer.step()  # type: ignore[union-attr]
        self.backbone.follow()
        logs["lr"] = torch.tensor(optimizer.param_groups[0]["lr"])  # type: ignore[union-attr]
        self.lr_schedulers().step()  # type: ignore[union-attr]
        self._log(logs)

    def _accumulate(self, batch: GlobalBatch[Any]) -> dict[str, Tensor]:
        """Gradients of the whole global batch; strategies average over ranks, hence the factor `world`."""
        world = self.trainer.world_size
        sums: dict[str, Tensor] = {}
        places = dict(zip(map(id, batch.rows), batch.places or range(len(batch.rows)), strict=True))
        passes = self._passes(batch)
        for number, (rows, share) in enumerate(passes, 1):
            lengths = [row.row_tokens for row in rows]
            self.backbone.rows.begin(batch.step, [places[id(row)] for row in rows], lengths)
            with sent_with_the_last(self.trainer, self.backbone, last=number == len(passes)):
                loss, values = self.micro_loss(rows, batch)
                self.manual_backward(loss * (world * share))
            for name, value in {"loss": loss, **values}.items():
                sums[name] = sums.get(name, torch.zeros(())) + value.detach() * share
        sums = {name: self._total(value) for name, value in sums.items()}
        penalty = self.penalty()
        if penalty is not None:
            # same on every rank where factors are whole, so their average is right; summed over shards elsewhere
            self.manual_backward(penalty)
            sums["l1"] = self._total(penalty.detach()) * self.num_shards / world
            sums["loss"] = sums["loss"] + sums["l1"]
        return sums

    def _passes(self, batch: GlobalBatch[Any]) -> list[tuple[list[Any], float]]:
        """Micro-batches and their share in the sums, 1; a rank with fewer than another adds passes of share 0.

        Sharded layers are gathered by all ranks together, so all must make as many passes.
        """
        packed = self.backbone.packs(max(row.row_tokens for row in batch.rows))
        size, tokens = self.settings.micro_batch_size, self.settings.micro_batch_tokens
        parts = micro_batches(batch.rows, size, tokens, packed=packed)
        most = largest_of_ranks(len(parts), self.trainer) if self.world_size > 1 else len(parts)
        return [(part, 1.0) for part in parts] + [(parts[-1][:1], 0.0)] * (most - len(parts))

    def _total(self, value: Tensor) -> Tensor:
        if self.world_size == 1:
            return value
        total = self.trainer.strategy.reduce(value.to(self.device), reduce_op="sum")
        assert isinstance(total, Tensor)
        return total

    def _clip(self) -> Tensor:
        trainable = [p for p in self.parameters() if p.requires_grad]
        norm = torch.nn.utils.clip_grad_norm_(trainable, self.config.max_grad_norm)
        return norm.full_tensor() if hasattr(norm, "full_tensor") else norm

    def _log(self, logs: dict[str, Tensor]) -> None:
        self.log_dict({f"train/{name}": value for name, value in logs.items()}, rank_zero_only=True)
        self.log("loss", logs["loss"], prog_bar=True, logger=False, rank_zero_only=True)

    def validation_step(self, batch: GlobalBatch[Any]) -> None:
        named = {f"validation/{name}": value for name, value in self.averages(batch).items()}
        self.log_dict(named, batch_size=1, rank_zero_only=True)

    @torch.no_grad()
    def averages(self, batch: GlobalBatch[Any]) -> dict[str, Tensor]:
        """The loss over a global batch and what is logged beside it, without the penalty; needs no trainer."""
        sums: dict[str, Tensor] = {}
        for rows, share in self._passes(batch):
            loss, values = self.micro_loss(rows, batch)
            for name, value in {"loss": loss, **values}.items():
                sums[name] = sums.get(name, torch.zeros(())) + value * share
        return {name: self._total(value) for name, value in sums.items()}

    # --- checkpoints: what is trained and the optimizer, never the base ----------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Trainable parameters and optimizer by name: what is written on some devices is read on any other number."""
        checkpoint["left_out"] = self.left_out.steps
        names = self._trainable_names()
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in set(names)}
        if self.device_mesh is None:  # else the strategy has named them
            states = checkpoint.get("optimizer_states", [])
            checkpoint["optimizer_states"] = [renamed(s, dict(enumerate(names))) for s in states]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.left_out.steps = checkpoint["left_out"]
        if self.device_mesh is None:
            numbers = {name: i for i, name in enumerate(self._trainable_names())}
            checkpoint["optimizer_states"] = [renamed(s, numbers) for s in checkpoint["optimizer_states"]]

    def _trainable_names(self) -> list[str]:
        """In the optimizer's order."""
        return [name for name, p in self.named_parameters() if p.requires_grad]


def renamed(state: dict[str, Any], names: Mapping[Any, Any]) -> dict[str, Any]:
    """An optimizer's state_dict whose parameters go by other names."""
    groups = [group | {"params": [names[p] for p in group["params"]]} for group in state["param_groups"]]
    return {"state": {names[p]: value for p, value in state["state"].items()}, "param_groups": groups}

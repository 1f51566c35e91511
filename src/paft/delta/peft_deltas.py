"""The tensors of an adapter file as deltas of the base's, by the rules of peft's merge; headers only."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from paft.delta.base import BaseTensors
from paft.delta.delta import StoredDelta
from paft.delta.dora import StoredDora
from paft.delta.peft_config import PeftConfig
from paft.delta.peft_keys import AdapterFile
from paft.delta.rows import FLOATS
from paft.delta.stored import StoredDifference, StoredFactors, StoredSum, StoredTensor, WithRows
from paft.files.safetensors import Stored

LINEAR, EMBEDDING = ("A", "B"), ("embedding_A", "embedding_B")
EMBEDDINGS = ("embed_tokens", "wte", "embed_in", "word_embeddings", "tokens_embed")
"""Last names of modules that are input embeddings."""


@dataclass
class PeftDeltas:
    """Reads one adapter file. Without a base only factors of linear layers, under peft's names."""

    config: PeftConfig
    file: AdapterFile
    base: BaseTensors | None
    deltas: dict[str, StoredDelta] = field(default_factory=dict)

    def read(self) -> dict[str, StoredDelta]:
        """Tensor name in the base -> its delta. Raises `ValueError` as `paft.delta.adapter.describe_adapter` says."""
        for module, parts in sorted(self.file.modules.items()):
            self._module(module, parts)
        for name, stored in sorted(self.file.saved.items()):
            self._saved(name, stored)
        for module, stored in sorted(self.file.tokens.items()):
            self._tokens(module, stored)
        if not self.deltas:
            raise ValueError(f"{self.file.path} holds no lora_A weight and no saved one")
        return self.deltas

    @property
    def folder(self) -> Path:
        return self.config.folder

    # --- factors -------------------------------------------------------------------------------------

    def _module(self, module: str, parts: Mapping[str, Stored]) -> None:
        pair = EMBEDDING if parts.keys() & {*EMBEDDING} else LINEAR
        allowed = {*pair, "magnitude_vector", *(["B.bias"] if pair is LINEAR else [])}
        if not {*pair} <= parts.keys() <= allowed or {"magnitude_vector", "B.bias"} <= parts.keys():
            held = ", ".join(f"{module:.200}.lora_{part}" for part in sorted(parts))
            raise ValueError(
                f"{self.folder} holds more or less than pairs of lora_A and lora_B weights: {held:.300}; "
                "save the adapter again with peft's save_pretrained"
            )
        factors = self._factors(module, parts[pair[0]], parts[pair[1]], embedding=pair is EMBEDDING)
        if self._follows_embedding(module):
            return
        self._refuse_tied(f"{module}.weight")
        name = self._in_base(f"{module}.weight", factors.shape)
        self._add(name, self._turned(module, name, factors, parts.get("magnitude_vector")))
        if "B.bias" in parts:
            self._bias(module, parts["B.bias"], factors.scaling)

    def _factors(self, module: str, A: Stored, B: Stored, *, embedding: bool) -> StoredFactors:
        rank, scaling = self.config.rank(module), self.config.scaling(module)
        paired = len(A.shape) == len(B.shape) == 2 and A.shape[0] == B.shape[1] == rank
        if not paired or A.dtype not in FLOATS or B.dtype not in FLOATS:
            raise ValueError(
                f"{self.folder}: {module:.100} has lora_A {list(A.shape)} of {A.dtype} and lora_B {list(B.shape)} of "
                f"{B.dtype}; a linear layer of rank {rank} (adapter_config.json) has [{rank}, in] and [out, {rank}] of "
                "floats"
            )
        transposed = embedding or self._stores_transposed(module, B.shape[0], A.shape[1])
        return StoredFactors(self.file.path, A, B, scaling, transposed)

    def _stores_transposed(self, module: str, out: int, width: int) -> bool:
        """Whether the base holds [in, out] of this layer: by its shape, and where that is square by its kind."""
        if self.base is None:
            return self.config.transposed
        name = self.base.name_of(f"{module}.weight")
        if name is not None and out != width:
            return self.base.tensors[name].stored.shape == (width, out)
        return self.config.transposed if self.base.transposed is None else self.base.transposed

    def _turned(
        self, module: str, name: str, factors: StoredFactors, magnitude: Stored | None
    ) -> StoredDelta:
        if magnitude is None:
            return factors
        if self.base is None:
            raise self._needs_base(f"{module}.lora_magnitude_vector")
        outputs = factors.shape[factors.transposed]
        vector = StoredTensor(self.file.path, magnitude)
        if magnitude.dtype not in FLOATS or vector.shape[0] * vector.shape[1] != outputs:
            raise ValueError(
                f"{self.folder}: {module:.100} has lora_magnitude_vector {list(magnitude.shape)} of {magnitude.dtype}; "
                f"a layer with {outputs} outputs has as many floats"
            )
        saved = self.file.saved.get(f"{module}.weight")
        weight = self.base.tensors[name] if saved is None else StoredTensor(self.file.path, saved)
        return StoredDora(weight, factors, vector)

    def _bias(self, module: str, stored: Stored, scaling: float) -> None:
        self._refuse_other_type(f"{module}.lora_B.bias", stored)
        vector = StoredTensor(self.file.path, stored)
        name = self._in_base(f"{module}.bias", vector.shape)
        self._add(name, StoredDifference(vector, None, scaling))

    # --- weights that were trained whole ---------------------------------------------------------------

    def _saved(self, name: str, stored: Stored) -> None:
        if self.base is None:
            raise self._needs_base(name)
        self._refuse_other_type(name, stored)
        tuned = StoredTensor(self.file.path, stored)
        if self._is_tied_twin(name, tuned):
            return
        self._refuse_tied(name)
        known = self._in_base(name, tuned.shape)
        self._add(known, StoredDifference(tuned, self.base.tensors[known]))

    def _tokens(self, module: str, stored: Stored) -> None:
        """Rows that were trained alone take the place of the base's; as in peft a head tied to them follows."""
        name, indices = f"{module}.weight", self.config.token_indices(module)
        if self.base is None:
            raise self._needs_base(name)
        self._refuse_other_type(name, stored)
        known = self._in_base(name)
        base, rows = self.base.tensors[known], StoredTensor(self.file.path, stored)
        if rows.shape != (len(indices), base.shape[1]) or max(indices) >= base.shape[0]:
            raise ValueError(
                f"{self.folder}: trainable_token_indices of {module:.100} are {len(indices)} ids up to {max(indices)} "
                f"and its rows have shape {list(rows.shape)}; the base has {list(base.shape)}"
            )
        self._add(known, StoredDifference(WithRows(base, rows, indices), base))

    def _refuse_other_type(self, name: str, stored: Stored) -> None:
        if stored.dtype not in FLOATS:
            raise ValueError(
                f"{self.folder}: {name:.200} is stored as {stored.dtype}, not as one of {', '.join(FLOATS)}"
            )

    def _is_tied_twin(self, name: str, tuned: StoredTensor) -> bool:
        """Whether this is the output head of a tied base, saved as a copy of the input embedding beside it."""
        if not (self.base and self.base.tied and name.endswith("lm_head.weight")):
            return False
        embeddings = (
            StoredTensor(self.file.path, s) for n, s in self.file.saved.items() if _last(n) in EMBEDDINGS
        )
        return any(tuned.same_bytes(embedding) for embedding in embeddings)

    def _follows_embedding(self, module: str) -> bool:
        """Whether these are the factors of a head that peft trained as those of the embedding it is tied to."""
        tied = self.base is not None and self.base.tied and self.config.settings.get("ensure_weight_tying")
        others = {name.rpartition(".")[2] for name in self.file.modules}
        return bool(tied) and module.endswith("lm_head") and not others.isdisjoint(EMBEDDINGS)

    def _refuse_tied(self, name: str) -> None:
        """Raise `ValueError` where one of two tied weights was trained without the other."""
        if self.base is None or not self.base.tied:
            return
        if _last(name) == "lm_head":
            raise ValueError(
                f"the adapter {self.folder} changes {name:.200}, but {self.base.folder} ties it to the input "
                "embeddings, which would change with it; leave lm_head out of target_modules and modules_to_save"
            )
        alone = not any(_last(saved) == "lm_head" for saved in self.file.saved)
        if _last(name) in EMBEDDINGS and alone and not self.config.settings.get("ensure_weight_tying"):
            raise ValueError(
                f"the adapter {self.folder} changes {name:.200} alone, but {self.base.folder} ties its output head "
                "to it, which would change with it; train with ensure_weight_tying=True, or leave the embedding alone"
            )

    # --- the base --------------------------------------------------------------------------------------

    def _in_base(self, name: str, shape: tuple[int, int] | None = None) -> str:
        """The base's name of a tensor, which has this shape there if one is given."""
        if self.base is None:
            return name
        if (known := self.base.name_of(name)) is None:
            raise self.base.absent(self.folder, name)
        if shape is not None:
            self.base.refuse_unfit(self.folder, known, shape)
        return known

    def _needs_base(self, name: str) -> ValueError:
        return ValueError(
            f"{self.folder} holds {name:.200}, which is a change only beside the base's weight; read it with its base"
        )

    def _add(self, name: str, stored: StoredDelta) -> None:
        self.deltas[name] = StoredSum([self.deltas[name], stored]) if name in self.deltas else stored


def _last(name: str) -> str:
    """Of `model.embed_tokens.weight` the module's own name."""
    return name.rpartition(".")[0].rpartition(".")[2]

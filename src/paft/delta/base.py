"""The tensors of a base as adapters speak of them: under other prefixes, and some of them transposed. Without torch."""

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from paft.delta.rows import FLOATS
from paft.delta.stored import StoredTensor
from paft.files.jsonfile import read_object
from paft.files.safetensors import read_checkpoint

STORES_TRANSPOSED = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")
"""Values of `model_type` whose linear layers are transformers' Conv1D, with weights [in, out]."""
WRAPPERS = ("base_model", "model", "module", "transformer", "gpt_neox", "language_model", "pretrained_model")
"""What a name may begin with in one file and not in another: models are wrapped, and saved without their head."""
INSIDE = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""What torch puts into names of compiled, sharded and checkpointed modules."""


@dataclass(frozen=True)
class BaseTensors:
    """Every tensor of a model folder, and how its layers lie in it."""

    folder: Path
    tensors: Mapping[str, StoredTensor]
    transposed: bool | None
    """Whether linear layers are stored as [in, out]; None: of a model with code of its own, ask the adapter."""
    tied: bool
    """Whether the output head is the input embedding."""

    @classmethod
    def of(cls, folder: Path) -> "BaseTensors":
        """Raises `ValueError` for a folder that `read_checkpoint` refuses."""
        tensors = {
            name: StoredTensor(path, stored)
            for path, file in read_checkpoint(folder).items()
            for name, stored in file.items()
        }
        path = folder / "config.json"
        settings = read_object(path) if path.is_file() else {}
        known = settings.get("model_type") in STORES_TRANSPOSED
        transposed = None if settings.get("auto_map") and not known else known
        return cls(folder, tensors, transposed, bool(settings.get("tie_word_embeddings", False)))

    def name_of(self, name: str) -> str | None:
        """The base's own name of a tensor; None where it holds none of that name."""
        return find_name(name, self.tensors)

    def is_tied_head(self, name: str) -> bool:
        """Whether loading makes this tensor from the embedding, whatever the file holds."""
        return self.tied and name.split(".")[-2:-1] == ["lm_head"]

    def refuse_unfit(self, adapter: Path, name: str, shape: tuple[int, int]) -> None:
        """Raise `ValueError` unless a delta of this shape can be added to the tensor."""
        stored = self.tensors[name].stored
        if shape != self.tensors[name].shape:
            raise ValueError(
                f"the adapter {adapter} changes {name} as {list(shape)}, the base has {list(stored.shape)}: "
                "was it trained on another model?"
            )
        if stored.dtype not in FLOATS:
            raise ValueError(
                f"{name} is stored as {stored.dtype} in {self.folder}; a delta can only be added to {', '.join(FLOATS)}"
            )

    def absent(self, adapter: Path, name: str) -> ValueError:
        """The error to raise for a tensor that the base does not hold."""
        return ValueError(
            f"the adapter {adapter} changes {name:.200}, which {self.folder} does not hold; it holds "
            f"{', '.join(list(self.tensors)[:3])}, ...: was the adapter trained on another model?"
        )


def find_name(name: str, held: Container[str]) -> str | None:
    """A tensor's name among those of another file or model, which may wrap it otherwise; None where it is not there."""
    return next((candidate for candidate in _spellings(name) if candidate in held), None)


def plain_name(name: str) -> str:
    """A name without what torch puts into those of wrapped modules."""
    return ".".join(part for part in name.split(".") if part not in INSIDE)


def _spellings(name: str) -> Iterator[str]:
    """A name as it is, with fewer and fewer wrappers before it, and with one more."""
    parts = name.split(".")
    yield name
    while len(parts) > 1 and parts[0] in WRAPPERS:
        parts = parts[1:]
        yield ".".join(parts)
    yield from (f"{wrapper}.{name}" for wrapper in WRAPPERS)
    yield from (f"{wrapper}.{'.'.join(parts)}" for wrapper in WRAPPERS)

"""Models as a mergekit YAML names them: a folder or hub repository, with `@revision`, and with `+adapter`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Source:
    """A folder of this disk, or a repository whose files are in the cache of the Hugging Face hub."""

    path: str
    revision: str | None = None

    @classmethod
    def parse(cls, value: Any) -> "Source":
        if isinstance(value, Mapping) and {"path"} <= value.keys() <= {"path", "revision"}:
            path, revision = value["path"], value.get("revision")
            if (
                isinstance(path, str)
                and f"{path}{revision}".isprintable()
                and isinstance(revision, str | None)
            ):
                return cls(path, revision)
        if not isinstance(value, str) or not value.isprintable() or not value or value.count("@") > 1:
            raise ValueError(
                f"a model must be a folder or a repository with at most one @revision, got {value!r:.200}"
            )
        path, _, revision = value.partition("@")
        return cls(path, revision or None)

    def __str__(self) -> str:
        return f"{self.path}@{self.revision}" if self.revision else self.path

    def folder(self) -> Path:
        """Where its files are. Raises `ValueError` with the command that brings them."""
        if Path(self.path).is_dir():
            return Path(self.path)
        from huggingface_hub import snapshot_download

        try:
            return Path(snapshot_download(self.path, revision=self.revision, local_files_only=True))
        except (OSError, ValueError):
            at = f" --revision {self.revision}" * bool(self.revision)
            raise ValueError(
                f"{self} is no folder, and no repository in the cache of this machine; paths are relative to the "
                f"folder you run in, and `hf download {self.path}{at}` brings a repository"
            ) from None


@dataclass(frozen=True)
class Reference:
    """One input of a merge: a model, and the adapter that is added to it first."""

    model: Source
    adapter: Source | None = None

    @classmethod
    def parse(cls, value: Any) -> "Reference":
        """Raises `ValueError` for what names no model."""
        if isinstance(value, Mapping) and "model" in value:
            if unknown := sorted(value.keys() - {"model", "lora"}):
                raise ValueError(
                    f"{', '.join(map(str, unknown))} of a model cannot be used here: {value!r:.200}"
                )
            adapter = value.get("lora")
            return cls(Source.parse(value["model"]), None if adapter is None else Source.parse(adapter))
        if not isinstance(value, str) or value.count("+") > 1:
            raise ValueError(f"a model must be written as MODEL or MODEL+ADAPTER, got {value!r:.200}")
        model, _, lora = value.partition("+")
        return cls(Source.parse(model), Source.parse(lora) if lora else None)

    def __str__(self) -> str:
        return f"{self.model}+{self.adapter}" if self.adapter else str(self.model)

"""Reads what W&B wrote offline: `run-<id>.wandb` is a LevelDB log of protobuf records."""

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

HEADER, BLOCK = 7, 32768
"""Bytes of the file's and of each chunk's header (crc, length, type), and of a block."""


@dataclass
class OfflineRun:
    id: str = ""
    group: str = ""
    job_type: str = ""
    name: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    artifacts: list[tuple[str, str]] = field(default_factory=list)
    exited: bool = False


def chunks(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = HEADER
    while at + HEADER <= len(data):
        if BLOCK - at % BLOCK < HEADER:  # too little left in the block for a header: padding
            at += BLOCK - at % BLOCK
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        yield kind, data[at + HEADER : at + HEADER + length]
        at += HEADER + length


def records(path: Path) -> Iterator[Record]:
    data, parts = path.read_bytes(), b""
    assert data[:4] == b":W&B", f"{path} is not a W&B file"
    for kind, part in chunks(data):
        parts = part if kind in (1, 2) else parts + part  # whole | first | middle | last
        if kind in (1, 4):
            yield Record.FromString(parts)


def decoded(items: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def read_run(path: Path) -> OfflineRun:
    run = OfflineRun()
    for record in records(path):
        match record.WhichOneof("record_type"):
            case "run":
                r = record.run
                run.id, run.group, run.job_type, run.name = r.run_id, r.run_group, r.job_type, r.display_name
                run.config |= decoded(r.config.update)
            case "config":
                run.config |= decoded(record.config.update)
            case "summary":
                run.summary |= decoded(record.summary.update)
            case "history":
                run.history.append(decoded(record.history.item))
            case "artifact":
                run.artifacts.append((record.artifact.type, record.artifact.name))
            case "exit":
                run.exited = record.exit.exit_code == 0
    return run


def read_runs(logs: Path) -> list[OfflineRun]:
    """Every offline run under `<logs>/wandb`."""
    return [read_run(path) for path in sorted((logs / "wandb").glob("offline-run-*/run-*.wandb"))]

"""What every fuzz test asks of a refusal, a place where escapes show, and safetensors files that lie."""

import json
import os
import pickle
import resource
import struct
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import settings
from hypothesis import strategies as st

from paft.command.mistakes import is_mistake

Result = TypeVar("Result")

REFUSALS = (ValueError, FileNotFoundError)
LONGEST_MESSAGE = 6_000
"""Characters: twenty bad rows and a list of columns fit, the whole of a hostile file does not."""
SPARE = 2**30
"""Bytes of address space that a test may take beyond what it began with."""

text = st.text(st.characters(codec=None, exclude_categories=()), max_size=12)
"""Any text, lone surrogates and NUL included."""
big = st.sampled_from([2**31, 2**53 + 1, 2**63, -(2**63) - 1, 2**64, 10**30, 10**400])
number = st.integers() | big | st.floats()
scalar = st.none() | st.booleans() | number | text
value = st.recursive(
    scalar, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4), max_leaves=8
)
"""Anything JSON can say, and what Python's reader of it takes besides: NaN, infinities, integers of any size."""
ESCAPES = [
    "../outside/secret",
    "../../outside/secret",
    "/etc/passwd",
    "sub/../../outside/secret",
    "..",
    ".",
    "",
]
"""Names that lead out of a folder, or are no file's name at all."""


def cases(share: float = 1.0) -> settings:
    """This test's share of the profile's number of examples: the slower ones run fewer."""
    return settings(max_examples=max(5, int(settings.default.max_examples * share)))


def attempt(call: Callable[[], Result], *words: object) -> Result | None:
    """What `call` returns, or None if it refuses: a ValueError or FileNotFoundError of PAFT's own, raised by PAFT's
    code and not by a library's, printable, of bounded length, and with each of `words` in it.

    Anything else a call may raise fails the test.
    """
    try:
        return call()
    except REFUSALS as error:
        assert type(error) in REFUSALS, f"a library's own {type(error).__name__}: {error}"
        assert is_mistake(error), f"raised inside a library: {error}"
        message = str(error)
        message.encode()
        assert 10 < len(message) < LONGEST_MESSAGE, message[:200]
        for word in words:
            assert str(word) in message, f"{word!r} is not named in: {message}"
        return None


class Ground:
    """A folder to work in (`inside`), beside one that nothing may touch."""

    def __init__(self, root: Path, outside: Mapping[str, bytes]) -> None:
        self.inside, self.outside = root / "inside", root / "outside"
        self.inside.mkdir()
        self.outside.mkdir()
        for name, content in outside.items():
            (self.outside / name).write_bytes(content)

    @property
    def pickle(self) -> bytes:
        """A pickle that writes `outside/executed` when it is loaded."""
        return pickle.dumps(_Canary(str(self.outside / "executed")))

    def folder(self, name: str, **files: bytes) -> Path:
        folder = self.inside / name
        folder.mkdir()
        for file, content in files.items():
            (folder / file).write_bytes(content)
        return folder


class _Canary:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (self.path,)


@contextmanager
def ground(**outside: bytes) -> Iterator[Ground]:
    """A fresh `Ground`, gone afterwards, with these files beside a `secret` in `outside`, which must stay as it is."""
    with tempfile.TemporaryDirectory() as root:
        fresh = Ground(Path(root).resolve(), {"secret": b"secret"} | outside)
        before = tree(fresh.outside)
        yield fresh
        assert tree(fresh.outside) == before
        assert {path.name for path in Path(root).iterdir()} == {"inside", "outside"}


def tree(folder: Path) -> dict[str, str | bytes]:
    """Every path below `folder`: a file's bytes, where a link leads, or "folder"."""
    return {str(path.relative_to(folder)): _content(path) for path in sorted(folder.rglob("*"))}


def _content(path: Path) -> str | bytes:
    if path.is_symlink():
        return f"-> {os.readlink(path)}"
    return path.read_bytes() if path.is_file() else "folder"


@contextmanager
def bounded_memory(spare: int = SPARE) -> Iterator[None]:
    """Inside, asking for more than `spare` bytes beyond the present use is a MemoryError."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + spare, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


# --- safetensors -------------------------------------------------------------------------------------


def safetensors(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """A file with this header, or these bytes in its place, and this stated header length, true or not."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def entries(shapes: dict[str, list[int]]) -> tuple[dict[str, Any], bytes]:
    """Header and bytes of float32 tensors of small values."""
    header: dict[str, Any] = {}
    data = b""
    for name, shape in shapes.items():
        count = 1
        for size in shape:
            count *= size
        begin, data = len(data), data + struct.pack(f"<{count}f", *(0.01 * (i % 7 - 3) for i in range(count)))
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, len(data)]}
    return header, data


damage = st.one_of(
    st.tuples(st.just("cut"), st.floats(0, 1)),
    st.tuples(st.just("byte"), st.floats(0, 1), st.integers(0, 255)),
    st.tuples(st.just("insert"), st.floats(0, 1), st.binary(max_size=9)),
    st.tuples(
        st.just("length"),
        st.sampled_from([0, 1, 7, 2**31, 2**40, 2**63, 2**64 - 1]) | st.integers(0, 2**64 - 1),
    ),
    st.tuples(st.just("append"), st.binary(min_size=1, max_size=64)),
)
"""One thing that may happen to the bytes of a file; `damaged` applies it."""


def damaged(content: bytes, how: tuple[Any, ...]) -> bytes:
    match how:
        case ("cut", share):
            return content[: int(share * len(content))]
        case ("byte", share, byte):
            at = int(share * (len(content) - 1))
            return content[:at] + bytes([byte]) + content[at + 1 :]
        case ("insert", share, more):
            at = int(share * len(content))
            return content[:at] + more + content[at:]
        case ("length", length):
            return struct.pack("<Q", length) + content[8:]
        case ("append", more):
            return content + more
    raise AssertionError(how)

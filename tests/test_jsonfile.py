"""What is said of JSON that cannot be read."""

from pathlib import Path

import pytest

from paft.files.jsonfile import parse, read_object


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"{", "broken JSON at column 2"),
        (b"{\n\n?}", "broken JSON at line 3, column 1"),
        (b'"\xff"', "byte 2 is not UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b"1" * 5_000, "more than 4300 digits"),
    ],
)
def test_what_is_wrong_is_said_in_words(raw: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        parse(raw)
    assert type(caught.value) is ValueError


def test_a_byte_order_mark_is_no_part_of_the_text() -> None:
    assert parse(b'\xef\xbb\xbf{"a": 1}') == {"a": 1}


@pytest.mark.parametrize(
    ("raw", "message"), [(None, "no file"), (b"[]", "an object, got list"), (b"", "broken JSON")]
)
def test_an_object_is_read_or_its_file_is_named(tmp_path: Path, raw: bytes | None, message: str) -> None:
    if raw is not None:
        (tmp_path / "x.json").write_bytes(raw)
    with pytest.raises(ValueError, match=f"x.json.*{message}|{message}.*x.json"):
        read_object(tmp_path / "x.json")

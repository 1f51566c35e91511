"""A merged model appears in a new or empty folder, whole or not at all."""

from pathlib import Path

import pytest

from paft.files.appearing import appearing


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    out = tmp_path / "new" / "m"
    with appearing(out) as folder:
        (folder / "model").write_text("x")
        assert not out.exists()
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["model"] and (
        out / "model"
    ).is_file()
    (tmp_path / "empty").mkdir()
    with appearing(tmp_path / "empty") as folder:
        (folder / "model").write_text("x")
    assert (tmp_path / "empty" / "model").is_file()


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), appearing(tmp_path / "m") as folder:
        (folder / "model").write_text("x")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("held", ["model.safetensors", "notes.txt", ".git"])
def test_a_folder_in_use_is_refused_and_stays(held: str, tmp_path: Path) -> None:
    (tmp_path / held).write_text("x")
    with pytest.raises(ValueError, match=f"must be new or empty, .* holds {held}; choose another"):
        appearing(tmp_path).__enter__()
    assert (tmp_path / held).read_text() == "x"


def test_a_file_and_another_merge_at_work_are_refused(tmp_path: Path) -> None:
    (tmp_path / "m").write_text("x")
    with pytest.raises(ValueError, match="holds no folder but a file"):
        appearing(tmp_path / "m").__enter__()
    (tmp_path / "n.partial").mkdir()
    with pytest.raises(ValueError, match="another process writes it, or one was killed"):
        appearing(tmp_path / "n").__enter__()

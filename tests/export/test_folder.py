"""A folder is written completely or not at all."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from eugen_nerf.errors import UserError
from eugen_nerf.export.folder import write_folder


def fill(folder: Path) -> None:
    (folder / "scene").mkdir()
    (folder / "scene" / "scene.json").write_text("new")


def test_appears_with_its_parents_and_leaves_nothing_else(tmp_path: Path) -> None:
    write_folder(tmp_path / "a" / "b", fill)
    assert (tmp_path / "a" / "b" / "scene" / "scene.json").read_text() == "new"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]


def test_an_empty_folder_may_be_filled(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    write_folder(tmp_path / "out", fill)
    assert (tmp_path / "out" / "scene" / "scene.json").is_file()


class TestExisting:
    def test_is_kept_without_overwrite(self, tmp_path: Path) -> None:
        write_folder(tmp_path / "out", lambda folder: (fill(folder), (folder / "old").write_text("x"))[0])
        with pytest.raises(UserError, match=r"not empty.*--overwrite"):
            write_folder(tmp_path / "out", fill)
        assert (tmp_path / "out" / "old").is_file()

    def test_is_replaced_whole_with_overwrite(self, tmp_path: Path) -> None:
        write_folder(tmp_path / "out", lambda folder: (fill(folder), (folder / "old").write_text("x"))[0])
        write_folder(tmp_path / "out", fill, overwrite=True)
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["scene"]
        assert [path.name for path in tmp_path.iterdir()] == ["out"]

    def test_other_peoples_files_are_never_deleted(self, tmp_path: Path) -> None:
        (tmp_path / "thesis.tex").write_text("x")
        with pytest.raises(UserError, match="other files than an exported scene"):
            write_folder(tmp_path, fill, overwrite=True)
        assert (tmp_path / "thesis.tex").is_file()

    def test_a_file_in_the_way(self, tmp_path: Path) -> None:
        (tmp_path / "out").write_text("x")
        with pytest.raises(UserError, match="is a file"):
            write_folder(tmp_path / "out", fill, overwrite=True)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_full_disk_leaves_what_was_there(tmp_path: Path, overwrite: bool) -> None:
    output = tmp_path / "out"
    if overwrite:
        write_folder(output, lambda folder: (fill(folder), (folder / "old").write_text("x"))[0])

    def run_out_of_space(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(UserError, match="disk is full; nothing was written"):
        write_folder(output, run_out_of_space, overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir()] == (["out"] if overwrite else [])
    assert not overwrite or (output / "old").is_file()


def test_an_error_in_between_leaves_nothing(tmp_path: Path) -> None:
    def interrupted(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_folder(tmp_path / "out", interrupted)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"file/out: cannot be written"):
        write_folder(tmp_path / "file" / "out", fill)

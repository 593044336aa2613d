"""A folder is written completely or not at all."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from eugen_nerf.errors import UserError
from eugen_nerf.export.folder import check_output, write_folder

NEW, OLD = (json.dumps({"format": "eugen-scene", "title": title}) for title in ("new", "old"))


def fill(folder: Path) -> None:
    (folder / "scene").mkdir()
    (folder / "scene" / "scene.json").write_text(NEW)


def test_appears_with_its_parents_and_leaves_nothing_else(tmp_path: Path) -> None:
    write_folder(tmp_path / "a" / "b", fill)
    assert (tmp_path / "a" / "b" / "scene" / "scene.json").read_text() == NEW
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

    def test_its_names_are_replaced_whole_and_others_kept(self, tmp_path: Path) -> None:
        """The folder may be a checkout from which the page is published."""
        output = tmp_path / "out"
        write_folder(output, lambda folder: (fill(folder), (folder / "scene" / "photo").write_text("x"))[0])
        (output / ".git").mkdir()
        (output / ".git" / "HEAD").write_text("ref")
        (output / "CNAME").write_text("example.org")
        write_folder(output, fill, overwrite=True)
        assert {path.name for path in output.iterdir()} == {".git", "CNAME", "scene"}
        assert [path.name for path in (output / "scene").iterdir()] == ["scene.json"]
        assert (output / ".git" / "HEAD").read_text() == "ref"
        assert (output / "CNAME").read_text() == "example.org"
        assert [path.name for path in tmp_path.iterdir()] == ["out"]

    def test_what_a_link_leads_to_is_not_written_to(self, tmp_path: Path) -> None:
        output = tmp_path / "out"
        write_folder(output, fill)
        (output / "scene").rename(tmp_path / "elsewhere")
        (output / "scene").symlink_to(tmp_path / "elsewhere")
        (tmp_path / "elsewhere" / "scene.json").write_text(OLD)
        write_folder(output, fill, overwrite=True)
        assert (output / "scene" / "scene.json").read_text() == NEW
        assert (tmp_path / "elsewhere" / "scene.json").read_text() == OLD

    def test_other_peoples_files_are_never_deleted(self, tmp_path: Path) -> None:
        (tmp_path / "thesis.tex").write_text("x")
        with pytest.raises(UserError, match="holds no exported scene"):
            write_folder(tmp_path, fill, overwrite=True)
        assert (tmp_path / "thesis.tex").is_file()

    @pytest.mark.parametrize("content", ['{"mine": 1}', '["eugen-scene"]', "{"])
    def test_a_scene_of_something_else_is_none_of_ours(self, tmp_path: Path, content: str) -> None:
        for name in ("index.html", "scene/scene.json", "scene/my.txt"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(content)
        with pytest.raises(UserError, match="holds no exported scene"):
            write_folder(tmp_path, fill, overwrite=True)
        assert (tmp_path / "scene" / "my.txt").read_text() == content

    def test_stays_the_same_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Whoever stands in it, and whatever links to it, sees the new content."""
        (tmp_path / "out").mkdir()
        (tmp_path / "link").symlink_to("out")
        monkeypatch.chdir(tmp_path / "out")
        write_folder(Path("."), fill)
        assert Path("scene/scene.json").read_text() == NEW
        Path("scene/scene.json").write_text(OLD)
        write_folder(tmp_path / "link", fill, overwrite=True)
        assert (tmp_path / "link").is_symlink()
        assert Path("scene/scene.json").read_text() == NEW
        assert [path.name for path in Path(".").iterdir()] == ["scene"]

    def test_is_put_back_where_the_new_content_cannot_be_moved_in(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        output = tmp_path / "out"
        write_folder(output, lambda folder: (fill(folder), (folder / "a").write_text("old"))[0])
        (output / "notes.txt").write_text("x")
        (output / "scene" / "scene.json").write_text(OLD)
        rename = Path.rename

        def refuse_the_second(path: Path, target: Path) -> Path:
            if path.parent.name == "new" and path.name == "scene":
                raise OSError(errno.EIO, "Input/output error")
            return rename(path, target)

        monkeypatch.setattr(Path, "rename", refuse_the_second)
        with pytest.raises(UserError, match="cannot be written"):
            write_folder(output, lambda folder: (fill(folder), (folder / "a").write_text("new"))[0], overwrite=True)
        assert {path.name for path in output.iterdir()} == {"scene", "a", "notes.txt"}
        assert (output / "scene" / "scene.json").read_text() == OLD
        assert (output / "a").read_text() == "old"

    @pytest.mark.parametrize("moment", ["before", "after"])
    def test_is_put_back_when_interrupted_beside_a_move(
        self, moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        output = tmp_path / "out"
        write_folder(output, fill)
        (output / "scene" / "scene.json").write_text(OLD)
        rename, interrupted = Path.rename, False

        def interrupt_once(path: Path, target: Path) -> Path:
            nonlocal interrupted
            if interrupted:
                return rename(path, target)
            interrupted = True
            if moment == "after":
                rename(path, target)
            raise KeyboardInterrupt

        monkeypatch.setattr(Path, "rename", interrupt_once)
        with pytest.raises(KeyboardInterrupt):
            write_folder(output, fill, overwrite=True)
        assert (output / "scene" / "scene.json").read_text() == OLD
        assert [path.name for path in output.iterdir()] == ["scene"]

    def test_what_cannot_be_put_back_is_not_deleted(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        output = tmp_path / "out"
        write_folder(output, fill)
        (output / "scene" / "scene.json").write_text(OLD)
        rename = Path.rename

        def only_away(path: Path, target: Path) -> Path:
            if path.parent == output:
                return rename(path, target)
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(Path, "rename", only_away)
        with pytest.raises(UserError, match=r"could not be put back. Its files are in .*/old; move them back"):
            write_folder(output, fill, overwrite=True)
        (kept,) = output.glob(".out.*/old/scene/scene.json")
        assert kept.read_text() == OLD

    def test_one_that_another_process_has_filled_meanwhile(self, tmp_path: Path) -> None:
        def slow(folder: Path) -> None:
            write_folder(tmp_path / "out", lambda other: (fill(other), (other / "first").write_text("x"))[0])
            fill(folder)

        with pytest.raises(UserError, match="cannot be written"):
            write_folder(tmp_path / "out", slow)
        assert (tmp_path / "out" / "first").is_file()
        assert [path.name for path in tmp_path.iterdir()] == ["out"]

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
    with pytest.raises(UserError, match="file is a file"):  # reported before the export, which takes minutes
        check_output(tmp_path / "file" / "out", overwrite=False)

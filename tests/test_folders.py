"""Programs check that a folder is writable before they start to work."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from eugen_nerf.errors import UserError
from eugen_nerf.folders import check_place, refused


def test_places_that_can_be_written_stay_as_they_are(tmp_path: Path) -> None:
    check_place(tmp_path, "--output")
    check_place(tmp_path / "new" / "folder", "--output")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("inside", ["", "run", "run/deeper"])
def test_a_file_in_the_way(tmp_path: Path, inside: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written \(.*/file is a file\)\. Choose another --output\."):
        check_place(tmp_path / "file" / inside, "--output")


@pytest.mark.parametrize("missing", [os.W_OK, os.X_OK], ids=["read only", "not to be entered"])
def test_a_folder_that_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: int) -> None:
    monkeypatch.setattr(os, "access", lambda place, mode: not mode & missing)  # root can write everywhere
    with pytest.raises(UserError, match=r"new: cannot be written \(.* may not be written to\)"):
        check_place(tmp_path / "new", "--output")


def test_what_is_told_of_errors() -> None:
    full = refused(Path("page"), OSError(errno.ENOSPC, "x"), "--output-dir")
    assert str(full) == ("page: the disk is full; nothing was written. Free some space or choose another --output-dir.")
    other = refused(Path("page"), OSError(errno.EROFS, "x"), "--output")
    assert str(other) == f"page: cannot be written ({os.strerror(errno.EROFS)}). Choose another --output."

"""Files appear atomically, with the permissions of the umask."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from eugen_nerf.files import new_file_beside, replace_file, replace_text


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_permissions_follow_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        replace_file(tmp_path / "x.cubin", b"1")
        new = new_file_beside(tmp_path / "x.so")
    finally:
        os.umask(before)
    assert new.suffix == ".so"
    for path in (tmp_path / "x.cubin", new):
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


def test_what_cannot_be_replaced_stays(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    with pytest.raises(OSError, match="x"):
        replace_file(tmp_path / "x", b"1")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_texts_may_name_files_that_are_not_utf8(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    replace_text(tmp_path / "x.md", f"{name} \N{GREEK SMALL LETTER SIGMA}\n")
    assert (tmp_path / "x.md").read_bytes() == b"caf\\udce9 \xcf\x83\n"

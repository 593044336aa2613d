"""Writing a folder completely or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from eugen_nerf.errors import UserError
from eugen_nerf.folders import check_place, refused

# Tells an exported folder from any other, in which --overwrite must not touch anything, by the format it names.
MARK = Path("scene/scene.json")
FORMAT = "eugen-scene"


def check_output(output: Path, overwrite: bool) -> None:
    """Raises UserError unless `write_folder` may write to `output`."""
    if not output.exists():
        check_place(output, "--output")
        return
    if not output.is_dir():
        raise UserError(f"{output}: is a file; --output takes a folder.")
    if not any(output.iterdir()):
        return
    if not overwrite:
        raise UserError(
            f"{output}: exists and is not empty. Choose another --output, or replace the page in it with --overwrite."
        )
    if not _is_export(output):
        raise UserError(
            f"{output}: is not empty and holds no exported scene, which is all that --overwrite replaces. Choose "
            "another --output."
        )


def _is_export(folder: Path) -> bool:
    try:
        described = json.loads((folder / MARK).read_text("utf8"))
    except (OSError, ValueError):
        return False
    return isinstance(described, dict) and described.get("format") == FORMAT


def write_folder(output: Path, fill: Callable[[Path], None], overwrite: bool = False) -> None:
    """Make a folder appear with all its content at once.

    A folder that is there already stays the same folder and changes its content: it may be a mount point, the target
    of a link, or where a shell or a web server stands. It may also hold what is not ours, as a checkout of a website
    does: of what is in it, only the names that `fill` writes are replaced, folders whole.

    Args:
        output: the folder; its parents are created.
        fill: writes the content into an empty folder that it is given.
        overwrite: replace an earlier export in the folder.

    Raises:
        UserError: `output` may not be replaced, cannot be written, or the disk is full. What was there stays.
    """
    check_output(output, overwrite)
    target = Path(os.path.realpath(output))
    exists = target.is_dir()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # On the same file system, so that renaming does not copy.
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target if exists else target.parent))
    except OSError as error:
        raise refused(output, error, "--output") from None
    try:
        new, old = temporary / "new", temporary / "old"
        new.mkdir()
        old.mkdir()
        fill(new)
        if exists:
            _exchange(target, new, old)
        else:
            new.rename(target)  # refused where another process has filled it meanwhile
    except OSError as error:
        raise refused(output, error, "--output") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _exchange(folder: Path, new: Path, old: Path) -> None:
    """Put the content of `new` into a folder and what has the same names there into `old`, or leave all as it is."""
    done: list[tuple[Path, Path]] = []

    def move(path: Path, destination: Path) -> None:
        path.rename(destination / path.name)
        done.append((path, destination / path.name))

    try:
        for path in list(new.iterdir()):
            present = folder / path.name
            if present.is_symlink() or present.exists():
                move(present, old)
            move(path, folder)
    except BaseException:
        for before, after in reversed(done):
            after.rename(before)
        raise

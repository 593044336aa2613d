"""Write a folder completely or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from eugen_nerf.errors import UserError
from eugen_nerf.folders import check_place, refused

# Identifies an exported folder by the format it names. --overwrite must not touch any other folder.
MARK = Path("scene/scene.json")
FORMAT = "eugen-scene"
# The built viewer's hash of its sources, for the tests. Pages have no such file, but those of earlier versions do.
BUILT_FROM = "sources.sha256"


def check_output(output: Path, overwrite: bool) -> None:
    """Raise UserError unless `write_folder` may write to `output`."""
    if os.path.exists(output) and not os.path.isdir(output):
        raise UserError(f"{output}: is a file; --output takes a folder.")
    check_place(output, "--output")
    try:
        if not os.path.exists(output) or not any(output.iterdir()):
            return
    except OSError as error:
        raise refused(output, error, "--output") from None
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
    """Write a folder with all its content at once.

    An existing folder is kept and only its content changes, because it may be a mount point, the target of a link, or
    the working directory of a shell or a web server. It may also contain other files, as the checkout of a website
    does. Only the names that `fill` writes are replaced, folders as a whole.

    Args:
        output: the folder; its parents are created.
        fill: writes the content into the empty folder that it is given.
        overwrite: replace an earlier export in the folder.

    Raises:
        UserError: `output` may not be replaced, cannot be written, or the disk is full. Its content is unchanged then,
            or the message says where it is.
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
    new, old = temporary / "new", temporary / "old"
    complete = False
    try:
        new.mkdir()
        old.mkdir()
        fill(new)
        if exists:
            _exchange(target, new, old)
        else:
            new.rename(target)  # fails if another process has filled it meanwhile
        complete = True
    except OSError as error:
        if os.path.isdir(old) and os.listdir(old):
            raise UserError(
                f"{output}: cannot be written ({error.strerror}), and the earlier page could not be put back. Its "
                f"files are in {old}; move them back."
            ) from None
        raise refused(output, error, "--output") from None
    finally:
        if complete or not os.path.isdir(old) or not os.listdir(old):  # what could not be put back is not deleted
            shutil.rmtree(temporary, ignore_errors=True)


def _exchange(folder: Path, new: Path, old: Path) -> None:
    """Move the content of `new` into a folder and what it replaces into `old`, or leave everything unchanged."""
    done: list[tuple[Path, Path]] = []

    def move(path: Path, destination: Path) -> None:
        done.append((path, destination / path.name))  # first, or an interrupt in between would forget it
        path.rename(destination / path.name)

    try:
        if (folder / BUILT_FROM).exists():
            move(folder / BUILT_FROM, old)
        for path in list(new.iterdir()):
            present = folder / path.name
            if present.is_symlink() or present.exists():
                move(present, old)
            move(path, folder)
    except BaseException:
        for before, after in reversed(done):
            if os.path.lexists(after):
                after.rename(before)
        raise

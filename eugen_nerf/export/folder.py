"""Writing a folder completely or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from eugen_nerf.errors import UserError
from eugen_nerf.folders import refused

# Tells an exported folder from any other that --overwrite must not delete.
MARK = Path("scene/scene.json")


def check_output(output: Path, overwrite: bool) -> None:
    """Raises UserError unless `write_folder` may write to `output`."""
    if not output.exists():
        return
    if not output.is_dir():
        raise UserError(f"{output}: is a file; --output takes a folder.")
    if not any(output.iterdir()):
        return
    if not overwrite:
        raise UserError(f"{output}: exists and is not empty. Choose another --output, or replace it with --overwrite.")
    if not (output / MARK).is_file():
        raise UserError(
            f"{output}: holds other files than an exported scene, which --overwrite does not delete. Choose another "
            "--output."
        )


def write_folder(output: Path, fill: Callable[[Path], None], overwrite: bool = False) -> None:
    """Make a folder appear with all its content at once.

    A folder that is there already stays the same folder and changes its content: it may be a mount point, the target
    of a link, or where a shell or a web server stands.

    Args:
        output: the folder; its parents are created.
        fill: writes the content into an empty folder that it is given.
        overwrite: replace an earlier export.

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
            _exchange(target, temporary, new, old)
        else:
            new.rename(target)  # refused where another process has filled it meanwhile
    except OSError as error:
        raise refused(output, error, "--output") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _exchange(folder: Path, temporary: Path, new: Path, old: Path) -> None:
    """Put a folder's content into `old` and that of `new` in its place, or leave all as it is."""
    done: list[tuple[Path, Path]] = []

    def move(path: Path, destination: Path) -> None:
        path.rename(destination / path.name)
        done.append((path, destination / path.name))

    try:
        for path in list(folder.iterdir()):
            if path != temporary:
                move(path, old)
        for path in list(new.iterdir()):
            move(path, folder)
    except BaseException:
        for before, after in reversed(done):
            after.rename(before)
        raise

"""Writing a folder completely or not at all."""

from __future__ import annotations

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

    Args:
        output: the folder; its parents are created.
        fill: writes the content into an empty folder that it is given.
        overwrite: replace an earlier export.

    Raises:
        UserError: `output` may not be replaced, cannot be written, or the disk is full. What was there stays.
    """
    output = output.absolute()
    check_output(output, overwrite)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        # Beside the output, so that renaming does not copy.
        temporary = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    except OSError as error:
        raise refused(output, error, "--output") from None
    try:
        content = temporary / "new"
        content.mkdir()
        fill(content)
        if output.exists():
            output.rename(temporary / "old")
        content.rename(output)
    except OSError as error:
        raise refused(output, error, "--output") from None
    finally:
        old = temporary / "old"
        if old.exists() and not output.exists():
            old.rename(output)
        shutil.rmtree(temporary, ignore_errors=True)

"""Files that appear whole or not at all, to every process that reads them."""

from __future__ import annotations

import os
import uuid
from pathlib import Path


def new_file_beside(path: Path) -> Path:
    """A new, empty file in the folder of `path`, to be filled and then renamed to it.

    Who may read it is what the user's umask says. Files of `tempfile` are for their owner alone, and stay so when
    they are renamed.

    Raises:
        OSError: the folder is not there, or cannot be written.
    """
    new = path.with_name(f".{uuid.uuid4().hex}{path.suffix}")
    new.touch(exist_ok=False)
    return new


def replace_file(path: Path, content: bytes) -> None:
    """Write a file in one go: readers see the old content or the new, never a part.

    Raises:
        OSError: it cannot be written, or the disk is full; the old content stays.
    """
    new = new_file_beside(path)
    try:
        new.write_bytes(content)
        os.replace(new, path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise

"""Write files atomically: other processes see a complete file or none."""

from __future__ import annotations

import os
import uuid
from pathlib import Path


def new_file_beside(path: Path) -> Path:
    """Create an empty file in the folder of `path`, to be filled and then renamed to `path`.

    Its permissions follow the user's umask. Files from `tempfile` are readable by their owner alone, and remain so
    after renaming.

    Raises:
        OSError: the folder does not exist or is not writable.
    """
    new = path.with_name(f".{uuid.uuid4().hex}{path.suffix}")
    new.touch(exist_ok=False)
    return new


def replace_file(path: Path, content: bytes) -> None:
    """Replace a file atomically: readers see the old content or the new content, never a partial file.

    Raises:
        OSError: the file cannot be written, or the disk is full. The old content is kept.
    """
    new = new_file_beside(path)
    try:
        new.write_bytes(content)
        os.replace(new, path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise


def replace_text(path: Path, text: str) -> None:
    """Replace a text file atomically, in UTF-8. File names in the text need not be UTF-8: such bytes are escaped.

    Raises:
        OSError: see `replace_file`.
    """
    replace_file(path, text.encode("utf8", "backslashreplace"))

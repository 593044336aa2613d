"""Check output folders before minutes of work, and word the errors of folders that cannot be written."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from eugen_nerf.errors import UserError


def check_place(folder: Path, option: str) -> None:
    """Check that a folder can be created or written to, without writing anything.

    Args:
        folder: the folder; neither it nor its parents need to exist.
        option: the command-line option that selects the folder, for the message.

    Raises:
        UserError: the folder or one of its parents is a file or is not writable.
    """
    for place in (folder.absolute(), *folder.absolute().parents):
        try:
            place.lstat()
        except (FileNotFoundError, NotADirectoryError):  # the latter: a parent is a file, which the loop reaches next
            continue
        except OSError as error:
            raise refused(folder, error, option) from None
        if not place.is_dir():
            raise UserError(f"{folder}: cannot be written ({place} is a file). Choose another {option}.")
        if not os.access(place, os.W_OK | os.X_OK):
            raise UserError(f"{folder}: cannot be written ({place} may not be written to). Choose another {option}.")
        return


def refused(path: Path, error: OSError, option: str) -> UserError:
    """The error to raise after writing `path` failed. The caller must have removed what was written.

    Args:
        option: the command-line option that selects the location.
    """
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(f"{path}: the disk is full; nothing was written. Free some space or choose another {option}.")
    reason = os.strerror(error.errno) if error.errno else str(error)
    return UserError(f"{path}: cannot be written ({reason}). Choose another {option}.")

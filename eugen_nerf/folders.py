"""Folders that a program is going to write: whether it may, before minutes of work, and what to say if not."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from eugen_nerf.errors import UserError


def check_place(folder: Path, option: str) -> None:
    """Look whether a folder could be made, or written to, without writing anything.

    Args:
        folder: need not be there, nor those above it.
        option: of the command line that chooses it, for the message.

    Raises:
        UserError: something on the way to it is a file, or may not be written to.
    """
    for place in (folder.absolute(), *folder.absolute().parents):
        try:
            place.lstat()
        except (FileNotFoundError, NotADirectoryError):  # the latter: a file on the way, which comes next
            continue
        except OSError as error:
            raise refused(folder, error, option) from None
        if not place.is_dir():
            raise UserError(f"{folder}: cannot be written ({place} is a file). Choose another {option}.")
        if not os.access(place, os.W_OK | os.X_OK):
            raise UserError(f"{folder}: cannot be written ({place} may not be written to). Choose another {option}.")
        return


def refused(path: Path, error: OSError, option: str) -> UserError:
    """What to tell about an error while `path` was written; nothing of it may be left.

    Args:
        option: of the command line that chooses the place.
    """
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(f"{path}: the disk is full; nothing was written. Free some space or choose another {option}.")
    reason = os.strerror(error.errno) if error.errno else str(error)
    return UserError(f"{path}: cannot be written ({reason}). Choose another {option}.")

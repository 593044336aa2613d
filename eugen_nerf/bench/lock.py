"""A lock that admits one program at a time to a folder."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from eugen_nerf.errors import UserError

LOCK = ".lock"


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Lock a folder against other programs that use this lock. The folder is created if it does not exist.

    The system releases the lock when the process and those that it started with `close_fds=False` have ended, however
    they ended. The lock file stays: another process may already have opened it, and would then lock a file that no
    other process finds.

    Raises:
        UserError: another program is using the folder, or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Open for writing, which NFS requires for an exclusive lock.
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}).") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{folder}: another run is writing there{_holder(descriptor)}. Wait for its end, end it, or choose "
                "another folder."
            ) from None
        except OSError:
            pass  # a file system without locks
        else:
            os.set_inheritable(descriptor, True)  # workers that outlive a killed runner keep the folder locked
            with contextlib.suppress(OSError):  # the holder's name only improves the message of others
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _holder(descriptor: int) -> str:
    text = os.pread(descriptor, 200, 0).decode(errors="replace")
    return f" ({text})" if text.isprintable() and text else ""

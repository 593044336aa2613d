"""One program at a time in a folder."""

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
    """Keep other programs that ask for it too out of a folder, which is made if it is not there.

    The system lets go of the lock when the process ends, however it ends. The file stays: somebody else may have
    opened it already, and would then lock a file that nobody finds any more.

    Raises:
        UserError: another program is at work there, or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Open for writing: over NFS nothing else can be locked for one alone.
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
            with contextlib.suppress(OSError):  # who it is only makes the message of others better
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _holder(descriptor: int) -> str:
    text = os.pread(descriptor, 200, 0).decode(errors="replace")
    return f" ({text})" if text.isprintable() and text else ""

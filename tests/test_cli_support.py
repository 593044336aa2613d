"""What every command of this package does when it ends."""

from __future__ import annotations

import io
import os
import signal

import pytest
from rich.console import Console

from eugen_nerf.cli_support import exit_on_user_error
from eugen_nerf.errors import UserError


@pytest.fixture
def console() -> Console:
    """A console whose `file` collects the printed text."""
    return Console(file=io.StringIO(), width=120)


@pytest.mark.parametrize(
    ("error", "status", "told"),
    [(UserError("a[b] is wrong"), 1, "Error: a[b] is wrong"), (KeyboardInterrupt(), 130, "Interrupted; nothing left.")],
)
def test_status_and_message(console: Console, error: BaseException, status: int, told: str) -> None:
    with pytest.raises(SystemExit) as ended, exit_on_user_error(console, "Interrupted; nothing left."):
        raise error
    assert ended.value.code == status
    assert console.file.getvalue() == f"{told}\n"  # type: ignore[attr-defined]


def test_being_told_to_end_is_being_interrupted(console: Console) -> None:
    """Termination, as by a job's time limit: unfinished work is cleaned up."""
    before = signal.getsignal(signal.SIGTERM)
    cleaned = []

    def work() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.sigtimedwait([], 5)
        finally:
            cleaned.append(True)

    with pytest.raises(SystemExit) as ended, exit_on_user_error(console):
        work()
    assert ended.value.code == 130
    assert cleaned
    assert signal.getsignal(signal.SIGTERM) is before

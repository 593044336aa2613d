"""What every command of this package does when it ends."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys

import pytest
import torch
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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_being_told_to_end_is_being_interrupted(console: Console, number: signal.Signals) -> None:
    """By a job's time limit, or because the terminal was closed: unfinished work is cleaned up."""
    before = signal.signal(number, signal.SIG_DFL)  # under nohup, SIGHUP is ignored
    cleaned = []

    def work() -> None:
        try:
            os.kill(os.getpid(), number)
            signal.sigtimedwait([], 5)
        finally:
            cleaned.append(True)

    try:
        with pytest.raises(SystemExit) as ended, exit_on_user_error(console):
            work()
        assert signal.getsignal(number) == signal.SIG_DFL
    finally:
        signal.signal(number, before)
    assert ended.value.code == 130
    assert cleaned


def test_what_nohup_ignores_stays_ignored(console: Console) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with exit_on_user_error(console):
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_full_gpu_is_told_in_one_message(console: Console) -> None:
    with pytest.raises(SystemExit) as ended, exit_on_user_error(console):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nadvice of PyTorch")
    assert ended.value.code == 1
    told = console.file.getvalue()  # type: ignore[attr-defined]
    assert "Tried to allocate 2 GiB. Free memory of the GPU, or hide the GPU with CUDA_VISIBLE_DEVICES=" in " ".join(
        told.split()
    )
    assert "advice of PyTorch" not in told
    with pytest.raises(RuntimeError, match="another"), exit_on_user_error(console):
        raise RuntimeError("another")


def test_any_file_name_can_be_printed() -> None:
    """Names need not be UTF-8, and are no emoji codes."""
    program = (
        "from eugen_nerf.cli_support import *; from eugen_nerf.errors import UserError\n"
        "with exit_on_user_error(make_console()): raise UserError('caf\\udce9:x: is missing')"
    )
    environment = {**os.environ, "PYTHONIOENCODING": "utf8", "PYTHONPATH": os.getcwd()}
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, env=environment, check=False)
    assert (result.returncode, result.stderr) == (1, b"")
    assert result.stdout.strip() == b"Error: caf\\udce9:x: is missing"

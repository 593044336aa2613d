"""Run workers on this machine; the base class of other engines."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

SECONDS_TO_STOP = 5.0
# Like `python -m eugen_nerf.bench.worker`, but with this package's folder in place of the working directory, which may
# hold another checkout or a module that shadows one of Python's.
WORKER = """
import sys
if sys.path[0] == "":
    del sys.path[0]
if {package!r} not in sys.path:
    sys.path.insert(0, {package!r})
from eugen_nerf.bench.worker import main
main()
"""


class Engine(ABC):
    """Starts workers on the folders of jobs. When `poll` reports its end, a worker's result is in the folder."""

    @abstractmethod
    def has_room(self) -> bool:
        """Whether another job may be started now."""

    @abstractmethod
    def start(self, folder: Path) -> None:
        """Start the job of a folder."""

    @abstractmethod
    def poll(self, folder: Path) -> str | None:
        """None while the job runs, then how its process ended."""

    @abstractmethod
    def stop(self) -> None:
        """End all jobs that are still running."""


class LocalEngine(Engine):
    """Runs one job at a time on each GPU of this machine, or a single job if there is no GPU."""

    def __init__(self) -> None:
        self._free = visible_devices()
        self._running: dict[Path, tuple[subprocess.Popen[bytes], str | None]] = {}

    def has_room(self) -> bool:
        return bool(self._free)

    def start(self, folder: Path) -> None:
        device = self._free.pop(0)
        environment = dict(os.environ)
        if device is not None:
            environment["CUDA_VISIBLE_DEVICES"] = device
        self._running[folder] = (start_worker(folder, environment), device)

    def poll(self, folder: Path) -> str | None:
        process, device = self._running[folder]
        if process.poll() is None:
            return None
        end_worker(process)
        del self._running[folder]
        self._free.append(device)
        return describe_exit(process.returncode)

    def stop(self) -> None:
        for process, _ in self._running.values():
            process.terminate()
        for process, device in self._running.values():
            end_worker(process)
            self._free.append(device)
        self._running.clear()


def visible_devices() -> list[str | None]:
    """The GPUs that jobs may use, as CUDA_VISIBLE_DEVICES names them; [None] without a GPU."""
    import torch

    count = torch.cuda.device_count()
    if count == 0:
        return [None]
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return list(named[:count]) or [str(number) for number in range(count)]


def start_worker(folder: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start the process of a job, with its output in the folder's log.txt.

    It gets its own process group, so that Ctrl-C only reaches the runner, which then ends the group.
    """
    with open(folder / "log.txt", "ab") as log:
        return subprocess.Popen(
            [sys.executable, "-c", WORKER.format(package=str(Path(__file__).parents[2])), str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
            close_fds=False,  # the lock of the benchmark's folder goes on until the worker has ended too
        )


def end_worker(process: subprocess.Popen[Any]) -> None:
    """Wait a moment for a worker that was told to end, then kill it and all processes it has started."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(SECONDS_TO_STOP)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def describe_exit(status: int) -> str:
    """Describe the exit status of a process."""
    if status >= 0:
        return f"the worker ended with status {status}"
    name = signal.Signals(-status).name
    hint = "; the system may have run out of memory" if -status == signal.SIGKILL else ""
    return f"the worker was ended by {name}{hint}"


def run_worker(folder: Path) -> str:
    """Run a whole job and wait for it. An exception in the caller ends the worker."""
    process = start_worker(folder, dict(os.environ))
    try:
        while process.poll() is None:
            time.sleep(0.1)
    finally:
        if process.poll() is None:
            process.terminate()
        end_worker(process)
    return describe_exit(process.returncode)

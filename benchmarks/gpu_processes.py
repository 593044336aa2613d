"""Run each section of the GPU benchmark in its own process, so that a hanging or crashing kernel affects it alone."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

Row = tuple[str, str, str, str, str]

# What a process reports: "row"; "piece" (its number), "pieces" (how many the section has) and "doing" when a piece
# begins; "gpu", "problem", "tcnn" and "speed" for other sections; and "end" as the last line.
Line = dict[str, Any]
Tell = Callable[[Line], None]
DONE, BROKEN = "done", "broken"  # values of "end"; after "broken", no kernel can be launched any more

LOOKS = 0.2  # seconds between two looks at the reports of a process
GOODBYE = 5  # seconds in which it may end by itself


@dataclass(frozen=True)
class Gpu:
    """The device, and its throughput with PyTorch's own operators."""

    name: str = "unknown GPU"
    torch: str = "?"
    tflops: float = float("nan")  # fp16 matrix products
    tbytes: float = float("nan")  # TB/s, read and written by a copy


@dataclass(frozen=True)
class Task:
    """The task of a process."""

    section: str
    until: float  # `time.monotonic`, the same clock in all processes; the process is killed then
    batch: int
    iterations: int
    scene: str | None
    folder: str  # for the output of trainings
    first: int = 0  # piece of the section to begin with
    gpu: Gpu = field(default_factory=Gpu)
    tcnn: bool = False  # whether tiny-cuda-nn works
    speeds: dict[str, tuple[float, float | None]] = field(default_factory=dict)
    """Milliseconds and rays of a step, by method, for the methods trained so far."""

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> Task:
        values = json.loads(text)
        return Task(**{**values, "gpu": Gpu(**values["gpu"])})


class Lost(Exception):
    """A process died or was killed before it had reported everything; the message says how."""


def teller(file: Path) -> Tell:
    """A function that appends lines to a file, for `lines_of` to read."""

    def tell(line: Line) -> None:
        with file.open("a") as lines:
            lines.write(json.dumps(line) + "\n")

    return tell


def lines_of(command: Sequence[str], file: Path, seconds: float, environment: Mapping[str, str]) -> Iterator[Line]:
    """Yield the lines that a process writes to `file`, "end" included. The process and its children are then killed.

    Raises:
        Lost: the process does not finish within this many seconds.
    """
    file.touch()
    deadline = time.monotonic() + seconds
    process = subprocess.Popen(command, env=dict(environment), start_new_session=True)
    try:
        with file.open() as lines:
            told = ""
            while True:
                status, late = process.poll(), time.monotonic() > deadline  # before the last look
                told += lines.read()
                *whole, told = told.split("\n")
                for text in whole:
                    line = json.loads(text)
                    yield line
                    if "end" in line:
                        with contextlib.suppress(subprocess.TimeoutExpired):
                            process.wait(GOODBYE)
                        return
                if status is not None:
                    raise Lost(f"its process ended by {_by_name(status)}")
                if late:
                    raise Lost(f"its process was killed after {seconds:.0f} s")
                time.sleep(LOOKS)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GOODBYE)  # a driver that does not release it must not block us


def _by_name(status: int) -> str:
    return signal.Signals(-status).name if status < 0 else f"exit status {status}"

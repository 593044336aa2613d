"""Sections of the GPU benchmark in processes of their own: a kernel that hangs or crashes costs its section alone."""

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

# What a process tells: "row"; "piece" (its number), "pieces" (how many the section has) and "doing", where another
# begins; "gpu", "problem", "tcnn" and "speed", which other sections need to know; "end", after which nothing comes.
Line = dict[str, Any]
Tell = Callable[[Line], None]
DONE, BROKEN = "done", "broken"  # how it ends: in the latter no kernel can be launched any more

LOOKS = 0.2  # seconds between two looks at what a process has told
GOODBYE = 5  # seconds that it has to end by itself


@dataclass(frozen=True)
class Gpu:
    """The device and what it reaches with PyTorch's own operators."""

    name: str = "unknown GPU"
    torch: str = "?"
    tflops: float = float("nan")  # fp16 matrix products
    tbytes: float = float("nan")  # TB/s read and written by a copy


@dataclass(frozen=True)
class Task:
    """What a process is to do."""

    section: str
    until: float  # by `time.monotonic`, one clock for all processes of a machine: then it is killed
    batch: int
    iterations: int
    scene: str | None
    folder: str  # for what trainings leave behind
    first: int = 0  # piece of the section
    gpu: Gpu = field(default_factory=Gpu)
    tcnn: bool = False  # whether tiny-cuda-nn works
    speeds: dict[str, tuple[float, float | None]] = field(default_factory=dict)
    """Milliseconds and rays of a step, of the methods that have been trained."""

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> Task:
        values = json.loads(text)
        return Task(**{**values, "gpu": Gpu(**values["gpu"])})


class Lost(Exception):
    """A process died or was killed before it had told everything; the message says how."""


def teller(file: Path) -> Tell:
    """Appends lines to a file, where `lines_of` finds them."""

    def tell(line: Line) -> None:
        with file.open("a") as lines:
            lines.write(json.dumps(line) + "\n")

    return tell


def lines_of(command: Sequence[str], file: Path, seconds: float, environment: Mapping[str, str]) -> Iterator[Line]:
    """What a process tells by `file`, as it comes, its end included. Neither it nor its children are left behind.

    Raises:
        Lost: it does not come to its end, within so many seconds.
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
            process.wait(GOODBYE)  # a driver that does not let it go must not hold us


def _by_name(status: int) -> str:
    return signal.Signals(-status).name if status < 0 else f"exit status {status}"

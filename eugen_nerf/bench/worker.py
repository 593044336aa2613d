"""The process that runs one job; `engines.start_worker` starts it.

A separate process keeps a crash from affecting other rows, makes peak memory measurable, and can be stopped.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from types import FrameType
from typing import Any

from eugen_nerf.bench.jobs import FramesJob, Progress, Result, TrainingJob, read_json, write_json
from eugen_nerf.bench.schema import from_mapping
from eugen_nerf.errors import UserError

SECONDS_BETWEEN_REPORTS = 0.5


class Reporter:
    """Writes progress.json at intervals, and ends the worker when its runner is gone."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "progress.json"
        self.parent = os.getppid()
        self._last = 0.0
        self._phase = ""

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        if progress.phase == self._phase and now - self._last < SECONDS_BETWEEN_REPORTS:
            return
        if os.getppid() != self.parent:
            raise SystemExit("the runner has ended")
        self._last, self._phase = now, progress.phase
        with contextlib.suppress(OSError):  # the report is for display alone
            write_json(self.file, dataclasses.asdict(progress))


def run_job(folder: Path) -> Result:
    """Run the job of a folder and return its result. Only exits of the process pass through."""
    try:
        return Result("done", values=_run(read_json(folder / "job.json"), Reporter(folder)))
    except UserError as error:
        return Result("failed", str(error))
    except OSError as error:
        traceback.print_exc()
        if error.errno == errno.ENOSPC:
            return Result("failed", f"The disk is full ({error.filename or folder}).")
        return Result("failed", _one_line(error))
    except Exception as error:
        traceback.print_exc()
        return Result("failed", _one_line(error))


def _run(data: Any, report: Reporter) -> dict[str, Any]:
    job: FramesJob | TrainingJob
    if data["kind"] == "frames":
        job = from_mapping(FramesJob, data["job"], "job")
    else:
        job = from_mapping(TrainingJob, data["job"], "job")
    # Imported here, since torch and nerfstudio take seconds and the runner's checks should not wait for them.
    from eugen_nerf.bench.machine import describe_machine

    machine = describe_machine(data["command"])
    out = Path(data["out"])
    if isinstance(job, FramesJob):
        from eugen_nerf.bench.frame_times import time_frames
        from eugen_nerf.plugin.runs import load_run

        report(Progress("loading"))
        pipelines = [load_run(out / path) for path in job.load_configs]
        frames = time_frames(pipelines, job.timed_frames, lambda part: report(Progress("timing", part)))
        return {"frames": dict(zip(job.names, frames, strict=True)), "machine": machine}

    from eugen_nerf.bench.training import train_and_evaluate

    return {**train_and_evaluate(job, out, report), "machine": machine}


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:500]}" if text else type(error).__name__


def _stop(_: int, __: FrameType | None) -> None:
    raise SystemExit("stopped by the runner")


def main() -> None:
    """Entry point of the process."""
    folder = Path(sys.argv[1])
    signal.signal(signal.SIGTERM, _stop)
    result = run_job(folder)
    write_json(folder / "result.json", dataclasses.asdict(result))

"""Progress of a benchmark: bars on a terminal, occasional lines in a log."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from eugen_nerf.bench import jobs

SECONDS_BETWEEN_LINES = 15.0


class Display:
    """Shows the progress of jobs; a context manager."""

    def __init__(self, total: int, console: Console) -> None:
        self.total = total
        self.console = console
        self.finished = 0
        self._started = time.monotonic()
        self._last_line = float("-inf")
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Display:
        if self.console.is_terminal:
            self._bars = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=30),
                TextColumn("{task.percentage:3.0f} %"),
                TimeElapsedColumn(),
                TextColumn("ETA"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}", markup=False),
                console=self.console,
                speed_estimate_period=600,
            )
            self._bars.start()
            self._tasks[""] = self._bars.add_task("all", total=self.total, note=f"0 of {self.total}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def update(self, running: Mapping[str, jobs.Progress]) -> None:
        """Show the progress of the running jobs, given by label."""
        overall = self.finished + sum(progress.fraction for progress in running.values())
        if self._bars is None:
            self._line(running, overall)
            return
        self._bars.update(self._tasks[""], completed=overall, note=f"{self.finished} of {self.total}")
        for label, progress in running.items():
            if label not in self._tasks:
                self._tasks[label] = self._bars.add_task(label, total=1.0, note="")
            self._bars.update(self._tasks[label], completed=progress.fraction, note=_note(progress))
        for label in [label for label in self._tasks if label and label not in running]:
            self._bars.remove_task(self._tasks.pop(label))

    def finish(self, label: str, outcome: str, style: str = "") -> None:
        """Report the end of a job."""
        self.finished += 1
        self.console.print(
            f"[{self.finished}/{self.total}] {label}: {outcome}", style=style, markup=False, soft_wrap=True
        )

    def _line(self, running: Mapping[str, jobs.Progress], overall: float) -> None:
        now = time.monotonic()
        active = {label: progress for label, progress in running.items() if progress.phase != "waiting"}
        if now - self._last_line < SECONDS_BETWEEN_LINES or not active:
            return
        self._last_line = now
        elapsed = now - self._started
        eta = f", about {_duration(elapsed * (self.total - overall) / overall)} left" if overall > 0.02 else ""
        parts = [f"{label}: {_note(progress)}, {100 * progress.fraction:.0f} %" for label, progress in active.items()]
        done = 100 * overall / self.total
        self.console.print(
            f"{_duration(elapsed)}  {done:.0f} % of all{eta} | {' | '.join(parts)}", markup=False, soft_wrap=True
        )


def _note(progress: jobs.Progress) -> str:
    psnr = f", {progress.psnr:.1f} dB" if progress.psnr is not None else ""
    step = f" step {progress.step}" if progress.step else ""
    return f"{progress.phase}{step}{psnr}"


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"

"""Run the jobs of a benchmark and record their results."""

from __future__ import annotations

import dataclasses
import functools
import shlex
import shutil
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from eugen_nerf.bench import jobs
from eugen_nerf.bench.config import Benchmark
from eugen_nerf.bench.engines import Engine
from eugen_nerf.bench.jobs import Job, Result, TrainingJob
from eugen_nerf.bench.progress import Display
from eugen_nerf.bench.results import Record, ResultStore, finished_records, frames_jobs
from eugen_nerf.bench.scene_files import camera_fingerprint
from eugen_nerf.bench.schema import from_mapping
from eugen_nerf.errors import UserError

SECONDS_BETWEEN_POLLS = 0.1
FULL_DISK = 1 << 20  # free bytes, too few for the files of a job


@dataclass(frozen=True)
class Outcome:
    """Number of finished and failed jobs of a benchmark."""

    finished: int
    failed: int


def check_rows(benchmark: Benchmark) -> None:
    """Build every row's configuration once, so that a typing error is found before hours of training.

    Raises:
        UserError: a method, dataparser or option does not exist, an option cannot take a value, or two rows would have
            the same folder name.
    """
    from eugen_nerf.bench.methods import row_config
    from eugen_nerf.plugin.trainer_config import EugenTrainerConfig

    folders: dict[str, jobs.TrainingJob] = {}
    for job in jobs.training_jobs(benchmark):
        other = folders.setdefault(job.slug, job)
        if other is not job:
            raise UserError(
                f"{job.name!r} on {job.scene!r} and {other.name!r} on {other.scene!r} would both have the folder "
                f"{job.slug}; give one of them another `name`."
            )
        try:
            config = row_config(job, Path("runs"), "cpu")
            if isinstance(config, EugenTrainerConfig):
                config.validate()
        except UserError as error:
            raise UserError(f"{job.name} on {job.scene}: {error}") from error


def run(benchmark: Benchmark, store: ResultStore, engine: Engine, console: Console, command: str = "") -> Outcome:
    """Run all jobs that have no result yet: first the trainings, then the frame times one after the other.

    A failed job is recorded and reported, and the others continue. On KeyboardInterrupt the running jobs are ended
    without a record.

    Args:
        command: the user's command line, for the records.

    Raises:
        UserError: a result cannot be written.
    """
    runner = _Runner(store, engine, console, command or shlex.join(sys.argv))
    try:
        return runner.run(benchmark)
    finally:
        engine.stop()


class _Runner:
    def __init__(self, store: ResultStore, engine: Engine, console: Console, command: str) -> None:
        self.store = store
        self.engine = engine
        self.console = console
        self.command = command

    def run(self, benchmark: Benchmark) -> Outcome:
        trainings = jobs.training_jobs(benchmark)
        done = finished_records(self.store)
        _check_cameras(trainings, done, self.store.folder)
        open_trainings = [job for job in trainings if job.digest not in done]
        if len(open_trainings) < len(trainings):
            kept = len(trainings) - len(open_trainings)
            self.console.print(f"{kept} of {len(trainings)} trainings are finished already.", markup=False)
        num_frames = len(benchmark.scenes) * len(benchmark.seeds)
        with Display(len(open_trainings) + num_frames, self.console) as display:
            self._do(open_trainings, display)
            # Nothing else may run during a time measurement.
            for job in frames_jobs(benchmark, self.store):
                if job.digest in finished_records(self.store):
                    display.finish(job.label, "finished already")
                else:
                    self._do([job], display)
        every: list[Job] = [*trainings, *frames_jobs(benchmark, self.store)]
        wanted = {job.digest for job in every}
        latest = {digest: record for digest, record in self.store.latest().items() if digest in wanted}
        failed = sum(record.result.status == "failed" for record in latest.values())
        return Outcome(len(latest) - failed, failed)

    def _do(self, todo: Sequence[Job], display: Display) -> None:
        pending = deque(todo)
        running: dict[Path, Job] = {}
        while pending or running:
            while pending and self.engine.has_room():
                job = pending.popleft()
                folder = self._prepare(job)
                self.engine.start(folder)
                running[folder] = job
            time.sleep(SECONDS_BETWEEN_POLLS)
            for folder, job in list(running.items()):
                ended = self.engine.poll(folder)
                if ended is not None:
                    del running[folder]
                    self._record(job, folder, ended, display)
            display.update({job.label: _progress(folder) for folder, job in running.items()})

    def _prepare(self, job: Job) -> Path:
        folder = (self.store.folder / "jobs" / job.slug).absolute()
        out = self.store.folder.absolute()
        data = {
            "kind": "training" if isinstance(job, TrainingJob) else "frames",
            "job": dataclasses.asdict(job),
            "command": self.command,
            "out": str(out),
        }
        try:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            jobs.write_json(folder / "job.json", data)
        except OSError as error:
            raise UserError(
                f"{folder}: cannot be written ({error.strerror}). Earlier results are intact; fix this and run again "
                "with --resume."
            ) from error
        return folder

    def _record(self, job: Job, folder: Path, ended: str, display: Display) -> None:
        data = jobs.read_json(folder / "result.json")
        if data is None:  # the worker ended without a result
            full = shutil.disk_usage(self.store.folder).free < FULL_DISK
            result = Result("failed", f"{ended}; the disk is full." if full else f"{ended}.")
        else:
            result = from_mapping(Result, data, str(folder / "result.json"))
        self.store.append(job, result)
        if result.status == "failed":
            display.finish(job.label, f"FAILED: {result.message} See {folder / 'log.txt'}", "bold red")
        else:
            display.finish(job.label, _summary(job, result))


def _check_cameras(trainings: Sequence[TrainingJob], done: Mapping[str, Record], folder: Path) -> None:
    """Refuse to continue with other data than that of the finished trainings.

    Raises:
        UserError: the files with a scene's cameras have changed, or its path is that of another scene with that name.
    """
    now = functools.cache(camera_fingerprint)
    for job in trainings:
        record = done.get(job.digest)
        before = None if record is None else record.result.values.get("cameras")
        if before is not None and now(Path(job.scene_path)) not in (None, before):
            raise UserError(
                f"{job.scene_path}: its cameras are not those that the finished trainings in {folder} had. Give the "
                "scene another `name` to train on it anew, or choose another folder with --out."
            )


def _progress(folder: Path) -> jobs.Progress:
    try:
        data = jobs.read_json(folder / "progress.json")
    except OSError:  # a network file system may fail for a moment; the next call may succeed
        data = None
    return jobs.Progress() if data is None else jobs.Progress(**data)


def _summary(job: Job, result: Result) -> str:
    if isinstance(job, TrainingJob):
        values = result.values
        return (
            f"{values['psnr']:.2f} dB after {values['steps']} steps in {values['training_seconds']:.1f} s of training"
        )
    frames = result.values["frames"]
    return f"{sum(map(len, frames.values()))} frames of {len(frames)} methods timed"

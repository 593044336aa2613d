"""The folder of a benchmark: its configuration and results.jsonl, with one line for each finished job."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from eugen_nerf.bench.config import Benchmark, benchmark_from_json
from eugen_nerf.bench.jobs import FramesJob, Job, Result, TrainingJob, read_json, training_jobs, write_json
from eugen_nerf.bench.lock import LOCK, alone_in
from eugen_nerf.bench.schema import from_mapping
from eugen_nerf.bench.values import check_values
from eugen_nerf.errors import UserError

RESULTS = "results.jsonl"
CONFIG = "benchmark.json"
REPORT = "report.html"
TABLES = "results.md"
# Everything that a benchmark writes to its folder. Nothing else is ever removed.
OWN_FOLDERS = ("runs", "jobs", "pictures")
OWN_FILES = (RESULTS, CONFIG, REPORT, TABLES, LOCK)


@dataclass(frozen=True)
class Record:
    """A line of results.jsonl."""

    kind: Literal["training", "frames"]
    digest: str
    job: dict[str, Any]
    result: Result


class ResultStore:
    """Appends to results.jsonl so that no crash, full disk or interruption loses an earlier line.

    Raises:
        UserError: in every method, if the folder cannot be read or written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / RESULTS

    def append(self, job: Job, result: Result) -> None:
        """Add a line with a single write, and sync it to the disk."""
        kind = "training" if isinstance(job, TrainingJob) else "frames"
        record = Record(kind, job.digest, dataclasses.asdict(job), result)  # type: ignore[arg-type]
        line = (json.dumps(dataclasses.asdict(record), allow_nan=False) + "\n").encode()
        try:
            self._append(line)
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot be written ({error.strerror}). The {len(self.read())} earlier results are "
                "intact; make room and run again with --resume."
            ) from error

    def _append(self, line: bytes) -> None:
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            end = self._end_of_whole_lines(descriptor)
            try:
                written = os.pwrite(descriptor, line, end)
                while written < len(line):  # a full disk may take a part and fail on the rest
                    written += os.pwrite(descriptor, line[written:], end + written)
                os.fsync(descriptor)
            finally:
                complete = os.fstat(descriptor).st_size >= end + len(line)
                os.ftruncate(descriptor, end + len(line) if complete else end)
        finally:
            os.close(descriptor)

    def _end_of_whole_lines(self, descriptor: int) -> int:
        """Where to write: an incomplete line left by a crash is overwritten."""
        content = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
        return content.rfind(b"\n") + 1

    def read(self) -> list[Record]:
        """Read all complete lines; an incomplete last line left by a crash is skipped."""
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read ({error.strerror}).") from error
        records = []
        for number, line in enumerate(content[: content.rfind(b"\n") + 1].splitlines(), start=1):
            try:
                records.append(_parsed(line, f"{self.path}, line {number}"))
            except UserError as error:
                raise UserError(f"{error} Remove that line; its row is then measured again.") from error
        return records

    def latest(self) -> dict[str, Record]:
        """The newest record of each digest."""
        return {record.digest: record for record in self.read()}


def _parsed(line: bytes, where: str) -> Record:
    try:
        data = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where}: is not JSON ({error}).") from error
    record = from_mapping(Record, data, where)
    from_mapping(TrainingJob if record.kind == "training" else FramesJob, record.job, f"{where}.job")
    if record.result.status == "done":
        check_values(record.kind, record.result.values, f"{where}.result.values")
    return record


def finished_records(store: ResultStore) -> dict[str, Record]:
    """The newest record of each job that succeeded."""
    return {digest: record for digest, record in store.latest().items() if record.result.status == "done"}


def frames_jobs(benchmark: Benchmark, store: ResultStore) -> list[FramesJob]:
    """The timing jobs: one for each scene and seed with a finished training."""
    done = finished_records(store)
    limits = {method.name: method.timed_frames or benchmark.timed_frames for method in benchmark.methods}
    order = list(limits)
    found = []
    for scene in benchmark.scenes:
        for seed in benchmark.seeds:
            rows = [job for job in training_jobs(benchmark) if (job.scene, job.seed) == (scene.name, seed)]
            trained = sorted((job for job in rows if job.digest in done), key=lambda job: order.index(job.name))
            if trained:
                found.append(
                    FramesJob(
                        scene=scene.name,
                        seed=seed,
                        names=tuple(job.name for job in trained),
                        load_configs=tuple(done[job.digest].result.values["load_config"] for job in trained),
                        timed_frames=tuple(limits[job.name] for job in trained),
                        trained=tuple(job.digest for job in trained),
                    )
                )
    return found


def prepare_folder(folder: Path, benchmark: Benchmark, *, resume: bool = False, replace: bool = False) -> ResultStore:
    """Create the folder of a benchmark. `prepared_folder` also locks it.

    Args:
        resume: continue in a folder that has results.
        replace: remove the files of an earlier benchmark from the folder, and nothing else.

    Raises:
        UserError: the folder has content and neither option was given, its results are damaged, or it cannot be
            written.
    """
    try:
        if _check_folder(folder, benchmark, resume, replace):
            _remove_own(folder)
        folder.mkdir(parents=True, exist_ok=True)
        ResultStore(folder).read()  # find damaged results before the configuration is replaced
        for name in OWN_FOLDERS:
            (folder / name).mkdir(exist_ok=True)
        write_json(folder / CONFIG, dataclasses.asdict(benchmark))
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}).") from error
    return ResultStore(folder)


@contextmanager
def prepared_folder(
    folder: Path, benchmark: Benchmark, *, resume: bool = False, replace: bool = False
) -> Iterator[ResultStore]:
    """Create a folder with `prepare_folder`, and lock it against other benchmarks until the end.

    Raises:
        UserError: as `prepare_folder`, or another benchmark is using the folder.
    """
    try:
        _check_folder(folder, benchmark, resume, replace)  # leave no lock file in a folder that is not a benchmark's
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror}).") from error
    with alone_in(folder):
        yield prepare_folder(folder, benchmark, resume=resume, replace=replace)


def _check_folder(folder: Path, benchmark: Benchmark, resume: bool, replace: bool) -> bool:
    """Whether an earlier benchmark is to be removed. Raises UserError if the folder may not be written."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; --out takes a folder.")
    if replace and os.path.isfile(folder / CONFIG):
        title = _title(folder)
        if title != benchmark.title:
            raise UserError(
                f"{folder}: holds the results of another benchmark{f', {title!r}' if title else ''}, which would be "
                "lost. Choose another folder, or remove those first."
            )
        return True
    if folder.exists():
        _check_content(folder, resume)
    return False


def _title(folder: Path) -> str | None:
    """Title of the benchmark in a folder, whatever version wrote it; None if it cannot be read."""
    try:
        data = read_json(folder / CONFIG)
    except (OSError, ValueError):
        return None
    return str(data.get("title")) if isinstance(data, dict) else None


def _check_content(folder: Path, resume: bool) -> None:
    names = {path.name for path in folder.iterdir()} - {LOCK}  # ours, or left by a run that ended before its first file
    foreign = sorted(names - {*OWN_FOLDERS, *OWN_FILES})
    if foreign and CONFIG not in names:
        raise UserError(f"{folder}: holds other files ({foreign[0]}) and no benchmark. Choose another folder.")
    if names and not resume:
        raise UserError(f"{folder}: is not empty. Continue there with --resume, or choose another folder with --out.")


def _remove_own(folder: Path) -> None:
    for name in OWN_FOLDERS:
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in set(OWN_FILES) - {LOCK}:  # which is held meanwhile
        (folder / name).unlink(missing_ok=True)


def read_benchmark(folder: Path) -> Benchmark:
    """Read the configuration of a folder that `prepare_folder` created.

    Raises:
        UserError: the folder has none.
    """
    path = folder / CONFIG
    try:
        data = read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}).") from error
    if data is None:
        raise UserError(f"{folder}: holds no benchmark ({CONFIG} is missing). Give the --out folder of a run.")
    return benchmark_from_json(data, str(path))


def training_job(record: Record) -> TrainingJob:
    """The job of a training record."""
    return from_mapping(TrainingJob, record.job, "job")


def frames_job(record: Record) -> FramesJob:
    """The job of a frame-time record."""
    return from_mapping(FramesJob, record.job, "job")

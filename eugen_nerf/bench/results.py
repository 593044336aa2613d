"""results.jsonl: one line for each finished job of a benchmark."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from eugen_nerf.bench.config import Benchmark
from eugen_nerf.bench.jobs import FramesJob, Job, Result, TrainingJob, training_jobs
from eugen_nerf.bench.schema import from_mapping
from eugen_nerf.bench.values import check_values
from eugen_nerf.errors import UserError

RESULTS = "results.jsonl"


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


def valid_records(store: ResultStore) -> list[Record]:
    """All records except those of frame times that are older than one of the trainings they are of."""
    records = store.read()
    trained = {record.digest: place for place, record in enumerate(records) if record.kind == "training"}
    return [
        record
        for place, record in enumerate(records)
        if record.kind == "training" or all(trained.get(digest, -1) < place for digest in frames_job(record).trained)
    ]


def finished_records(store: ResultStore) -> dict[str, Record]:
    """The newest record of each job that succeeded."""
    latest = {record.digest: record for record in valid_records(store)}
    return {digest: record for digest, record in latest.items() if record.result.status == "done"}


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


def training_job(record: Record) -> TrainingJob:
    """The job of a training record."""
    return from_mapping(TrainingJob, record.job, "job")


def frames_job(record: Record) -> FramesJob:
    """The job of a frame-time record."""
    return from_mapping(FramesJob, record.job, "job")

"""results.jsonl survives crashes and full disks."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eugen_nerf.bench.config import load_benchmark
from eugen_nerf.bench.jobs import FramesJob, Result, TrainingJob, training_jobs
from eugen_nerf.bench.results import ResultStore, finished_records, frames_jobs, training_job
from eugen_nerf.errors import UserError
from tests.bench.conftest import WriteConfig, done


@pytest.fixture
def jobs(write_config: WriteConfig) -> list[TrainingJob]:
    return training_jobs(load_benchmark(write_config()))


@pytest.fixture
def store(tmp_path: Path) -> ResultStore:
    return ResultStore(tmp_path)


def test_round_trip(store: ResultStore, jobs: list[TrainingJob]) -> None:
    store.append(jobs[0], done(psnr=20.5))
    store.append(jobs[1], Result("failed", "no luck"))
    first, second = store.read()
    assert training_job(first) == jobs[0]
    assert (first.kind, first.digest, first.result.values) == ("training", jobs[0].digest, done(psnr=20.5).values)
    assert second.result == Result("failed", "no luck")


def test_the_newest_record_counts(store: ResultStore, jobs: list[TrainingJob]) -> None:
    store.append(jobs[0], Result("failed", "first attempt"))
    store.append(jobs[0], done())
    assert store.latest()[jobs[0].digest].result.status == "done"


def test_a_method_may_have_a_number_of_timed_frames_of_its_own(store: ResultStore, write_config: WriteConfig) -> None:
    methods = ["eugen-nerf", {"method": "nerfacto", "timed_frames": 3}]
    benchmark = load_benchmark(write_config(methods=methods, timed_frames=20))
    for job in training_jobs(benchmark):
        store.append(job, done())
    (timing,) = frames_jobs(benchmark, store)
    assert (timing.names, timing.timed_frames) == (("eugen-nerf", "nerfacto"), (20, 3))


def test_frame_times_of_before_a_training_are_measured_again(store: ResultStore, jobs: list[TrainingJob]) -> None:
    """A row whose line was removed is trained again; its frames were those of the model before."""
    timing = FramesJob("ball", 0, ("EUGen",), ("config.yml",), (1,), (jobs[0].digest,))
    values = {"frames": {"EUGen": [{"view": 0, "seconds": 1.0}]}}
    store.append(jobs[0], done())
    store.append(timing, Result("done", values=values))
    assert set(finished_records(store)) == {jobs[0].digest, timing.digest}
    lines = store.path.read_text().splitlines(keepends=True)
    store.path.write_text(lines[1])
    store.append(jobs[0], done())
    assert set(finished_records(store)) == {jobs[0].digest}


def test_a_line_cut_short_by_a_crash_is_skipped_and_written_over(store: ResultStore, jobs: list[TrainingJob]) -> None:
    store.append(jobs[0], done())
    whole = store.path.read_bytes()
    store.path.write_bytes(whole + whole[: len(whole) // 2])
    assert len(store.read()) == 1
    store.append(jobs[1], done())
    assert [record.digest for record in store.read()] == [jobs[0].digest, jobs[1].digest]
    assert store.path.read_bytes().startswith(whole)


@pytest.mark.parametrize("fitting", [0, 30])
def test_a_full_disk_costs_no_earlier_result(
    store: ResultStore, jobs: list[TrainingJob], monkeypatch: pytest.MonkeyPatch, fitting: int
) -> None:
    """The disk accepts part of the line, or nothing, and is then full."""
    store.append(jobs[0], done())
    whole = store.path.read_bytes()
    real = os.pwrite

    def full(descriptor: int, data: bytes, offset: int) -> int:
        if len(data) > fitting and fitting and offset == len(whole):
            return real(descriptor, data[:fitting], offset)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(UserError, match=r"results.jsonl: cannot be written \(No space left on device\). The 1 earlier"):
        store.append(jobs[1], done())
    assert store.path.read_bytes() == whole
    monkeypatch.undo()
    store.append(jobs[1], done())
    assert len(store.read()) == 2


def test_damaged_lines_are_named(store: ResultStore) -> None:
    store.path.write_text("{}\n")
    with pytest.raises(UserError, match=r"results.jsonl, line 1: the key 'kind' is missing"):
        store.read()
    store.path.write_text("{\n")
    with pytest.raises(UserError, match=r"results.jsonl, line 1: is not JSON.* Remove that line; its row is then meas"):
        store.read()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda row: row["result"]["values"].pop("num_test_views"), "values: the key 'num_test_views' is missing"),
        (lambda row: row["result"]["values"].update(psnr=None), "values.psnr: must be a number, not None"),
        (lambda row: row["result"]["values"].update(views=[{"view": 1}]), r"views\[0\]: the key 'psnr' is missing"),
        (lambda row: row["result"]["values"].update(curve=[3]), r"curve\[0\]: must be a mapping"),
        (lambda row: row["result"]["values"].update(machine={}), r"machine: the key 'gpu' is missing"),
        (lambda row: row["job"].pop("seed"), "job: the key 'seed' is missing"),
    ],
)
def test_rows_that_lack_what_a_report_needs_are_named(
    store: ResultStore, jobs: list[TrainingJob], damage: Callable[[dict[str, Any]], object], message: str
) -> None:
    store.append(jobs[0], done())
    store.append(jobs[1], done())
    first, second = store.path.read_text().splitlines()
    row = json.loads(second)
    damage(row)
    store.path.write_text(f"{first}\n{json.dumps(row)}\n")
    with pytest.raises(UserError, match=rf"results.jsonl, line 2.*{message}.* Remove that line; its row is then"):
        store.read()


def test_timings_that_lack_what_a_report_needs_are_named(store: ResultStore, jobs: list[TrainingJob]) -> None:
    timing = FramesJob("ball", 0, ("EUGen",), ("config.yml",), (1,), (jobs[0].digest,))
    for values in ({}, {"frames": {"EUGen": [{"view": 0}]}}):
        store.path.unlink(missing_ok=True)
        store.append(timing, Result("done", values=values))
        with pytest.raises(UserError, match=r"results.jsonl, line 1.*values.*: the key '\w+' is missing. Remove that"):
            store.read()


def test_values_that_json_cannot_hold_are_refused_before_anything_is_written(
    store: ResultStore, jobs: list[TrainingJob]
) -> None:
    values: dict[str, Any] = {"psnr": float("inf")}
    with pytest.raises(ValueError, match="not JSON compliant"):
        store.append(jobs[0], Result("done", values=values))
    assert not store.path.exists()

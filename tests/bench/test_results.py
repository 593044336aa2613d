"""results.jsonl survives crashes and full disks, and other files in a benchmark's folder are never removed."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eugen_nerf.bench.config import Benchmark, load_benchmark
from eugen_nerf.bench.engines import start_worker
from eugen_nerf.bench.jobs import FramesJob, Result, TrainingJob, training_jobs
from eugen_nerf.bench.lock import LOCK, alone_in
from eugen_nerf.bench.results import (
    CONFIG,
    RESULTS,
    ResultStore,
    frames_jobs,
    prepare_folder,
    prepared_folder,
    read_benchmark,
    training_job,
)
from eugen_nerf.errors import UserError
from tests.bench.conftest import WriteConfig, done


@pytest.fixture
def benchmark_(write_config: WriteConfig) -> Benchmark:
    return load_benchmark(write_config())


@pytest.fixture
def jobs(benchmark_: Benchmark) -> list[TrainingJob]:
    return training_jobs(benchmark_)


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


def test_damaged_results_are_told_before_the_configuration_is_replaced(tmp_path: Path, benchmark_: Benchmark) -> None:
    prepare_folder(tmp_path / "out", benchmark_)
    (tmp_path / "out" / RESULTS).write_text("garbage\n")
    before = (tmp_path / "out" / CONFIG).read_bytes()
    with pytest.raises(UserError, match="line 1: is not JSON"):
        prepare_folder(tmp_path / "out", dataclasses.replace(benchmark_, seeds=(7,)), resume=True)
    assert (tmp_path / "out" / CONFIG).read_bytes() == before


@pytest.mark.parametrize("again", [{"resume": True}, {"replace": True}])
def test_a_folder_is_one_benchmarks_at_a_time(tmp_path: Path, benchmark_: Benchmark, again: dict[str, bool]) -> None:
    out = tmp_path / "out"
    changed = dataclasses.replace(benchmark_, seeds=(7,))
    with prepared_folder(out, benchmark_) as store:
        message = rf"out: another run is writing there \(process {os.getpid()} on .*\). Wait for its end"
        with pytest.raises(UserError, match=message), prepared_folder(out, changed, **again):
            pass
        assert read_benchmark(out) == benchmark_
        with pytest.raises(UserError, match="is not empty"), prepared_folder(out, changed):
            pass
    for _ in range(2):  # replacing files keeps the lock
        with prepared_folder(out, changed, **again) as store:
            with pytest.raises(UserError, match="another run"), prepared_folder(out, changed, **again):
                pass
            assert read_benchmark(store.folder) == changed


def test_a_killed_run_holds_no_lock(tmp_path: Path, benchmark_: Benchmark) -> None:
    """The killed run had not written anything else, so the folder counts as empty."""
    out = tmp_path / "out"
    script = f"""
import pathlib, time
from eugen_nerf.bench.lock import alone_in
with alone_in(pathlib.Path({str(out)!r})):
    print("locked", flush=True)
    time.sleep(600)
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "locked\n"
        with pytest.raises(UserError, match=rf"process {process.pid} on"), prepared_folder(out, benchmark_):
            pass
        assert os.listdir(out) == [LOCK]
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.communicate()
    with prepared_folder(out, benchmark_):
        assert read_benchmark(out) == benchmark_


def test_a_worker_that_outlives_its_runner_keeps_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    idle = tmp_path / "idle"
    idle.write_text("#!/bin/sh\nexec sleep 600\n")
    idle.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(idle))
    out = tmp_path / "out"
    with alone_in(out):
        process = start_worker(tmp_path, dict(os.environ))
    try:
        with pytest.raises(UserError, match="another run is writing there"), alone_in(out):
            pass
    finally:
        process.kill()
        process.wait()
    with alone_in(out):
        pass


def test_file_systems_without_locks_are_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: Any) -> None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr("fcntl.flock", unknown)
    with alone_in(tmp_path), alone_in(tmp_path):
        pass


def test_folders_that_are_refused_get_no_lock(tmp_path: Path, benchmark_: Benchmark) -> None:
    folder = tmp_path / "papers"
    folder.mkdir()
    (folder / "thesis.tex").write_text("")
    with pytest.raises(UserError, match="holds other files"), prepared_folder(folder, benchmark_, resume=True):
        pass
    assert os.listdir(folder) == ["thesis.tex"]
    with pytest.raises(UserError, match="cannot be read"), prepared_folder(tmp_path / ("x" * 300), benchmark_):
        pass
    with pytest.raises(UserError, match="cannot be written"), alone_in(folder / "thesis.tex" / "out"):
        pass


def test_folder_must_be_empty_unless_resumed(tmp_path: Path, benchmark_: Benchmark) -> None:
    out = tmp_path / "a" / "out"
    prepare_folder(out, benchmark_)
    assert read_benchmark(out) == benchmark_
    with pytest.raises(UserError, match=r"out: is not empty. Continue there with --resume"):
        prepare_folder(out, benchmark_)
    changed = dataclasses.replace(benchmark_, seeds=(0, 1))
    prepare_folder(out, changed, resume=True)
    assert read_benchmark(out) == changed


def test_replacing_removes_results_and_nothing_else(tmp_path: Path, benchmark_: Benchmark) -> None:
    out = tmp_path / "out"
    prepare_folder(out, benchmark_)
    for own in (out / RESULTS, out / "runs" / "x"):
        own.write_text("old")
    (out / "mine.txt").write_text("kept")
    prepare_folder(out, benchmark_, replace=True)
    assert not (out / RESULTS).exists()
    assert os.listdir(out / "runs") == []
    assert (out / "mine.txt").read_text() == "kept"


@pytest.mark.parametrize("damaged", [False, True])
def test_replacing_refuses_the_results_of_another_benchmark(
    tmp_path: Path, benchmark_: Benchmark, damaged: bool
) -> None:
    out = tmp_path / "out"
    prepare_folder(out, dataclasses.replace(benchmark_, title="Measured for days"))
    (out / RESULTS).write_text("")
    if damaged:
        (out / "benchmark.json").write_text("{")
    told = "" if damaged else ", 'Measured for days'"
    with pytest.raises(UserError, match=f"holds the results of another benchmark{told}, which would be lost"):
        prepare_folder(out, benchmark_, replace=True)
    assert (out / RESULTS).exists()


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_of_something_else_is_left_alone(tmp_path: Path, benchmark_: Benchmark, resume: bool) -> None:
    folder = tmp_path / "papers"
    folder.mkdir()
    (folder / "thesis.tex").write_text("")
    with pytest.raises(UserError, match=r"papers: holds other files \(thesis.tex\) and no benchmark. Choose another"):
        prepare_folder(folder, benchmark_, resume=resume)
    assert [path.name for path in folder.iterdir()] == ["thesis.tex"]


def test_replacing_refuses_a_folder_of_something_else(tmp_path: Path, benchmark_: Benchmark) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "precious").write_text("")
    with pytest.raises(UserError, match="holds other files"):
        prepare_folder(tmp_path, benchmark_, replace=True)
    assert (tmp_path / "runs" / "precious").exists()


def test_folders_that_cannot_be(tmp_path: Path, benchmark_: Benchmark) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file: is a file"):
        prepare_folder(tmp_path / "file", benchmark_)
    with pytest.raises(UserError, match="cannot be written"):
        prepare_folder(tmp_path / "file" / "below", benchmark_)
    with pytest.raises(UserError, match=r"holds no benchmark \(benchmark.json is missing\)"):
        read_benchmark(tmp_path)


def test_values_that_json_cannot_hold_are_refused_before_anything_is_written(
    store: ResultStore, jobs: list[TrainingJob]
) -> None:
    values: dict[str, Any] = {"psnr": float("inf")}
    with pytest.raises(ValueError, match="not JSON compliant"):
        store.append(jobs[0], Result("done", values=values))
    assert not store.path.exists()

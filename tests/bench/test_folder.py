"""A benchmark's folder is one benchmark's at a time, and files that are not its own are never removed."""

from __future__ import annotations

import dataclasses
import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from eugen_nerf.bench.config import Benchmark, load_benchmark
from eugen_nerf.bench.engines import start_worker
from eugen_nerf.bench.folder import CONFIG, prepare_folder, prepared_folder, read_benchmark
from eugen_nerf.bench.lock import LOCK, alone_in
from eugen_nerf.bench.results import RESULTS
from eugen_nerf.errors import UserError
from tests.bench.conftest import WriteConfig


@pytest.fixture
def benchmark_(write_config: WriteConfig) -> Benchmark:
    return load_benchmark(write_config())


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


def test_another_benchmark_is_not_continued(tmp_path: Path, benchmark_: Benchmark) -> None:
    out = tmp_path / "out"
    prepare_folder(out, dataclasses.replace(benchmark_, title="Measured for days"))
    before = (out / CONFIG).read_bytes()
    with pytest.raises(UserError, match="holds the results of another benchmark, 'Measured for days', which cannot be"):
        prepare_folder(out, benchmark_, resume=True)
    assert (out / CONFIG).read_bytes() == before

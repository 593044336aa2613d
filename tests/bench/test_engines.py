"""Worker processes: start, input and end."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from eugen_nerf.bench import engines, jobs
from eugen_nerf.bench.config import load_benchmark
from eugen_nerf.bench.engines import LocalEngine, describe_exit, end_worker, start_worker, visible_devices
from tests.bench.conftest import WriteConfig


def alive(pid: int) -> bool:
    """Whether a process exists and is not a zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def wait_for(condition: Any, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


@pytest.fixture
def stubborn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Replace workers by a process that ignores SIGTERM and has a child. Returns the folder that receives both pids."""
    code = (
        "import os, signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen(['sleep', '600'])\n"
        "open(sys.argv[1] + '/pids', 'w').write(f'{os.getpid()} {child.pid} end')\n"
        "time.sleep(600)\n"
    )

    def start(folder: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", code, str(folder)], env=environment, start_new_session=True)

    monkeypatch.setattr(engines, "start_worker", start)
    monkeypatch.setattr(engines, "SECONDS_TO_STOP", 0.3)
    return tmp_path


def pids(folder: Path) -> list[int]:
    wait_for(lambda: (folder / "pids").exists() and (folder / "pids").read_text().endswith("end"))
    return [int(word) for word in (folder / "pids").read_text().split()[:2]]


def test_stopping_ends_a_stubborn_worker_and_its_children(stubborn: Path) -> None:
    engine = LocalEngine()
    rooms = len(visible_devices())
    engine.start(stubborn)
    assert engine.has_room() == (rooms > 1)
    processes = pids(stubborn)
    assert engine.poll(stubborn) is None
    assert all(alive(pid) for pid in processes)
    engine.stop()
    wait_for(lambda: not any(alive(pid) for pid in processes))
    assert engine.has_room()


def test_a_killed_worker_is_described_and_makes_room(stubborn: Path) -> None:
    engine = LocalEngine()
    engine.start(stubborn)
    worker, child = pids(stubborn)
    os.kill(worker, signal.SIGKILL)
    wait_for(lambda: not alive(worker))
    ended = engine.poll(stubborn)
    assert ended == "the worker was ended by SIGKILL; the system may have run out of memory"
    wait_for(lambda: not alive(child))
    assert engine.has_room()


def test_describe_exit() -> None:
    assert describe_exit(3) == "the worker ended with status 3"
    assert describe_exit(-signal.SIGSEGV) == "the worker was ended by SIGSEGV"


def test_a_real_worker_records_what_it_was_told(write_config: WriteConfig, tmp_path: Path) -> None:
    """Run a job in a process: job.json in, log.txt and result.json out. The test of Ctrl-C trains in one."""
    job = jobs.training_jobs(load_benchmark(write_config()))[0]
    folder = tmp_path / "job"
    folder.mkdir()
    told = {**dataclasses.asdict(job), "color": "blue"}
    jobs.write_json(folder / "job.json", {"kind": "training", "job": told, "command": "x", "out": str(tmp_path)})
    process = engines.start_worker(folder, dict(os.environ))
    assert process.wait(120) == 0
    end_worker(process)
    result = jobs.read_json(folder / "result.json")
    assert result["status"] == "failed"
    assert result["message"].startswith("job: unknown key 'color'.")
    assert (folder / "log.txt").exists()


def test_workers_do_not_import_from_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may hold another checkout, or a module with the name of one of Python's."""
    (tmp_path / "copy.py").write_text("raise SystemExit('shadowed')")
    (tmp_path / "job").mkdir()
    monkeypatch.chdir(tmp_path)
    process = start_worker(tmp_path / "job", dict(os.environ))
    process.wait(120)
    assert "shadowed" not in (tmp_path / "job" / "log.txt").read_text()
    assert json.loads((tmp_path / "job" / "result.json").read_text())["status"] == "failed"  # there is no job.json

"""The command line: output and exit status."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from eugen_nerf.bench import cli
from eugen_nerf.bench.jobs import read_json
from eugen_nerf.bench.lock import LOCK, alone_in
from eugen_nerf.bench.readme import BEGIN, END
from tests.bench.conftest import InProcessEngine, WriteConfig


def eugen_bench(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str]:
    """Exit status and output, without the line breaks of a narrow console."""
    with pytest.raises(SystemExit) as exit_info:
        cli.main([str(argument) for argument in arguments])
    return int(exit_info.value.code or 0), " ".join(capsys.readouterr().out.split())


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> InProcessEngine:
    engine = InProcessEngine()
    monkeypatch.setattr(cli, "make_engine", lambda options: engine)
    return engine


def test_run_resume_and_report(
    write_config: WriteConfig, in_process: InProcessEngine, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = write_config(methods=["eugen-nerf"], budget={"iterations": 2}, curve={"at": [1.0], "views": 1})
    out = tmp_path / "out"
    status, printed = eugen_bench(capsys, "run", path, "--out", out)
    assert status == 0
    assert "[2/2] ball · frame times · seed 0: 4 frames of 1 methods timed" in printed
    assert (out / "report.html").exists()
    status, printed = eugen_bench(capsys, "run", path, "--out", out)
    assert (status, "is not empty. Continue there with --resume" in printed) == (1, True)
    in_process.folders.clear()
    status, printed = eugen_bench(capsys, "run", path, "--out", out, "--resume")
    assert (status, "1 of 1 trainings are finished already" in printed) == (0, True)
    assert in_process.folders == []
    (out / "report.html").unlink()
    status, printed = eugen_bench(capsys, "report", out, "--publish", tmp_path / "published")
    assert status == 0
    assert (out / "report.html").exists()
    assert (tmp_path / "published" / "results.jsonl").exists()
    readme = tmp_path / "README.md"
    readme.write_text(f"{BEGIN}\n{END}\n")
    status, printed = eugen_bench(capsys, "readme", readme)
    assert (status, "Name the folders whose tables to insert" in printed) == (1, True)
    status, _ = eugen_bench(capsys, "readme", readme, tmp_path / "published")
    assert status == 0
    assert "| eugen-nerf |" in readme.read_text()


def test_failed_rows_are_counted_and_set_the_status(
    write_config: WriteConfig, in_process: InProcessEngine, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = write_config(methods=["eugen-nerf"], overrides={"pipeline.model.near": 1e7})
    status, printed = eugen_bench(capsys, "run", path, "--out", tmp_path / "out")
    assert status == 1
    assert "FAILED: The near limit of rays (10000000.0) must not be negative and must be below far" in printed
    assert "1 jobs failed; --resume tries them again." in printed


def test_a_folder_in_use_is_left_alone(
    write_config: WriteConfig, in_process: InProcessEngine, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with alone_in(out):
        status, printed = eugen_bench(capsys, "run", write_config(), "--out", out)
    assert (status, "Error:" in printed, "out: another run is writing there" in printed) == (1, True, True)
    assert os.listdir(out) == [LOCK]
    assert in_process.folders == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"methods": ["eugen-nef"]},
            "Error: eugen-nef on ball: Unknown method 'eugen-nef'. Did you mean 'eugen-nerf'?",
        ),
        ({"scenes": ["nowhere"]}, "Error: Scene 'nowhere' does not exist."),
        ({"seed": [0]}, "unknown key 'seed'. Did you mean 'seeds'?"),
    ],
)
def test_bad_input_is_one_message(
    write_config: WriteConfig, capsys: pytest.CaptureFixture[str], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    status, printed = eugen_bench(capsys, "run", write_config(**changes), "--out", tmp_path / "out")
    assert status == 1
    assert message in printed
    assert "Traceback" not in printed
    assert not (tmp_path / "out").exists()


def test_reports_of_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    status, printed = eugen_bench(capsys, "report", tmp_path)
    assert status == 1
    assert "holds no benchmark" in printed


def test_render_speed(finished: Any, capsys: pytest.CaptureFixture[str]) -> None:
    run = next(finished[1].folder.glob("runs/*/eugen-nerf/*/config.yml"))
    status, printed = eugen_bench(capsys, "render-speed", "--load-config", run, "--frames", "2")
    assert status == 0
    assert "eugen-nerf EUGen-seed" in printed
    assert "FPS" in printed


def test_render_speed_of_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    status, printed = eugen_bench(capsys, "render-speed")
    assert status == 1
    assert "Error: --load-config CONFIG names a run" in printed
    status, printed = eugen_bench(capsys, "render-speed", "--load-config", tmp_path / "config.yml")
    assert status == 1
    assert "does not exist. Give the config.yml of a run" in printed


@pytest.mark.slow
def test_ctrl_c_ends_the_worker_and_leaves_a_readable_folder(write_config: WriteConfig, tmp_path: Path) -> None:
    path = write_config(methods=["eugen-nerf"], budget={"iterations": 10_000_000}, curve={"at": [1.0]})
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-m", "eugen_nerf.bench.cli", "run", str(path), "--out", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
        # A shell's background jobs ignore this signal, and their child processes inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    folder = out / "jobs" / "ball-eugen-nerf-seed-0"
    try:
        end = time.monotonic() + 300
        while (read_json(folder / "progress.json") or {}).get("phase") != "training":
            assert time.monotonic() < end
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        printed, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "Interrupted. Finished rows are kept" in " ".join(printed.split())
    assert not workers_of(folder)
    assert not (out / "results.jsonl").exists()
    assert (out / "benchmark.json").exists()


def workers_of(folder: Path) -> list[str]:
    """Processes whose command line contains the folder of a job."""
    found = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found += [process.parent.name] if str(folder) in process.read_text() else []
        except OSError:
            continue
    return found

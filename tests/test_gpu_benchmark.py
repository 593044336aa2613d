"""benchmarks/gpu.py from its first line to its last, with a CPU in the GPU's place: what it measures is nonsense here,
that nothing of it is lost is not."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gpu
import pytest
import torch
from nerfstudio.engine import trainer

from eugen_nerf.bench import training
from tests.bench.conftest import SMALL
from tests.pretended_gpu import pretended_gpu


class Event:
    """A point in a stream of a device that does everything at once."""

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.time = time.perf_counter()

    def elapsed_time(self, end: Event) -> float:
        return 1000 * (end.time - self.time)


@pytest.fixture(autouse=True)
def a_cpu_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "DEVICE", "cpu")
    monkeypatch.setattr(gpu, "ROUNDS", 2)
    monkeypatch.setattr(gpu, "WARM_UP", 1)
    monkeypatch.setattr(gpu, "WIDTHS", (16,))
    monkeypatch.setattr(gpu, "FLUSHED_BYTES", 4)
    monkeypatch.setattr(gpu.times, "__kwdefaults__", {"rounds": 2, "warm_up": 1, "alone": True})
    monkeypatch.setattr(gpu.Machine, "measure", lambda: gpu.Machine(100.0, 2.0))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a CPU")


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    """Ends with a message, since a CPU's networks take no halves."""
    monkeypatch.setattr(torch, "compile", lambda module, dynamic: module)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--batch", "64", *arguments])
    with pytest.raises(SystemExit, match="Not everything could be measured"):
        gpu.main()


def test_all_rows_come_and_who_cannot_costs_his_own_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "folder" / "table.md"
    run(monkeypatch, "--markdown", str(file))
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in file.read_text().splitlines()[4:]]
    told = {(what, who): (ms, note) for what, who, ms, _, note in rows}
    for work in ("forward", "forward + backward"):
        what = f"network 32-16-16-16, {work}"
        assert told[what, "ours, fp16 rows"][1].startswith("failed: TypeError")  # a CPU's networks take no halves
        for who in ("ours, float32 rows", "torch fp16", "torch.compile fp16"):
            assert float(told[what, who][0]) > 0
            assert "TFLOP/s" in told[what, who][1]
        assert float(told[f"hash_encode, {work.split()[-1]}", "ours"][0]) > 0
    for op in ("march", "composite, forward + backward"):
        mine = {who: float(ms) for (what, who), (ms, _) in told.items() if what.startswith(f"{op}, ")}
        assert set(mine) == {"ours", "torch"}
        assert min(mine.values()) >= 0
    steps = {who: float(ms) for (what, who), (ms, _) in told.items() if what.startswith("rays to gradients, ")}
    assert set(steps) == {"ours", "ours, op by op"}
    assert min(steps.values()) > 0
    assert told["hash_encode, forward", "ours, fp16 table"][1].startswith("failed: TypeError")
    assert told["tiny-cuda-nn", ""][1] == "not measured: it is not installed"


def test_one_section_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "table.md"
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--batch", "64", "--only", "rays", "--markdown", str(file)])
    gpu.main()
    text = file.read_text()
    assert "| march, " in text
    assert "network" not in text
    assert "hash_encode" not in text


def test_no_width_is_begun_after_the_minutes() -> None:
    with pytest.raises(gpu.TimeUp, match="before width 16"):
        next(gpu.network_rows(64, gpu.Machine(1.0, 1.0), None, deadline=time.monotonic() - 1))


def test_a_section_that_fails_costs_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def networks(*_: Any, **__: Any) -> Iterator[gpu.Row]:
        yield "network", "ours", "1.0", "1.00x", ""
        raise RuntimeError("CUDA error: an illegal\nmemory access")

    monkeypatch.setattr(gpu, "network_rows", networks)
    file = tmp_path / "table.md"
    run(monkeypatch, "--markdown", str(file))
    text = file.read_text()
    assert "| network | ours | 1.0 | 1.00x |  |" in text
    assert "| networks |  |  |  | failed: RuntimeError: CUDA error: an illegal memory access |" in text
    assert "| hash_encode, backward | ours |" in text


def test_a_scene_that_is_not_there_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EUGEN_DATA", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--scene", "lego_400"])
    with pytest.raises(SystemExit, match="there is no such scene"):
        gpu.main()
    (tmp_path / "lego_400").mkdir()
    assert gpu.scene_folder(Path("lego_400")) == tmp_path / "lego_400"


METHODS = ("eugen-nerf", "eugen-nerf-mlp", "nerfacto")
KINDS = ("rays to pixels", "rays to pixels, one at a time", "camera to picture")
HIDE_ENTRY_POINTS = """
import importlib.metadata as metadata
def without_ours(known=metadata.entry_points, **wanted):
    found = known(**wanted)
    return metadata.EntryPoints(e for e in found if not e.value.startswith("eugen_nerf")) if wanted else found
metadata.entry_points = without_ours
"""


@pytest.mark.slow
@pytest.mark.parametrize("installed", [True, False])
def test_the_program_finds_our_methods_by_itself(installed: bool, ball_scene: Path, tmp_path: Path) -> None:
    """Where nothing else has imported nerfstudio before, and where the package is not installed."""
    code = f"""
import gpu
from pathlib import Path
trainings = gpu.Trainings(Path({str(ball_scene)!r}), 2, None, float("inf"), Path({str(tmp_path)!r}))
print(next(trainings.rows("eugen-nerf")))
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(gpu.__file__).parent), "EUGEN_CUDA_CHECK": "0"}
    command = [sys.executable, "-c", ("" if installed else HIDE_ENTRY_POINTS) + code]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert "('eugen-nerf, 2 iterations', " in result.stdout, result.stderr
    assert " it/s" in result.stdout


def test_training_ends_with_the_minutes(ball_scene: Path, tmp_path: Path) -> None:
    rows = list(gpu.Trainings(ball_scene, 5, None, time.monotonic(), tmp_path).rows(*METHODS))
    assert [row[0] for row in rows] == [
        f"{name}, 5 iterations" for name in ("eugen-nerf", "eugen-nerf-mlp", "nerfacto (torch)")
    ]
    assert all("failed: TimeUp: the minutes were spent while loading" in row[-1] for row in rows)


def test_training_and_frames(ball_scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where tensors of two devices do not mix."""
    train = training.train_and_evaluate

    def ours_alone(job: Any, *arguments: Any) -> dict[str, Any]:
        if job.method == "nerfacto":
            raise RuntimeError("its pictures are read by another process, where nobody pretends")
        return train(dataclasses.replace(job, overrides=dict(SMALL)), *arguments)

    monkeypatch.setattr(training, "train_and_evaluate", ours_alone)
    # nerfstudio's writers of events would go on writing to a folder that is gone, in later trainings of this process.
    monkeypatch.setattr(trainer.writer, "EVENT_WRITERS", [])
    monkeypatch.setattr(gpu, "DEVICE", "cuda")
    with pretended_gpu(monkeypatch):
        trainings = gpu.Trainings(ball_scene, 3, None, float("inf"), tmp_path)
        rows = list(trainings.rows(*METHODS[:2])) + list(trainings.rows(METHODS[2]))
    assert set(trainings.took) == set(METHODS[:2])
    for method in ("eugen-nerf", "eugen-nerf-mlp"):
        mine = [row for row in rows if row[0].startswith(f"{method}, ")]
        assert [row[0].removeprefix(f"{method}, ") for row in mine] == [
            "3 iterations",
            *(f"{size} x {size}, {kind}" for size in (16, 32) for kind in KINDS),
        ]
        assert all(float(row[2]) > 0 for row in mine)

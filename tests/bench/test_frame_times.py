"""Frames are timed interleaved, after a warm-up, and without any work other than rendering."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from nerfstudio.cameras.cameras import Cameras
from torch import Tensor

from eugen_nerf.bench import frame_times
from eugen_nerf.bench.frame_times import WARM_UP, measure_runs, time_frames
from eugen_nerf.errors import UserError


class Scripted:
    """A pipeline whose frames take a given time on a clock that only they advance."""

    def __init__(self, name: str, seconds: float, clock: list[float], log: list[tuple[str, int]]) -> None:
        pose = torch.eye(4)[:3].repeat(3, 1, 1)
        pose[:, 0, 3] = torch.arange(3)
        cameras = Cameras(pose, 10.0, 10.0, 4.0, 4.0, width=8, height=8)
        self.datamanager = SimpleNamespace(eval_dataset=SimpleNamespace(cameras=cameras))
        self.device = torch.device("cpu")
        self.model = self
        self.name, self.seconds, self.clock, self.log = name, seconds, clock, log

    def get_outputs_for_camera(self, camera: Cameras) -> dict[str, Tensor]:
        self.clock[0] += self.seconds
        self.log.append((self.name, int(camera.camera_to_worlds[0, 0, 3])))
        return {"rgb": torch.zeros(8, 8, 3)}


def test_methods_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    log: list[tuple[str, int]] = []
    pipelines = [Scripted("a", 1.0, clock, log), Scripted("b", 2.0, clock, log), Scripted("c", 4.0, clock, log)]
    reports: list[float] = []
    frames = time_frames(pipelines, [4, 2, 4], reports.append)
    assert [[frame["seconds"] for frame in row] for row in frames] == [[1.0] * 4, [2.0] * 2, [4.0] * 4]
    # The three views spread over the dataset, then again from the start; the same for all methods.
    assert [[frame["view"] for frame in row] for row in frames] == [[0, 2, 1, 0], [0, 2], [0, 2, 1, 0]]
    warm, timed = log[: 3 * WARM_UP], log[3 * WARM_UP :]
    assert sorted(name for name, _ in warm) == sorted("abc" * WARM_UP)
    turns = [timed[0:3], timed[3:6], timed[6:8], timed[8:10]]
    assert [len({view for _, view in turn}) for turn in turns] == [1, 1, 1, 1]
    assert all(sorted(name for name, _ in turn) == list("abc") for turn in turns[:2])
    assert reports[-1] == 1.0


def test_no_method_has_a_place_or_a_predecessor_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    log: list[tuple[str, int]] = []
    time_frames([Scripted(name, 1.0, clock, log) for name in "abc"], [60] * 3)
    names = [name for name, _ in log[3 * WARM_UP :]]
    turns = [names[i : i + 3] for i in range(0, len(names), 3)]
    for name in "abc":
        places = [sum(turn[place] == name for turn in turns) for place in range(3)]
        assert min(places) > 10
        before = [first for first, second in itertools.pairwise(names) if second == name]
        assert all(before.count(other) > 15 for other in "abc" if other != name)


def test_slow_methods_are_warm_after_one_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    log: list[tuple[str, int]] = []
    reports: list[float] = []
    frames = time_frames([Scripted("a", 1.0, clock, log), Scripted("b", 60.0, clock, log)], [2, 2], reports.append)
    assert [name for name, _ in log].count("a") == WARM_UP + 2
    assert [name for name, _ in log].count("b") == 1 + 2
    assert [len(row) for row in frames] == [2, 2]
    assert reports[-1] == 1.0


class Queued(Scripted):
    """A pipeline on an asynchronous device, whose frames are ready after a synchronization."""

    asked_for = 0.0

    def get_outputs_for_camera(self, camera: Cameras) -> dict[str, Tensor]:
        self.asked_for += 2.0
        return super().get_outputs_for_camera(camera)

    def synchronize(self) -> None:
        self.clock[0] += self.asked_for
        self.asked_for = 0.0


def test_a_frame_lasts_until_the_device_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    pipeline = Queued("a", 0.0, clock, [])
    monkeypatch.setattr(frame_times, "synchronize", pipeline.synchronize)
    (frames,) = time_frames([pipeline], [3])
    assert [frame["seconds"] for frame in frames] == [2.0] * 3


def test_what_the_device_still_had_to_do_is_in_no_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(frame_times, "WARM_UP", 0)
    pipeline = Queued("a", 0.0, clock, [])
    pipeline.asked_for = 7.0
    monkeypatch.setattr(frame_times, "synchronize", pipeline.synchronize)
    (frames,) = time_frames([pipeline], [1])
    assert [frame["seconds"] for frame in frames] == [2.0]


def test_measure_runs(finished: Any) -> None:
    _, store, _, _ = finished
    runs = sorted(store.folder.glob("runs/*/*/*/config.yml"))[:2]
    table, machine = measure_runs(runs, 3, "eugen-bench render-speed")
    assert [row[0] for row in table.rows] == [f"eugen-nerf {run.parent.name}" for run in runs]
    assert all(row[0].startswith(f"eugen-nerf EUGen-seed-{seed}-") for seed, row in enumerate(table.rows))
    assert table.rows[0][-1] == "1"
    assert "[" in table.rows[1][-1]
    assert "eugen-bench render-speed" in machine
    assert frame_times.WARM_UP == 2


def test_a_run_has_its_name_inside_its_folder_too(finished: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _, store, _, _ = finished
    monkeypatch.chdir(next(store.folder.glob("runs/*/*/EUGen-seed-0-*")))
    table, _ = measure_runs([Path("config.yml")], 1, "")
    assert table.rows[0][0] == f"eugen-nerf {Path.cwd().name}"


@pytest.mark.parametrize(
    ("what", "changed"),
    [
        ("scene", {"datamanager": {"data": Path("/elsewhere/ball")}}),
        ("test photos", {"eval_dataset": {"image_filenames": [Path("r_7.png")]}}),
        ("image sizes", {"cameras": {"width": torch.tensor([[7]])}}),
    ],
)
def test_runs_whose_views_differ_have_no_ratio(
    monkeypatch: pytest.MonkeyPatch, what: str, changed: dict[str, dict[str, Any]]
) -> None:
    def run(path: Path) -> Any:
        other = changed if path.name == "b.yml" else {}
        cameras = {"width": torch.tensor([[8]]), "height": torch.tensor([[8]]), **other.get("cameras", {})}
        dataset = {"image_filenames": [Path("images_2/r_0.png")], **other.get("eval_dataset", {})}
        manager = SimpleNamespace(eval_dataset=SimpleNamespace(**dataset, cameras=SimpleNamespace(**cameras)))
        manager.config = SimpleNamespace(**{"data": Path("/data/ball"), **other.get("datamanager", {})})
        return SimpleNamespace(datamanager=manager)

    monkeypatch.setattr(frame_times, "load_run", run)
    message = rf"b\.yml and a\.yml: differ in their {what}, so their frame times cannot be compared"
    with pytest.raises(UserError, match=message):
        measure_runs([Path("a.yml"), Path("b.yml")], 1, "")


def test_at_least_one_frame(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--frames must be at least 1, not 0"):
        measure_runs([tmp_path / "config.yml"], 0, "")

"""benchmarks/gpu.py from start to end, with a CPU in place of the GPU.

The measured values are meaningless here; the tests check that no result is lost.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gpu
import gpu_kernels
import gpu_processes
import gpu_sections
import gpu_timing
import gpu_training
import pytest
import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.engine import trainer

from eugen_nerf.bench import training
from eugen_nerf.bench.jobs import Progress
from eugen_nerf.plugin.rays import ImageRayGenerator, z_order
from tests.bench.conftest import SMALL
from tests.emulator.device import EmulatedDevice, have_compiler
from tests.pretended_gpu import pretended_gpu

TASK = gpu.Task(gpu.START, float("inf"), 64, 1, None, "")


class Event:
    """An event on a fake device that starts only after all work is queued, and then finishes it at once."""

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.time = time.perf_counter()

    def query(self) -> bool:
        return False

    def elapsed_time(self, end: Event) -> float:
        return 1000 * (end.time - self.time)


def here(task: gpu.Task, problem: str | None) -> Iterator[gpu.Line]:
    """The output of a worker process, computed in this process, because the simulated GPU exists only here."""
    lines: list[gpu.Line] = []
    gpu_sections.work(gpu.Task.from_json(task.to_json()), lines.append)
    return iter(json.loads(json.dumps(lines)))


@pytest.fixture(autouse=True)
def a_cpu_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (gpu_timing, gpu_kernels, gpu_sections):
        monkeypatch.setattr(module, "DEVICE", "cpu")
    for module in (gpu_sections, gpu_kernels):
        monkeypatch.setattr(module, "WIDTHS", (16,))
    monkeypatch.setattr(gpu_training, "ROUNDS", 2)
    monkeypatch.setattr(gpu_timing, "FLUSHED_BYTES", 4)
    monkeypatch.setattr(gpu_timing.times, "__kwdefaults__", {"rounds": 2, "warm_up": 1, "alone": True})
    monkeypatch.setattr(gpu_timing, "measure_gpu", lambda: gpu.Gpu("a CPU", torch.__version__, 100.0, 2.0))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "in_a_process", here)
    monkeypatch.setattr(gpu.signal, "signal", lambda *_: None)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    """Ends with a message, because networks on a CPU do not accept half precision."""
    monkeypatch.setattr(torch, "compile", lambda module, dynamic: module)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--batch", "64", *arguments])
    with pytest.raises(SystemExit, match="Not everything could be measured"):
        gpu.main()


def table(file: Path) -> dict[tuple[str, str], tuple[str, str]]:
    """Milliseconds and note for each measurement and implementation."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in file.read_text().splitlines()[4:]]
    return {(what, who): (ms, note) for what, who, ms, _, note in rows}


@pytest.mark.usefixtures("in_this_process")
def test_all_rows_come_and_who_cannot_costs_his_own_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "folder" / "table.md"
    run(monkeypatch, "--markdown", str(file))
    told = table(file)
    assert file.read_text().startswith("a CPU, torch ")
    for work in ("forward", "forward + backward"):
        what = f"network 32-16-16-16, {work}"
        assert told[what, "ours, fp16 rows"][1].startswith("failed: TypeError")  # half precision needs a GPU
        for who in ("ours, float32 rows", "torch fp16", "torch.compile fp16"):
            assert float(told[what, who][0]) > 0
            assert "TFLOP/s" in told[what, who][1]
        assert float(told[f"hash_encode, {work.split()[-1]}", "ours"][0]) > 0
    for op in ("march", "composite, forward + backward", "select_visible"):
        mine = {who: float(ms) for (what, who), (ms, _) in told.items() if what.startswith(f"{op}, ")}
        assert set(mine) == {"ours", "torch"}
        assert min(mine.values()) >= 0
    steps = {who: float(ms) for (what, who), (ms, _) in told.items() if what.startswith("rays to gradients, ")}
    assert set(steps) == {"ours", "ours, op by op"}
    assert min(steps.values()) > 0
    assert told["hash_encode, forward", "ours, fp16 table"][1].startswith("failed: TypeError")
    assert told["tiny-cuda-nn", ""][1] == "not measured: ModuleNotFoundError: No module named 'tinycudann'"


@pytest.mark.usefixtures("in_this_process")
def test_one_section_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "table.md"
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--batch", "64", "--only", "rays", "--markdown", str(file)])
    gpu.main()
    text = file.read_text()
    assert "| march, " in text
    assert "network" not in text
    assert "hash_encode" not in text


@pytest.mark.slow
@pytest.mark.skipif(not have_compiler(), reason="no C++ compiler that knows _Float16")
@pytest.mark.usefixtures("in_this_process")
def test_tiles_on_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels run on the emulator."""
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(gpu_kernels.cuda_driver, "gpu", lambda index: EmulatedDevice(90))
    real = gpu_kernels.choices
    # Some of them, because the emulator compiles each for some seconds.
    monkeypatch.setattr(gpu_kernels, "choices", lambda *of: tuple(found[:2] for found in real(*of)))
    file = tmp_path / "table.md"
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--batch", "64", "--only", "tiles", "--markdown", str(file)])
    gpu.main()
    told = table(file)
    assert {(what.split(", ")[1], who) for what, who in told if who} == {
        ("forward", "4 warps of 32 rows"),
        ("forward", "8 warps of 16 rows"),
        ("backward", "4 warps of 32 rows, sums in registers"),
        ("backward", "8 warps of 16 rows, sums in registers"),
    }
    assert all(float(ms) > 0 for (_, who), (ms, _) in told.items() if who)

    wrong = gpu_kernels.cuda.network_forward

    def differently(*arguments: Any) -> torch.Tensor:
        return wrong(*arguments) * (2 if arguments[-1].warps == 8 else 1)

    monkeypatch.setattr(gpu_kernels.cuda, "network_forward", differently)
    with pytest.raises(SystemExit, match="Not everything could be measured"):
        gpu.main()
    assert (
        "differ from those with the chosen tiles"
        in table(file)["network 32-16-16-16, forward", "8 warps of 16 rows"][1]
    )


def test_no_width_is_begun_too_late_for_the_compiler() -> None:
    with pytest.raises(gpu_timing.TimeUp, match="too little was left"):
        next(gpu_kernels.network_rows(16, 64, gpu.Gpu(), False, time.monotonic() + 10))


@pytest.mark.usefixtures("in_this_process")
def test_a_piece_that_fails_costs_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def networks(*_: Any) -> Iterator[gpu.Row]:
        yield "network", "ours", "1.0", "1.00x", ""
        raise RuntimeError("CUDA error: an illegal\nmemory access | advice")

    monkeypatch.setattr(gpu_sections, "network_rows", networks)
    file = tmp_path / "table.md"
    run(monkeypatch, "--markdown", str(file))
    text = file.read_text()
    assert "| network | ours | 1.0 | 1.00x |  |" in text
    crash = "failed: RuntimeError: CUDA error: an illegal memory access / advice"
    assert f"| networks, 16 wide |  |  |  | {crash} |" in text
    assert "| hash_encode, backward | ours |" in text


def test_after_a_crash_its_process_does_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """No other implementation is affected."""
    waits = iter([None, RuntimeError("CUDA error"), RuntimeError("CUDA error"), RuntimeError("CUDA error")])

    def wait() -> None:
        error = next(waits)
        if error:
            raise error

    def rows(samples: int, share: float) -> Iterator[gpu.Row]:
        contenders = [(name, lambda: lambda: None) for name in ("first", "second", "third")]
        return gpu_timing.race("march", contenders, lambda *_: "")

    monkeypatch.setattr(torch.cuda, "synchronize", wait)
    monkeypatch.setattr(gpu_sections, "ray_rows", rows)
    lines: list[gpu.Line] = []
    gpu_sections.work(dataclasses.replace(TASK, section="rays"), lines.append)
    blamed = [line["row"][:2] for line in lines if "row" in line]
    assert blamed == [("march", "second"), ("rays, all cells occupied", "")]
    assert lines[-1] == {"end": gpu_processes.BROKEN}


def scripted(monkeypatch: pytest.MonkeyPatch, *processes: list[Any]) -> list[gpu.Task]:
    """Let processes output these lines, and raise those that are exceptions. Returns the tasks they receive."""
    tasks: list[gpu.Task] = []

    def tell(task: gpu.Task, problem: str | None) -> Iterator[gpu.Line]:
        tasks.append(task)
        for line in processes[len(tasks) - 1]:
            if isinstance(line, Exception):
                raise line
            yield line

    monkeypatch.setattr(gpu, "in_a_process", tell)
    return tasks


def test_a_new_process_goes_on_behind_what_the_last_one_crashed_at(monkeypatch: pytest.MonkeyPatch) -> None:
    report = gpu.Report(TASK, None)
    pieces = [{"piece": i, "pieces": 4, "doing": f"piece {i}"} for i in range(4)]
    row = ("a", "b", "1", "", "")
    tasks = scripted(
        monkeypatch,
        [pieces[0], {"row": row}, pieces[1], gpu.Lost("SIGABRT")],
        [pieces[2], {"end": gpu_processes.BROKEN}],
        [pieces[3], {"row": row}, {"end": gpu.DONE}],
    )
    report.measure("rays", 60)
    assert [task.first for task in tasks] == [0, 2, 3]
    assert report.rows == [row, ("rays, piece 1", "", "", "", "failed: SIGABRT"), row]


def test_a_process_that_does_not_start_is_not_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    report = gpu.Report(TASK, None)
    tasks = scripted(monkeypatch, [gpu.Lost("exit status 1")])
    report.measure("rays", 60)
    assert len(tasks) == 1
    assert report.rows == [("rays, starting", "", "", "", "failed: exit status 1")]


def test_a_section_ends_with_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    report = gpu.Report(TASK, None)
    tasks = scripted(monkeypatch, [{"piece": 0, "pieces": 3, "doing": "piece 0"}, gpu.Lost("killed")])
    monkeypatch.setattr(gpu.time, "monotonic", itertools.chain([0, 0], itertools.repeat(55)).__next__)
    report.measure("rays", 60)
    assert len(tasks) == 1
    assert report.rows[-1][-1] == "failed: no time is left for it"


def test_refused_kernels_are_not_launched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu.signal, "signal", lambda *_: None)
    (tmp_path / "lego").mkdir()
    monkeypatch.setenv("EUGEN_DATA", str(tmp_path))
    tasks: list[gpu.Task] = []
    begun = time.monotonic()

    def tell(task: gpu.Task, problem: str | None) -> Iterator[gpu.Line]:
        tasks.append(task)
        if task.section == gpu.START:
            yield {"gpu": vars(gpu.Gpu("a GPU"))}
            raise gpu.Lost("its process was killed")
        assert problem
        yield {"speed": {"eugen-nerf": [10.0, None]}}
        yield {"end": gpu.DONE}

    monkeypatch.setattr(gpu, "in_a_process", tell)
    file = tmp_path / "table.md"
    run(monkeypatch, "--scene", "lego", "--markdown", str(file))
    assert [task.section for task in tasks] == [gpu.START, "training", "nerfacto", "training-mlp"]
    assert tasks[-1].speeds == {"eugen-nerf": [10.0, None]}
    assert time.monotonic() < tasks[1].until < begun + 470
    assert tasks[3].until == pytest.approx(begun + 470, abs=60)  # all of the remaining time
    told = table(file)
    for section in ("networks", "hash-grid", "rays", "torch.compile"):
        assert told[section, ""][1].startswith("failed: the self-check refuses its kernels")
    assert "KERNELS NOT IN USE: the self-check has not come to its end" in file.read_text()


TELLING = """
import json, os, subprocess, sys, time
def tell(**line):
    with open(sys.argv[1], "a") as file:
        file.write(json.dumps(line) + "\\n")
"""


@pytest.mark.parametrize(
    ("code", "seconds", "why"),
    [
        ("os.abort()", 30, "its process ended by SIGABRT"),
        ("sys.exit(3)", 30, "its process ended by exit status 3"),
        ("time.sleep(60)", 2, "its process was killed after 2 s"),
    ],
)
def test_a_process_that_is_lost_has_told_what_it_knew(code: str, seconds: float, why: str, tmp_path: Path) -> None:
    child = "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']).pid"
    command = [sys.executable, "-c", f"{TELLING}\ntell(child={child})\n{code}", str(tmp_path / "lines")]
    lines = gpu.lines_of(command, tmp_path / "lines", seconds, os.environ)
    child_id = next(lines)["child"]
    with pytest.raises(gpu.Lost, match=why):
        next(lines)
    deadline = time.monotonic() + 5
    while Path(f"/proc/{child_id}/cmdline").is_file() and Path(f"/proc/{child_id}/cmdline").read_bytes():
        assert time.monotonic() < deadline, "its child lives on"


@pytest.mark.parametrize(
    ("section", "problem", "expected"),
    [
        (gpu.START, None, [None, None]),
        ("rays", None, [None, "0"]),
        ("training", "they disagree", ["reference", None]),
    ],
)
def test_the_kernels_are_checked_once(
    section: str, problem: str | None, expected: list[str | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("EUGEN_BACKEND", "EUGEN_CUDA_CHECK"):
        monkeypatch.delenv(name, raising=False)
    program = tmp_path / "program.py"
    told = "row=[os.environ.get(n) for n in ('EUGEN_BACKEND', 'EUGEN_CUDA_CHECK')]"
    program.write_text(f"{TELLING}\ndel sys.argv[1]\ntell({told}, task=json.loads(sys.argv[2]))\ntell(end='done')\n")
    monkeypatch.setattr(gpu, "PROGRAM", (sys.executable, str(program)))
    task = dataclasses.replace(TASK, section=section, until=time.monotonic() + 30)
    lines = list(gpu.in_a_process(task, problem))
    assert lines[0]["row"] == expected
    assert lines[0]["task"]["section"] == section


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so() -> None:
    result = subprocess.run([sys.executable, gpu.__file__], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.endswith("needs an NVIDIA GPU, and PyTorch sees none here.\n")


@pytest.mark.parametrize(
    ("late", "expected"), [([False] * 4, False), ([False, True] * 2, False), ([True, True, True, False], True)]
)
def test_runs_that_were_queued_too_late_do_not_count_or_are_told(
    late: list[bool], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers, milliseconds = iter(late), itertools.count(1.0)
    monkeypatch.setattr(Event, "query", lambda event: next(answers))
    monkeypatch.setattr(Event, "elapsed_time", lambda event, end: next(milliseconds))
    (found,) = gpu_timing.times(lambda: None, rounds=4)
    in_time = [ms for ms, was_late in enumerate(late, start=1) if not was_late or expected]
    assert found == gpu_timing.Time(sum(in_time) / len(in_time), expected)


def test_cpu_bound_rows_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Event, "query", lambda event: True)
    contenders = [("ours", lambda: lambda: None)]
    assert next(gpu_timing.race("march", contenders, lambda *_: "0 TB/s"))[-1] == "0 TB/s; CPU-bound"
    assert next(gpu_timing.race("step", contenders, lambda *_: "", alone=False))[-1] == ""


def test_the_gpu_waits_for_slow_queues(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[int] = []
    monkeypatch.setattr(torch.cuda, "_sleep", waits.append)
    gpu_timing.times(lambda: time.sleep(0.005), lambda: None, rounds=1)
    assert waits[0] > 0.005 * 2e9
    assert waits[1] == gpu_timing.AHEAD


class Fused(torch.nn.Module):
    """Acts like tiny-cuda-nn's modules."""

    jit_fusion = True

    def __init__(self, out: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(out, 3 if out == 32 else 32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(x, self.weight).half()


def test_tiny_cuda_nn_is_raced_with_and_without_jit_fusion(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_kernels, "mlp", lambda *_: Fused(16))
    monkeypatch.setattr(gpu_kernels, "hash_grid", lambda _: Fused(32))
    for name, rows in (
        (gpu_kernels.TCNN_ROWS, gpu_kernels.network_rows(16, 64, gpu.Gpu(), True)),
        (gpu_kernels.TCNN_TABLE, gpu_kernels.hash_rows(64, gpu.Gpu(), True)),
    ):
        mine = [row for row in rows if row[1].startswith("tcnn")]
        assert [row[1] for row in mine] == [name, f"{name}, JIT"] * 2
        for pair in (mine[:2], mine[2:]):
            slow, fast = sorted(pair, key=lambda row: bool(row[3]))
            assert not slow[3]
            assert f"slower than {fast[1]}" in slow[4]
            assert "x" in fast[3]
            assert float(fast[2]) <= float(slow[2])
        assert "rounds 0.00 M parameters to fp16 first" in mine[0][4]


def test_jit_fusion_that_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """tiny-cuda-nn continues without it, after a warning."""
    monkeypatch.setattr(gpu_kernels, "DEVICE", "cpu")
    x = torch.zeros(2, 32)
    plain, fused = gpu_kernels.by_tcnn("tcnn", lambda: Fused(16), x, x)
    assert "failed" not in plain.remark()
    assert "failed" not in fused.remark()
    fused.run.jit_fusion = False  # type: ignore[attr-defined]
    assert "JIT fusion failed" in fused.remark()
    assert "failed" not in plain.remark()


def test_rays_have_the_samples_of_a_training_step(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(gpu_sections, "ray_rows", lambda samples, share: iter([asked.append(samples)][:0]))
    monkeypatch.setattr(gpu_sections, "gradient_rows", lambda samples: iter([asked.append(samples)][:0]))
    gpu_sections.work(dataclasses.replace(TASK, section="rays", batch=1 << 20), lambda line: None)
    assert asked == [1 << 18] * 3
    torch.manual_seed(0)
    what = next(gpu_kernels.gradient_rows(4000))[0]
    assert 2000 < int(what.split()[3]) < 8000  # where the occupied blocks are is up to chance


@pytest.mark.usefixtures("in_this_process")
def test_a_scene_that_is_not_there_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EUGEN_DATA", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--scene", "lego_400"])
    with pytest.raises(SystemExit, match="there is no such scene"):
        gpu.main()
    (tmp_path / "lego_400").mkdir()
    assert gpu.scene_folder(Path("lego_400")) == tmp_path / "lego_400"


def trainings(scene: Path, steps: int, deadline: float, folder: Path, **speeds: Any) -> gpu_training.Trainings:
    return gpu_training.Trainings(scene, steps, False, deadline, folder, speeds, lambda line: None)


def test_a_training_that_is_finished_is_evaluated_though_the_minutes_are_spent() -> None:
    told: list[str] = []
    watch = gpu_training.Watch("eugen-nerf", 3, time.monotonic() + 60, lambda line: told.append(line["doing"]))
    for step in (1, 2):
        watch(Progress("training", step=step))
    watch.deadline = 0
    for progress in (Progress("training", step=3), Progress("evaluating", step=3)):
        watch(progress)
    assert "evaluating, after 3 iterations at " in told[-1]
    with pytest.raises(gpu_timing.TimeUp, match="while training, after 2 iterations"):
        watch(Progress("training", step=2))


def test_a_training_that_fails_later_has_shown_its_speed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(job: Any, folder: Path, report: Any) -> None:
        for step in (1, 2, 3):
            report(Progress("training", step=step))
        raise RuntimeError("no picture")

    monkeypatch.setattr(training, "train_and_evaluate", train)
    (row,) = trainings(tmp_path, 3, float("inf"), tmp_path).rows("eugen-nerf")
    assert row[0] == "eugen-nerf, 3 iterations"
    assert row[1].endswith(" it/s")
    assert row[-1] == "failed: RuntimeError: no picture"


def test_steps_are_compared_and_rays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"training_seconds": 9.98, "psnr": 20.0, "rays_per_second": 204_800.0}
    jobs: list[Any] = []
    monkeypatch.setattr(training, "train_and_evaluate", lambda job, *_: jobs.append(job) or values)
    ours = (5.0, 16_384.0)
    (row,) = trainings(tmp_path, 5000, float("inf"), tmp_path, **{"eugen-nerf": ours}).rows("nerfacto")
    assert row[1:3] == ("50.0 it/s", "20.00")
    assert row[3] == "4.00x a step; 16.00x a ray"
    assert row[4].startswith("0.205 M rays/s, 4096 rays a step; PSNR 20.00 dB")
    # The part of a training in which nerfacto updates its proposal networks more often than later.
    assert jobs[0].overrides["pipeline.model.proposal_warmup"] == 83
    assert jobs[0].budget.iterations == 500


def test_frames_are_drawn_in_the_order_of_the_product() -> None:
    class Model:
        _picture_rays = staticmethod(ImageRayGenerator())

    cameras = Cameras(torch.eye(4)[None, :3], 8.0, 8.0, 4.0, 4.0, 8, 8)
    rays = gpu_training.rays_of(Model, cameras, 0).flatten().directions
    row_by_row = cameras.generate_rays(camera_indices=0).flatten().directions
    torch.testing.assert_close(rays, row_by_row[z_order(8, 8)])
    assert not torch.equal(rays, row_by_row)


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
    """In a process that has not imported nerfstudio, and without the package installed."""
    code = f"""
import gpu, gpu_training
from pathlib import Path
places = Path({str(ball_scene)!r}), Path({str(tmp_path)!r})
trainings = gpu_training.Trainings(places[0], 2, False, float("inf"), places[1], dict(), print)
print(next(trainings.rows("eugen-nerf")))
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(gpu.__file__).parent), "EUGEN_CUDA_CHECK": "0"}
    command = [sys.executable, "-c", ("" if installed else HIDE_ENTRY_POINTS) + code]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert "('eugen-nerf, 2 iterations', " in result.stdout, result.stderr
    assert " it/s" in result.stdout


def test_training_ends_with_the_minutes(ball_scene: Path, tmp_path: Path) -> None:
    late = trainings(ball_scene, 5, time.monotonic(), tmp_path)
    rows = [row for method in METHODS for row in late.rows(method)]
    assert [row[0] for row in rows] == [
        f"{name}, 5 iterations" for name in ("eugen-nerf", "eugen-nerf-mlp", "nerfacto (torch)")
    ]
    assert all("failed: TimeUp: the minutes were spent while loading" in row[-1] for row in rows)


def test_training_and_frames(ball_scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With tensors of two devices that cannot be mixed."""
    train = training.train_and_evaluate

    def ours_alone(job: Any, *arguments: Any) -> dict[str, Any]:
        if job.method == "nerfacto":
            raise RuntimeError("its pictures are read by another process, where nobody pretends")
        return train(dataclasses.replace(job, overrides=dict(SMALL)), *arguments)

    monkeypatch.setattr(training, "train_and_evaluate", ours_alone)
    # nerfstudio's event writers would keep writing to a deleted folder in later trainings of this process.
    monkeypatch.setattr(trainer.writer, "EVENT_WRITERS", [])
    monkeypatch.setattr(gpu_timing, "DEVICE", "cuda")
    drawn: list[int] = []
    rays_of = gpu_training.rays_of
    monkeypatch.setattr(gpu_training, "rays_of", lambda *of: drawn.append(of[-1]) or rays_of(*of))
    with pretended_gpu(monkeypatch):
        done = trainings(ball_scene, 3, float("inf"), tmp_path)
        rows = [row for method in METHODS for row in done.rows(method)]
    assert set(done.speeds) == set(METHODS[:2])
    assert drawn
    for method in ("eugen-nerf", "eugen-nerf-mlp"):
        mine = [row for row in rows if row[0].startswith(f"{method}, ")]
        assert [row[0].removeprefix(f"{method}, ") for row in mine] == [
            "3 iterations",
            *(f"{size} x {size}, {kind}" for size in (16, 32) for kind in KINDS),
        ]
        assert all(float(row[2]) > 0 for row in mine)


@pytest.mark.parametrize("op", ["network", "hash_encode"])
def test_wrong_results_are_not_timed(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = getattr(gpu_kernels.operators, op)

    def wrong(x: torch.Tensor, *rest: Any) -> torch.Tensor:
        return right(x, *rest) * (torch.arange(len(x)) < len(x) - 5)[:, None]

    monkeypatch.setattr(gpu_kernels.operators, op, wrong)
    device = gpu.Gpu()
    rows = (
        gpu_kernels.hash_rows(64, device, False) if op != "network" else gpu_kernels.network_rows(16, 64, device, False)
    )
    with pytest.raises(RuntimeError, match=f"{op}: the last rows of the batch differ"):
        next(rows)

"""Measure seconds per frame of several runs, interleaved in one process."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from eugen_nerf.bench.machine import describe_machine
from eugen_nerf.bench.notes import machine_line
from eugen_nerf.bench.statistics import middle, paired_ratio
from eugen_nerf.bench.tables import Table, format_seconds
from eugen_nerf.bench.training import synchronize
from eugen_nerf.errors import UserError
from eugen_nerf.plugin import evaluation
from eugen_nerf.plugin.runs import load_run

WARM_UP = 2
# If the first frame takes longer, it is enough warm-up.
SECONDS_OF_WARM_UP = 5.0


def time_frames(
    pipelines: Sequence[Any],
    timed_frames: Sequence[int],
    report: Callable[[float], None] = lambda fraction: None,
) -> list[list[dict[str, float]]]:
    """Time the rendering of test views, interleaved frame by frame.

    A frame begins with a camera on the device and ends when the image is on the device. Rays are generated and
    rendered in between; no file is read or written and nothing is compared. Each pipeline renders two frames as
    warm-up, or one if that takes long. In every turn, each pipeline renders the same view, in an order of its own, so
    that neither drift of the machine nor what another pipeline leaves in the caches favors one.

    Args:
        timed_frames: number for each pipeline; one that has rendered all of its frames drops out.

    Returns:
        The frames of each pipeline: the view's index, and the seconds.
    """
    frames: list[list[dict[str, float]]] = [[] for _ in pipelines]
    total = sum(timed_frames) + WARM_UP * len(pipelines)
    done = 0
    warm_up = [0.0] * len(pipelines)
    with evaluation.forked_rng(pipelines[0].device):
        for turn in range(-WARM_UP, max(timed_frames)):
            for which in _order(turn, len(pipelines)):
                if turn >= timed_frames[which]:
                    continue
                if turn < 0 and warm_up[which] > SECONDS_OF_WARM_UP:
                    done += 1
                    continue
                view, seconds = _time_frame(pipelines[which], turn)
                if turn < 0:
                    warm_up[which] += seconds
                else:
                    frames[which].append({"view": view, "seconds": seconds})
                done += 1
                report(done / total)
    return frames


def _order(turn: int, number: int) -> list[int]:
    """A random order, the same in every measurement."""
    return random.Random(turn).sample(range(number), number)


def measure_runs(load_configs: Sequence[Path], frames: int, command: str) -> tuple[Table, str]:
    """Measure frame times of finished runs.

    Returns:
        A table, and a line describing the machine.

    Raises:
        UserError: a run cannot be loaded, the runs do not have the same test views, or `frames` is below 1.
    """
    if frames < 1:
        raise UserError(f"--frames must be at least 1, not {frames}.")
    pipelines = [load_run(path) for path in load_configs]
    _check_same_views(load_configs, pipelines)
    folders = [path.absolute().parent for path in load_configs]
    names = [f"{folder.parent.name} {folder.name}" for folder in folders]
    timed = time_frames(pipelines, [frames] * len(pipelines))
    views = [frame["view"] for frame in timed[0]]  # the same for every run
    times = [[frame["seconds"] for frame in row] for row in timed]
    rows = []
    for name, mine in zip(names, times, strict=True):
        frame = middle(mine)
        ratio = "1" if mine is times[0] else str(paired_ratio(mine, times[0], groups=views))
        rows.append(
            (
                name,
                format_seconds(frame.value),
                f"{format_seconds(frame.low)} to {format_seconds(frame.high)}",
                f"{1 / frame.value:.2f}",
                ratio,
            )
        )
    columns = ("Run", "Frame time", "Middle 80 % of frames", "FPS", "Time ratio [95 %]")
    return Table(columns, tuple(rows)), machine_line(describe_machine(command))


def _check_same_views(load_configs: Sequence[Path], pipelines: Sequence[Any]) -> None:
    """Frames of different views, or of different sizes, have no ratio.

    Raises:
        UserError: the scenes, the photos of the test splits or the image sizes of two runs differ.
    """
    for path, pipeline in zip(load_configs, pipelines, strict=True):
        for what, of in (("scene", _scene), ("test photos", evaluation.test_split), ("image sizes", _sizes)):
            if of(pipeline) != of(pipelines[0]):
                raise UserError(
                    f"{path} and {load_configs[0]}: differ in their {what}, so their frame times cannot be compared. "
                    "Measure them in separate calls."
                )


def _scene(pipeline: Any) -> Path:
    data = Path(pipeline.datamanager.config.data).resolve()
    return data.parent if data.suffix == ".json" else data


def _sizes(pipeline: Any) -> list[tuple[int, int]]:
    cameras = pipeline.datamanager.eval_dataset.cameras
    return list(zip(cameras.width.flatten().tolist(), cameras.height.flatten().tolist(), strict=True))


def _time_frame(pipeline: Any, turn: int) -> tuple[int, float]:
    cameras = pipeline.datamanager.eval_dataset.cameras
    order = evaluation.spread_order(len(cameras))
    view = order[turn % len(order)]
    camera = cameras[view : view + 1].to(pipeline.device)
    synchronize()
    start = time.perf_counter()
    evaluation.render_view(pipeline, camera)
    synchronize()
    return view, time.perf_counter() - start

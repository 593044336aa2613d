"""Jobs that the runner passes to worker processes, and the files through which both communicate.

Each job has a folder. The runner writes job.json; the worker writes progress.json (replaced repeatedly), log.txt and
finally result.json. Files work the same for a child process and for a cluster node that shares the file system, and
they outlive both.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from eugen_nerf.bench.config import Benchmark, Budget, MethodEntry, Overrides, SceneEntry
from eugen_nerf.files import replace_file

Phase = Literal["waiting", "loading", "training", "evaluating", "timing"]


@dataclass(frozen=True)
class TrainingJob:
    """Train one method on one scene with one seed, then evaluate it: one row of the results."""

    scene: str
    scene_path: str
    name: str
    method: str
    dataparser: str
    overrides: Overrides
    seed: int
    budget: Budget
    fit_schedules: bool
    curve_at: tuple[float, ...]
    curve_views: int
    eval_images: int | None
    pictures: int
    curve_pixels: int | None = None

    @property
    def label(self) -> str:
        return f"{self.scene} · {self.name} · seed {self.seed}"

    @property
    def slug(self) -> str:
        """Usable as a folder name. `runner.check_rows` ensures that the jobs of a benchmark have different ones."""
        return slug(f"{self.scene} {self.name} seed {self.seed}")

    @property
    def folder(self) -> str:
        """Name of the folder of its images; see `mark`."""
        return f"{self.slug}-{self.mark}"

    @property
    def digest(self) -> str:
        """Identifies everything on which the result depends.

        Of the scene's path only the folder's name counts, so data may be moved without a new training.
        """
        return _digest(dataclasses.replace(self, scene_path=Path(self.scene_path).name))

    @property
    def mark(self) -> str:
        """Part of the names of the training's run and images.

        A benchmark's file may be changed, resumed and changed back. The files of the earlier records must still exist
        then, so the same row with other options must not overwrite them.
        """
        return self.digest[:8]


@dataclass(frozen=True)
class FramesJob:
    """Time the frames of all methods of one scene and seed, interleaved in one process."""

    scene: str
    seed: int
    names: tuple[str, ...]
    load_configs: tuple[str, ...]  # config.yml of each run, relative to the benchmark's folder
    timed_frames: tuple[int, ...]  # of each run
    trained: tuple[str, ...]  # digests of the training jobs whose runs these are

    @property
    def label(self) -> str:
        return f"{self.scene} · frame times · seed {self.seed}"

    @property
    def slug(self) -> str:
        return slug(f"{self.scene} frames seed {self.seed}")

    @property
    def digest(self) -> str:
        return _digest(self)


Job = TrainingJob | FramesJob


@dataclass
class Progress:
    """What a worker is doing."""

    phase: Phase = "waiting"
    fraction: float = 0.0
    """Finished part of the whole job, 0 to 1."""
    step: int = 0
    psnr: float | None = None
    """PSNR of the newest point of the curve, dB."""


@dataclass
class Result:
    """The result of a job."""

    status: Literal["done", "failed"]
    message: str = ""
    """Reason of a failure, in one line."""
    values: dict[str, Any] = field(default_factory=dict)
    """The measurements."""


def training_jobs(benchmark: Benchmark) -> list[TrainingJob]:
    """All rows. The methods of a scene are adjacent, and each seed begins with a different one."""
    jobs = []
    for scene in benchmark.scenes:
        for turn, seed in enumerate(benchmark.seeds):
            first = turn % len(benchmark.methods)
            for method in benchmark.methods[first:] + benchmark.methods[:first]:
                jobs.append(_training_job(benchmark, scene, method, seed))
    return jobs


def _training_job(benchmark: Benchmark, scene: SceneEntry, method: MethodEntry, seed: int) -> TrainingJob:
    return TrainingJob(
        scene=scene.name,
        scene_path=scene.path,
        name=method.name,
        method=method.method,
        dataparser=method.dataparser,
        overrides={**benchmark.overrides, **scene.overrides, **method.overrides},
        seed=seed,
        budget=benchmark.budget,
        fit_schedules=benchmark.fit_schedules,
        curve_at=benchmark.curve.at,
        curve_views=benchmark.curve.views,
        curve_pixels=benchmark.curve.pixels,
        eval_images=method.eval_images or benchmark.eval_images,
        pictures=benchmark.pictures,
    )


def slug(text: str) -> str:
    """Letters, digits, dots, dashes and underscores of a text; a hash distinguishes other characters."""
    clean = "".join(c if c.isascii() and (c.isalnum() or c in "._") else "-" for c in text)
    if clean.strip(".") and clean == text.replace(" ", "-"):
        return clean
    return f"{clean}-{hashlib.sha256(text.encode('utf8', 'surrogateescape')).hexdigest()[:6]}"


def _digest(job: Job) -> str:
    content = dataclasses.asdict(job)
    # Results that are older than this option belong to jobs without it.
    if content.get("curve_pixels", 0) is None:
        del content["curve_pixels"]
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode("utf8", "backslashreplace")).hexdigest()[:16]


def write_json(path: Path, value: Any) -> None:
    """Replace a file atomically: readers see the old content or the new, never a part."""
    replace_file(path, json.dumps(value, indent=1, allow_nan=False).encode("utf8"))


def read_json(path: Path) -> Any:
    """Read what `write_json` wrote; None if there is no file yet."""
    try:
        return json.loads(path.read_text("utf8"))
    except FileNotFoundError:
        return None

"""Summarize the records of a benchmark: one line for each method and scene."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from eugen_nerf.bench import jobs
from eugen_nerf.bench.config import Benchmark
from eugen_nerf.bench.results import Record, ResultStore, frames_job, frames_jobs, training_job, valid_records
from eugen_nerf.bench.statistics import Interval, middle, paired_ratio, time_to_reach
from eugen_nerf.bench.values import AVERAGED


@dataclass(frozen=True)
class MethodSummary:
    """A method on one scene, or its mean over the scenes."""

    name: str
    is_reference: bool
    """Whether the ratios of the other methods refer to this one."""
    values: dict[str, float | None]
    """Means of the training records, by their names (see AVERAGED)."""
    psnr_spread: float | None = None
    """Standard deviation over the seeds, dB; None with fewer than two."""
    frame: Interval | None = None
    """Seconds per frame."""
    ratio: Interval | None = None
    """Frame time relative to the benchmark's first method, paired."""
    reach: dict[float, float | None] = field(default_factory=dict)
    """Training seconds until each target PSNR, the mean over the trainings; None where one of them missed it."""
    reached: dict[float, int] = field(default_factory=dict)
    """How many trainings reached each target PSNR."""
    psnr_common: float | None = None
    """PSNR on the views that every method was evaluated on."""
    timed_views: int = 0
    """Number of different test views whose rendering was timed."""
    evaluated: int = 0
    """Number of test views evaluated for each seed."""
    available: int = 0
    """Number of test views of the scene."""
    picture_size: tuple[int, int] | None = None
    """Width and height of the first test view; None for old records without it."""
    test_split: str | None = None
    """Identifies the photos of the test split (see `evaluation.test_split`); None for old records without it."""
    rows: int = 0
    """Number of finished trainings in this line."""
    planned: int = 0
    """Trainings that the benchmark asks for."""
    failures: tuple[str, ...] = ()
    """Messages of failed trainings."""
    curves: tuple[tuple[tuple[float, float], ...], ...] = ()
    """(training seconds, PSNR) of each training."""


@dataclass(frozen=True)
class SceneSummary:
    """The methods of one scene."""

    name: str
    methods: tuple[MethodSummary, ...]
    machines: tuple[dict[str, Any], ...]
    """One for each record, in the order of the records."""

    @property
    def common_views(self) -> bool:
        """Whether all methods were evaluated on equally many views."""
        return len({method.evaluated for method in self.methods if method.rows}) <= 1

    @property
    def common_split(self) -> bool:
        """Whether the photos of the test split are the same for all methods. Otherwise nothing can be compared."""
        return len({method.test_split for method in self.methods} - {None}) <= 1


@dataclass(frozen=True)
class Rows:
    """Finished and failed records of one benchmark."""

    trainings: dict[tuple[str, str, int], Record]  # by scene, method and seed
    frames: dict[tuple[str, int], Record]  # by scene and seed
    failed_frames: tuple[str, ...]  # messages


def collect(benchmark: Benchmark, store: ResultStore) -> Rows:
    """The newest record of each row of the benchmark's current configuration."""
    wanted = {job.digest for job in jobs.training_jobs(benchmark)}
    trainings: dict[tuple[str, str, int], Record] = {}
    frames: dict[tuple[str, int], Record] = {}
    records = valid_records(store)
    for record in records:
        if record.kind == "training" and record.digest in wanted:
            job = training_job(record)
            trainings[job.scene, job.name, job.seed] = record
    finished = {record.digest for record in trainings.values() if record.result.status == "done"}
    present = {job.digest for job in frames_jobs(benchmark, store)}
    # The last record counts: those of the current configuration come after those of fewer methods or frames.
    for record in sorted(records, key=lambda record: record.digest in present):
        if record.kind == "frames":
            timing = frames_job(record)
            # A timing of runs that have been retrained since is not valid.
            if set(timing.trained) <= finished:
                frames[timing.scene, timing.seed] = record
    failed = [record.result.message for record in frames.values() if record.result.status == "failed"]
    timed = {key: record for key, record in frames.items() if record.result.status == "done"}
    return Rows(trainings, timed, tuple(failed))


def summarize(benchmark: Benchmark, store: ResultStore) -> list[SceneSummary]:
    """A summary of each scene that has a record."""
    rows = collect(benchmark, store)
    scenes = []
    for scene in benchmark.scenes:
        records = [record for key, record in rows.trainings.items() if key[0] == scene.name]
        records += [record for key, record in rows.frames.items() if key[0] == scene.name]
        if records:
            machines = tuple(r.result.values["machine"] for r in records if "machine" in r.result.values)
            methods = _methods(benchmark, rows, scene.name)
            scenes.append(SceneSummary(scene.name, methods, machines))
    return scenes


def _methods(benchmark: Benchmark, rows: Rows, scene: str) -> tuple[MethodSummary, ...]:
    done = {
        key[1:]: record.result.values
        for key, record in rows.trainings.items()
        if key[0] == scene and record.result.status == "done"
    }
    common = (
        set.intersection(*({row["view"] for row in values["views"]} for values in done.values())) if done else set()
    )
    common_split = len({values["test_split"] for values in done.values() if "test_split" in values}) <= 1
    if not common_split:
        common = set()
    timings = {seed: record.result.values["frames"] for (name, seed), record in rows.frames.items() if name == scene}
    summaries = []
    for method in benchmark.methods:
        values = [values for (name, _), values in done.items() if name == method.name]
        failures = [
            record.result.message
            for key, record in rows.trainings.items()
            if key[:2] == (scene, method.name) and record.result.status == "failed"
        ]
        summaries.append(
            MethodSummary(
                name=method.name,
                is_reference=method is benchmark.methods[0],
                values={name: _mean([entry[name] for entry in values]) for name in AVERAGED},
                psnr_spread=float(np.std([entry["psnr"] for entry in values], ddof=1)) if len(values) > 1 else None,
                frame=_frame(timings, method.name),
                ratio=_ratio(timings, method.name, benchmark.methods[0].name) if common_split else None,
                reach=_reach(benchmark.target_psnr, values),
                reached={target: len(_times_to(target, values)) for target in benchmark.target_psnr},
                psnr_common=_common_psnr(values, common),
                timed_views=_timed_views(timings, method.name, benchmark.methods[0].name),
                evaluated=len(values[0]["views"]) if values else 0,
                available=values[0]["num_test_views"] if values else 0,
                picture_size=_picture_size(values),
                test_split=next((entry["test_split"] for entry in values if "test_split" in entry), None),
                rows=len(values),
                planned=len(benchmark.seeds),
                failures=tuple(failures),
                curves=tuple(tuple((p["seconds"], p["psnr"]) for p in entry["curve"]) for entry in values),
            )
        )
    return tuple(summaries)


def _picture_size(values: Sequence[dict[str, Any]]) -> tuple[int, int] | None:
    sizes = [entry["picture_size"] for entry in values if "picture_size" in entry]
    return (sizes[0][0], sizes[0][1]) if sizes else None


def _mean(values: Sequence[float | None]) -> float | None:
    """Mean of a value that every record has; None if one lacks it."""
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present and len(present) == len(values) else None


Timings = dict[int, dict[str, list[dict[str, float]]]]  # seed -> method -> frames


def _frame(timings: Timings, name: str) -> Interval | None:
    seconds = [frame["seconds"] for frames in timings.values() for frame in frames.get(name, [])]
    return middle(seconds) if seconds else None


def _ratio(timings: Timings, name: str, reference: str) -> Interval | None:
    pairs = _pairs(timings, name, reference)
    if not pairs or name == reference:
        return None
    times, others, views, seeds = zip(*pairs, strict=True)
    return paired_ratio(times, others, groups=views, clusters=seeds)


def _pairs(timings: Timings, name: str, reference: str) -> list[tuple[float, float, float, int]]:
    """Seconds of both methods for the same view, the view, and the seed of the trained models."""
    return [
        (mine["seconds"], other["seconds"], mine["view"], seed)
        for seed, frames in timings.items()
        # The shorter list ends where its method dropped out. Up to there, both lists have the same views.
        for mine, other in zip(frames.get(name, []), frames.get(reference, []), strict=False)
    ]


def _timed_views(timings: Timings, name: str, reference: str) -> int:
    return len({view for _, _, view, _ in _pairs(timings, name, reference)})


def _reach(targets: Sequence[float], values: Sequence[dict[str, Any]]) -> dict[float, float | None]:
    reached = {target: _times_to(target, values) for target in targets}
    return {target: _mean(times) if len(times) == len(values) else None for target, times in reached.items()}


def _times_to(target: float, values: Sequence[dict[str, Any]]) -> list[float]:
    """Training seconds until a PSNR, of the trainings that reached it."""
    times = (time_to_reach(target, [(p["seconds"], p["psnr"]) for p in entry["curve"]]) for entry in values)
    return [time for time in times if time is not None]


def _common_psnr(values: Sequence[dict[str, Any]], common: set[int]) -> float | None:
    psnrs = [row["psnr"] for entry in values for row in entry["views"] if row["view"] in common]
    return sum(psnrs) / len(psnrs) if psnrs else None


def mean_over_scenes(scenes: Sequence[SceneSummary]) -> tuple[MethodSummary, ...]:
    """The mean of each method that has results on every scene."""
    means = []
    for group in zip(*(scene.methods for scene in scenes), strict=True):
        if not all(method.rows for method in group):
            continue
        frames = [method.frame for method in group if method.frame]
        ratios = [method.ratio for method in group if method.ratio]
        means.append(
            MethodSummary(
                name=group[0].name,
                is_reference=group[0].is_reference,
                values={name: _mean([method.values[name] for method in group]) for name in AVERAGED},
                frame=_mean_range(frames) if len(frames) == len(group) else None,
                ratio=_mean_ratio(ratios) if len(ratios) == len(group) else None,
                reach={target: _mean([method.reach[target] for method in group]) for target in group[0].reach},
                reached={target: sum(method.reached[target] for method in group) for target in group[0].reached},
                psnr_common=_mean([method.psnr_common for method in group]),
                evaluated=sum(method.evaluated for method in group),
                available=sum(method.available for method in group),
                rows=sum(method.rows for method in group),
                planned=sum(method.planned for method in group),
            )
        )
    return tuple(means)


def _mean_range(ranges: Sequence[Interval]) -> Interval:
    """Geometric mean of the medians and of both limits, so that scenes with long frames do not outweigh the others."""
    logs = np.log([[i.value, i.low, i.high] for i in ranges])
    return Interval(*(float(v) for v in np.exp(logs.mean(axis=0))))


def _mean_ratio(ratios: Sequence[Interval]) -> Interval:
    """Geometric mean of independent ratios; half-widths of the logarithms add like standard errors."""
    logs = np.log([[i.value, i.low, i.high] for i in ratios])
    value = logs[:, 0].mean()
    below = np.sqrt(np.square(logs[:, 0] - logs[:, 1]).sum()) / len(logs)
    above = np.sqrt(np.square(logs[:, 2] - logs[:, 0]).sum()) / len(logs)
    return Interval(*(float(np.exp(v)) for v in (value, value - below, value + above)))

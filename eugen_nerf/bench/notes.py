"""Notes of a report on how its numbers were measured."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from eugen_nerf.bench.config import Benchmark, Curve
from eugen_nerf.bench.summary import MethodSummary, SceneSummary

FEW_VIEWS = 10  # with fewer, a bootstrap of the median is unreliable
FEW_SEEDS = 5  # with fewer, a bootstrap over the trainings is too narrow


def conditions(benchmark: Benchmark) -> list[str]:
    """Sentences that describe the comparison."""
    seeds = f"{len(benchmark.seeds)} seeds each" if len(benchmark.seeds) > 1 else f"seed {benchmark.seeds[0]}"
    return [f"Every method was trained for {benchmark.budget}, {seeds}."]


def without_mean(benchmark: Benchmark, means: Sequence[MethodSummary]) -> list[str]:
    """A sentence on the methods that a mean over the scenes lacks, if there are any."""
    shown = {method.name for method in means}
    missing = [method.name for method in benchmark.methods if method.name not in shown]
    return [f"Without results on every scene: {_named(missing, benchmark)}."] if missing else []


def missing_scenes(benchmark: Benchmark, scenes: Sequence[SceneSummary]) -> list[str]:
    """A sentence on the scenes of the benchmark that have no results yet, if there are any."""
    missing = [scene.name for scene in benchmark.scenes if scene.name not in {present.name for present in scenes}]
    return [f"Without results yet: {', '.join(missing)}."] if missing else []


def describe_machines(scenes: Sequence[SceneSummary]) -> list[str]:
    """A line for each combination of machine and versions in the records, with dates and commands."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for machine in (machine for scene in scenes for machine in scene.machines):
        groups.setdefault(_hardware_and_versions(machine), []).append(machine)
    described = []
    for line, machines in groups.items():
        days = sorted({machine["date"].split(" ")[0] for machine in machines})
        when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
        commands = ", then ".join(dict.fromkeys(f"`{machine['command']}`" for machine in machines))
        described.append(f"{when} on {line}; {commands}.")
    return described


def machine_line(machine: dict[str, Any]) -> str:
    """Hardware, versions and command of a measurement."""
    return f"{_hardware_and_versions(machine)}; `{machine['command']}`"


def _hardware_and_versions(machine: dict[str, Any]) -> str:
    processor = f"{machine['gpu']} (CUDA {machine['cuda']}), " if machine["gpu"] else ""
    threads = f" ({machine['threads']} used)" if machine["threads"] < machine["cpu_cores"] else ""
    processor += f"{machine['cpu_cores']} cores{threads} of {machine['cpu']}, {machine['memory_gib']} GiB"
    versions = ", ".join(f"{name} {machine[name]}" for name in ("torch", "nerfstudio", "eugen_nerf"))
    revision = f" at {machine['git_revision']}" if machine["git_revision"] else ""
    return f"{processor}; Python {machine['python']}, {versions}{revision}"


def notes(benchmark: Benchmark, scenes: Sequence[SceneSummary]) -> list[str]:
    """How the numbers were measured, as far as a reader needs it to judge them."""
    lines = [
        "PSNR, SSIM and LPIPS compare images in 8 bits on the dataset's background (white behind transparency), at "
        "full size, as nerfbaselines does. They are means over the test views, then over the seeds.",
        "A frame time starts with a camera and ends when the device has the image. It includes ray generation and "
        "excludes file access and metrics. The methods of a scene are interleaved frame by frame in one process, after "
        "two frames of warm-up each, or one if frames take many seconds. The time ratio is the median of the ratios "
        f"to {benchmark.methods[0].name} on the same view, with a bootstrap interval over {_resampled(benchmark)}.",
        "Training time is that of the steps alone: evaluations and the first step, which compiles kernels, are "
        "excluded.",
        f"The curve shows {_curve_pixels(benchmark.curve)}, the same for all methods; its last point therefore differs "
        "from the PSNR in the table. Times to reach a PSNR are read off the curve by linear interpolation; a method "
        "that is above the target at its first point gets that point's time.",
        "Parameters and multiply-adds are those of the networks, with EUGen layers merged. For nerfstudio's own "
        "methods they are those of the layers that run when a field is evaluated, per sample, summed over all fields. "
        "A dash means that they cannot be counted. Samples per ray are those of one test view.",
        "nerfstudio's models were built without their own LPIPS module, which downloads weights and is not used here.",
    ]
    lines += doubts(benchmark, scenes)
    if len(benchmark.seeds) > 1:
        lines.append("The number after ± is the standard deviation of the PSNR over the seeds.")
    if benchmark.fit_schedules:
        lines.append("Learning-rate schedules of all methods were stretched or compressed to the budget.")
    if not any(method.values["lpips"] is not None for scene in scenes for method in scene.methods):
        lines.append("LPIPS is left out: the weights of AlexNet were not on the disk, or the images were too small.")
    partial = dict.fromkeys(m.name for scene in scenes for m in scene.methods if m.evaluated < m.available)
    if partial:
        lines.append(
            f"Only some test views were evaluated with {_named(partial, benchmark)}, see the column Views; they are "
            "spread evenly over the split."
        )
    if any(not scene.common_views and scene.common_split for scene in scenes):
        lines.append(
            "Methods were evaluated on different numbers of views: compare them by the column for the common views."
        )
    for scene in scenes:
        sizes = {method.name: method.picture_size for method in scene.methods if method.picture_size is not None}
        if len(set(sizes.values())) > 1:
            each = ", ".join(f"{name} {width} x {height}" for name, (width, height) in sizes.items())
            lines.append(
                f"On {scene.name} the methods' images differ in size ({each}): neither PSNR nor frame times can be "
                "compared."
            )
    return lines


def doubts(benchmark: Benchmark, scenes: Sequence[SceneSummary]) -> list[str]:
    """What the intervals of the time ratios leave out, and results that cannot be compared."""
    timed = [method for scene in scenes for method in scene.methods if method.timed_views > 0]
    lines = [
        f"On {scene.name} the methods were tested on different photos, because their dataparsers split them "
        "differently: their PSNR and frame times cannot be compared."
        for scene in scenes
        if not scene.common_split
    ]
    if len({method.name for method in timed}) > 1 and len(benchmark.seeds) < FEW_SEEDS:
        trainings = "one training" if len(benchmark.seeds) == 1 else f"{len(benchmark.seeds)} trainings"
        lines.append(
            f"With {trainings} of each method, the interval of a time ratio describes these models; other trainings "
            "may differ by more."
        )
    few = dict.fromkeys(method.name for method in timed if method.timed_views < FEW_VIEWS)
    if few:
        lines.append(
            f"Frames of few views were timed with {_named(few, benchmark)}: the interval of the time ratio is too "
            "narrow there."
        )
    return lines


def _named(names: Collection[str], benchmark: Benchmark) -> str:
    """List methods. Their names may contain commas."""
    return "all methods" if len(names) == len(benchmark.methods) > 1 else "; ".join(names)


def _resampled(benchmark: Benchmark) -> str:
    return "the seeds and, within each, the views" if len(benchmark.seeds) > 1 else "the views"


def _curve_pixels(curve: Curve) -> str:
    views = "one test view" if curve.views == 1 else f"{curve.views} test views"
    return views if curve.pixels is None else f"{curve.pixels:,} pixels of {views}"

"""report.html and results.md of a benchmark's folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eugen_nerf.bench import page
from eugen_nerf.bench.config import Benchmark
from eugen_nerf.bench.results import ResultStore, read_benchmark
from eugen_nerf.bench.summary import SceneSummary, collect, mean_over_scenes, summarise
from eugen_nerf.bench.tables import method_table
from eugen_nerf.errors import UserError


def write_report(folder: Path) -> Path:
    """Write report.html, which needs no other file, and results.md beside the results.

    Returns:
        The path of report.html.

    Raises:
        UserError: the folder holds no results, or cannot be written.
    """
    benchmark = read_benchmark(folder)
    store = ResultStore(folder)
    scenes = summarise(benchmark, store)
    if not scenes:
        raise UserError(f"{folder}: holds no results yet.")
    html = page.render(benchmark, scenes, collect(benchmark, store), folder / "pictures")
    markdown = render_markdown(benchmark, scenes)
    try:
        (folder / "results.md").write_text(markdown, "utf8")
        (folder / "report.html").write_text(html, "utf8")
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}).") from error
    return folder / "report.html"


def render_markdown(benchmark: Benchmark, scenes: Sequence[SceneSummary]) -> str:
    """The tables as Markdown."""
    parts = [f"# {benchmark.title}", " ".join(conditions(benchmark))]
    parts += [f"Measured {line}" for line in describe_machines(scenes)]
    if len(scenes) > 1:
        parts += [f"## Mean of {len(scenes)} scenes", method_table(mean_over_scenes(scenes)).markdown()]
    for scene in scenes:
        parts += [f"## {scene.name}", method_table(scene.methods).markdown()]
        parts += [f"{method.name} failed: {message}" for method in scene.methods for message in method.failures]
    parts += ["## How to read it", *(f"- {note}" for note in notes(benchmark, scenes))]
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def conditions(benchmark: Benchmark) -> list[str]:
    """Sentences on what was compared."""
    seeds = f"{len(benchmark.seeds)} seeds each" if len(benchmark.seeds) > 1 else f"seed {benchmark.seeds[0]}"
    return [f"Every method was trained for {benchmark.budget}, {seeds}."]


def describe_machines(scenes: Sequence[SceneSummary]) -> list[str]:
    """A line for each kind of machine and versions among the records."""
    lines: dict[str, list[str]] = {}
    for machine in (machine for scene in scenes for machine in scene.machines):
        lines.setdefault(_machine(machine), []).append(machine["date"])
    described = []
    for line, dates in lines.items():
        days = sorted({date.split(" ")[0] for date in dates})
        when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
        described.append(f"{when} on {line}.")
    return described


def _machine(machine: dict[str, Any]) -> str:
    processor = f"{machine['gpu']} (CUDA {machine['cuda']}), " if machine["gpu"] else ""
    processor += f"{machine['cpu_cores']} cores of {machine['cpu']}, {machine['memory_gib']} GiB"
    versions = ", ".join(f"{name} {machine[name]}" for name in ("torch", "nerfstudio", "eugen_nerf"))
    revision = f" at {machine['git_revision']}" if machine["git_revision"] else ""
    return f"{processor}; Python {machine['python']}, {versions}{revision}; `{machine['command']}`"


def notes(benchmark: Benchmark, scenes: Sequence[SceneSummary]) -> list[str]:
    """How the numbers were made, as far as a reader needs it to judge them."""
    lines = [
        "PSNR, SSIM and LPIPS compare pictures of 8 bits on the dataset's background (white behind transparency), "
        "at full size, as nerfbaselines does. They are means over the test views, then over the seeds.",
        "A frame begins with a camera and ends when the device has its picture; rays are generated in between, no file "
        "is touched and nothing is compared. All methods of a scene took turns in one process, after two frames of "
        f"warm-up each. The time ratio is the median of the ratios to {benchmark.methods[0].name} on the same view, with "
        "a bootstrap interval.",
        "Training time is that of the steps alone: evaluations and the first step, which compiles kernels, are "
        "outside the clock.",
        "The curve shows a few test views, the same for all; its last point is therefore not the PSNR of the table. "
        "Times to reach a PSNR are read off the curve, linear between its points.",
        "Multiply-adds are those of the networks per sample, merged for EUGen, counted as they run for other methods "
        "(main field, linear layers); a dash means that they cannot be counted.",
        "nerfstudio's models were built without their own LPIPS module, which downloads weights and is not used here.",
    ]
    if benchmark.fit_schedules:
        lines.append("Learning-rate schedules of all methods were stretched or compressed to the budget.")
    if not any(method.values["lpips"] is not None for scene in scenes for method in scene.methods):
        lines.append("LPIPS is left out: the weights of AlexNet were not on the disk, or the pictures were too small.")
    partial = [scene.name for scene in scenes if any(m.evaluated < m.available for m in scene.methods)]
    if partial:
        lines.append(
            f"Only a part of the test views was evaluated on {', '.join(partial)}, see the column Views; they are spread "
            "evenly over the split."
        )
    if any(not scene.common_views for scene in scenes):
        lines.append(
            "Methods were evaluated on different numbers of views: compare them by the column of the common views."
        )
    return lines

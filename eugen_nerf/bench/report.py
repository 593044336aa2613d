"""Write report.html and results.md of a benchmark's folder."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from eugen_nerf.bench import page
from eugen_nerf.bench.config import Benchmark
from eugen_nerf.bench.folder import CONFIG, REPORT, TABLES, read_benchmark
from eugen_nerf.bench.jobs import write_json
from eugen_nerf.bench.notes import conditions, describe_machines, missing_scenes, notes, without_mean
from eugen_nerf.bench.results import RESULTS, ResultStore
from eugen_nerf.bench.summary import Rows, SceneSummary, collect, mean_over_scenes, summarize
from eugen_nerf.bench.tables import method_tables
from eugen_nerf.errors import UserError
from eugen_nerf.files import replace_file, replace_text


def write_report(folder: Path) -> Path:
    """Write report.html, which needs no other file, and results.md to the folder of the results.

    The report.html of a published folder is kept, because the images in it are nowhere else.

    Returns:
        The path of report.html, or of results.md if the former is kept.

    Raises:
        UserError: the folder has no results, or cannot be written.
    """
    benchmark = read_benchmark(folder)
    store = ResultStore(folder)
    scenes = summarize(benchmark, store)
    if not scenes:
        raise UserError(f"{folder}: holds no results yet.")
    rows = collect(benchmark, store)
    pictures = folder / "pictures"
    listed = any(record.result.values.get("pictures") for record in rows.trainings.values())
    kept = listed and not pictures.exists() and (folder / REPORT).exists()
    html = None if kept else page.render(benchmark, scenes, rows, pictures)
    markdown = render_markdown(benchmark, scenes, rows)
    try:
        replace_text(folder / TABLES, markdown)
        if html is not None:
            replace_text(folder / REPORT, html)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}).") from error
    return folder / (TABLES if kept else REPORT)


def publish(folder: Path, destination: Path) -> None:
    """Copy report, tables and results, without runs, to a folder that can be committed and that `readme` can read.

    Of the scenes' paths only the folders' names are kept. An earlier publication of the benchmark is replaced. It is
    recognized by its title, since anything else may change between measurements.

    Raises:
        UserError: the folder has files that would be lost, or a file cannot be read or written.
    """
    benchmark = read_benchmark(folder)
    try:
        _check_destination(folder, benchmark, destination)
        copies = {name: (folder / name).read_bytes() for name in (REPORT, TABLES)}
    except OSError as error:
        raise UserError(f"{error.filename or destination}: cannot be read ({error.strerror}).") from error
    scenes = tuple(dataclasses.replace(scene, path=Path(scene.path).name) for scene in benchmark.scenes)
    lines = []
    for record in ResultStore(folder).read():
        job = {**record.job}
        if "scene_path" in job:
            job["scene_path"] = Path(job["scene_path"]).name
        lines.append(json.dumps(dataclasses.asdict(dataclasses.replace(record, job=job))) + "\n")
    try:
        destination.mkdir(parents=True, exist_ok=True)
        # Write the file that identifies the folder first: after a full disk, the next attempt may replace the rest.
        write_json(destination / CONFIG, dataclasses.asdict(dataclasses.replace(benchmark, scenes=scenes)))
        for name, content in copies.items():
            replace_file(destination / name, content)
        replace_file(destination / RESULTS, "".join(lines).encode())
    except OSError as error:
        raise UserError(f"{destination}: cannot be written ({error.strerror}).") from error


def _check_destination(folder: Path, benchmark: Benchmark, destination: Path) -> None:
    """Raise UserError if files would be lost."""
    if destination.exists() and destination.samefile(folder):
        raise UserError(f"{destination}: is the folder of the results itself; publish them to another.")
    if any((destination / name).exists() for name in ("runs", "jobs")):
        raise UserError(f"{destination}: is the --out folder of a run; publish to another.")
    if (destination / CONFIG).exists():
        title = read_benchmark(destination).title
        if title != benchmark.title:
            raise UserError(
                f"{destination}: holds the results of another benchmark, {title!r}, not of {benchmark.title!r}. "
                "Publish to another folder, or remove those first."
            )
        return
    for name in (REPORT, TABLES, RESULTS):
        if (destination / name).exists():
            raise UserError(
                f"{destination / name}: is not of a benchmark and would be lost; publish to another folder."
            )


def render_markdown(benchmark: Benchmark, scenes: Sequence[SceneSummary], rows: Rows) -> str:
    """The tables as Markdown."""
    parts = [f"# {benchmark.title}", " ".join([*conditions(benchmark), *missing_scenes(benchmark, scenes)])]
    parts += [f"Measured {line}" for line in describe_machines(scenes)]
    parts += [f"Frame times failed: {message}" for message in rows.failed_frames]
    if len(scenes) > 1:
        means = mean_over_scenes(scenes)
        parts += [f"## Mean of {len(scenes)} scenes", *without_mean(benchmark, means)]
        parts += [table.markdown() for table in method_tables(means)] if means else []
    for scene in scenes:
        parts += [f"## {scene.name}", *(table.markdown() for table in method_tables(scene.methods))]
        parts += [f"{method.name} failed: {message}" for method in scene.methods for message in method.failures]
    parts += ["## How to read it", *(f"- {note}" for note in notes(benchmark, scenes))]
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"

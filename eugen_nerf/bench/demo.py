"""The demonstration behind `make demo`: python -m eugen_nerf.bench.demo --output outputs/make-demo.

It trains EUGen and the MLP baseline on a small scene with the runner of `eugen-bench run`, films the scene from a
circling camera, and compares both in a table and an image.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import tyro
from rich.console import Console

from eugen_nerf.bench.config import Benchmark, load_benchmark
from eugen_nerf.bench.engines import LocalEngine
from eugen_nerf.bench.folder import prepared_folder
from eugen_nerf.bench.jobs import TrainingJob, training_jobs, write_json
from eugen_nerf.bench.pictures import enlarged, open_picture, side_by_side
from eugen_nerf.bench.report import write_report
from eugen_nerf.bench.results import ResultStore, finished_records
from eugen_nerf.bench.runner import check_rows, run
from eugen_nerf.bench.summary import summarize
from eugen_nerf.bench.tables import Table, chosen, method_table, transposed
from eugen_nerf.cli_support import command_line, exit_on_user_error, make_console
from eugen_nerf.errors import UserError
from eugen_nerf.files import replace_text
from eugen_nerf.metrics import to_uint8

# Rows of the table, selected from those of the report.
SHOWN = (
    "PSNR (dB)",
    "SSIM",
    "FPS",
    "Stored parameters",
    "Merged network parameters",
    "Multiply-adds per sample",
    "Training",
)
FRAMES_PER_SECOND = 24
STILLS = 3
VIDEO, COMPARISON, TABLE = "orbit.mp4", "comparison.png", "table"


@dataclass
class DemoOptions:
    """Train EUGen and the MLP baseline on the demo scene, film the scene, and compare the two."""

    output: Path = Path("outputs/make-demo")
    """Folder for the results. Those of an earlier demo are replaced."""
    config: Path = Path("configs/demo.yaml")
    """The benchmark to run."""
    frames: int = 96
    """Frames of the video, once around the scene."""
    size: int = 320
    """Side length of the video in pixels."""


def demo(options: DemoOptions, console: Console) -> None:
    """Run the demonstration.

    Raises:
        UserError: an option, the configuration or the output folder cannot be used, or a training failed.
    """
    benchmark = load_benchmark(options.config)
    _check(options, benchmark)
    check_rows(benchmark)
    with prepared_folder(options.output, benchmark, replace=True) as store:
        _train_and_show(benchmark, store, options, console)


def _train_and_show(benchmark: Benchmark, store: ResultStore, options: DemoOptions, console: Console) -> None:
    _remove_earlier(store.folder)
    console.print(f"Training {_names(benchmark)} on {benchmark.scenes[0].path}, {benchmark.budget} each.", markup=False)
    outcome = run(benchmark, store, LocalEngine(), console, command_line())
    if outcome.failed:
        raise UserError(f"{outcome.failed} of the demo's jobs failed; the messages are above.")
    try:
        _show(benchmark, store, options, console)
    except OSError as error:
        raise UserError(
            f"{store.folder}: video and images cannot be written ({error.strerror or error}). The training results are "
            "saved; eugen-bench report creates their tables."
        ) from error


def _remove_earlier(folder: Path) -> None:
    """Remove the output of an earlier demo, so that it cannot be mistaken for that of a failed one."""
    names = [VIDEO, COMPARISON, f"{TABLE}.md", f"{TABLE}.json", *map(_still, range(STILLS))]
    try:
        for name in names:
            (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}).") from error


def _still(number: int) -> str:
    return f"still_{number}.png"


def _show(benchmark: Benchmark, store: ResultStore, options: DemoOptions, console: Console) -> None:
    jobs = training_jobs(benchmark)
    films = film(jobs[0], store, options, console)
    comparison = compare(jobs, store)
    report = write_report(store.folder)
    table = _table(benchmark, store)
    replace_text(store.folder / f"{TABLE}.md", table.markdown())
    write_json(store.folder / f"{TABLE}.json", _as_mapping(table))
    console.print(table.rich())
    for what, path in [*films, ("Truth and both methods", comparison), ("Full report", report)]:
        console.print(f"{what}: {path}", markup=False, soft_wrap=True)
    load_config = _load_config(jobs[0], store)
    console.print(f"Look around: ns-viewer --load-config {load_config}", markup=False, soft_wrap=True)


def _check(options: DemoOptions, benchmark: Benchmark) -> None:
    """Raise UserError for anything that would otherwise fail after the trainings."""
    for option, value, least in (("--frames", options.frames, STILLS), ("--size", options.size, 2)):
        if value < least:
            raise UserError(f"{option} must be at least {least}, not {value}.")
    if len(benchmark.scenes) > 1 or len(benchmark.seeds) > 1 or benchmark.pictures < 1:
        raise UserError(
            f"{options.config}: the demo needs one scene, one seed and pictures of at least 1; use eugen-bench run for "
            "anything else."
        )


def _names(benchmark: Benchmark) -> str:
    return " and ".join(method.name for method in benchmark.methods)


def _result(job: TrainingJob, store: ResultStore) -> dict[str, Any]:
    return finished_records(store)[job.digest].result.values


def _load_config(job: TrainingJob, store: ResultStore) -> Path:
    return store.folder / _result(job, store)["load_config"]


def film(job: TrainingJob, store: ResultStore, options: DemoOptions, console: Console) -> list[tuple[str, Path]]:
    """Write a video of novel views, and stills of it.

    Returns:
        Description and path of each.
    """
    from eugen_nerf.bench.orbit import orbit_cameras
    from eugen_nerf.plugin.evaluation import render_view
    from eugen_nerf.plugin.runs import load_run

    pipeline = load_run(_load_config(job, store))
    cameras = orbit_cameras(pipeline.datamanager.train_dataset.cameras, options.frames, options.size)
    video: Path = store.folder / VIDEO
    stills = [round(i * options.frames / STILLS) for i in range(STILLS)]
    begun = told = time.monotonic()
    writer: Any = imageio.get_writer(video, fps=FRAMES_PER_SECOND, quality=8, macro_block_size=2)
    with writer:
        for index in range(options.frames):
            picture = to_uint8(render_view(pipeline, cameras[index : index + 1].to(pipeline.device))).cpu().numpy()
            writer.append_data(picture)
            if index in stills:
                imageio.imwrite(store.folder / _still(stills.index(index)), picture)
            if time.monotonic() - told > 5:
                told = time.monotonic()
                console.print(f"Filming {job.name}: frame {index + 1} of {options.frames}", markup=False)
    console.print(f"Filmed {options.frames} frames in {time.monotonic() - begun:.0f} s.", markup=False)
    return [("Novel views", video), ("Stills", store.folder / f"{_still(0)} to {_still(STILLS - 1)}")]


def compare(jobs: list[TrainingJob], store: ResultStore) -> Path:
    """Write an image of test views: ground truth, then each method."""
    pictures = store.folder / "pictures"
    views = _result(jobs[0], store)["pictures"]
    rows = []
    for view in views:
        files = [pictures / jobs[0].folder / f"{view:04d}-truth.png"]
        files += [pictures / job.folder / f"{view:04d}.png" for job in jobs]
        rows.append([enlarged(open_picture(file), 2) for file in files])
    path = store.folder / COMPARISON
    side_by_side(rows, ["Truth", *(job.name for job in jobs)]).save(path)
    return path


def _table(benchmark: Benchmark, store: ResultStore) -> Table:
    (scene,) = summarize(benchmark, store)
    return transposed(chosen(method_table(scene.methods, f"{_names(benchmark)} after {benchmark.budget}"), SHOWN))


def _as_mapping(table: Table) -> dict[str, dict[str, str]]:
    return {name: {row[0]: row[i] for row in table.rows} for i, name in enumerate(table.columns) if i}


def main() -> None:
    """Entry point of the program."""
    console = make_console()
    with exit_on_user_error(console):
        demo(tyro.cli(DemoOptions), console)


if __name__ == "__main__":
    main()

"""The command eugen-bench."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console

from eugen_nerf.bench.config import load_benchmark
from eugen_nerf.bench.engines import Engine, LocalEngine
from eugen_nerf.bench.folder import REPORT, prepared_folder
from eugen_nerf.bench.readme import update_readme
from eugen_nerf.bench.report import publish, write_report
from eugen_nerf.bench.runner import check_rows, run
from eugen_nerf.cli_support import command_line, exit_on_user_error, make_console
from eugen_nerf.errors import UserError


@dataclass
class Run:
    """Train and measure every scene, method and seed of a YAML file, then write the report."""

    config: tyro.conf.Positional[Path]
    """The YAML file."""
    out: Path | None = None
    """Folder for the results; by default outputs/bench/NAME, with the NAME of the YAML file."""
    resume: bool = False
    """Continue in a folder that has results. Finished rows are skipped, failed ones are retried."""
    engine: Literal["local", "ray"] = "local"
    """local: one job at a time per GPU of this machine, or one at a time without GPUs. ray: an existing Ray cluster."""
    ray_address: str = "auto"
    """Address of the Ray cluster."""
    gpus_per_job: float | None = None
    """GPUs requested from Ray for each job; by default one if the cluster has any."""
    cpus_per_job: float | None = None
    """CPUs requested from Ray for each job; by default one."""


@dataclass
class Report:
    """Write report.html and results.md from the results of a folder."""

    folder: tyro.conf.Positional[Path]
    """The --out folder of a run. Its results may be incomplete."""
    publish: Path | None = None
    """Also copy report, tables and results, without runs, to this folder, so that they can be committed."""


@dataclass
class RenderSpeed:
    """Measure the frame time of a run, or of several runs, interleaved in one process."""

    load_config: tyro.conf.UseAppendAction[tuple[Path, ...]]
    """config.yml of a run, as written by ns-train. May be given several times."""
    frames: int = 20
    """Number of frames to time, spread over the test views."""


@dataclass
class Readme:
    """Write the tables of finished benchmarks into a Markdown file, between its eugen-bench markers."""

    file: tyro.conf.Positional[Path]
    """The Markdown file, with the lines <!-- eugen-bench:begin --> and <!-- eugen-bench:end -->."""
    folders: tyro.conf.Positional[tuple[Path, ...]]
    """Folders with results, in the order of their tables."""


Command = (
    Annotated[Run, tyro.conf.subcommand("run")]
    | Annotated[Report, tyro.conf.subcommand("report")]
    | Annotated[RenderSpeed, tyro.conf.subcommand("render-speed")]
    | Annotated[Readme, tyro.conf.subcommand("readme")]
)


def run_command(options: Run, console: Console) -> int:
    """Run `eugen-bench run` and return the exit status."""
    benchmark = load_benchmark(options.config)
    check_rows(benchmark)
    out = options.out or Path("outputs/bench") / options.config.stem
    with prepared_folder(out, benchmark, resume=options.resume) as store:
        interrupted = f"Interrupted. Finished rows are kept in {out}; continue with --resume."
        with exit_on_user_error(console, interrupted):
            outcome = run(benchmark, store, make_engine(options), console, command_line())
        if outcome.finished:
            console.print(f"Report: {write_report(out)}", markup=False, soft_wrap=True)
    if outcome.failed:
        console.print(f"{outcome.failed} jobs failed; --resume tries them again.", style="bold red")
    return 1 if outcome.failed else 0


def make_engine(options: Run) -> Engine:
    """Create the engine that the options ask for.

    Raises:
        UserError: Ray or its cluster is not available.
    """
    if options.engine == "local":
        return LocalEngine()
    from eugen_nerf.bench.ray_engine import RayEngine

    return RayEngine(options.ray_address, options.gpus_per_job, options.cpus_per_job)


def report_command(options: Report, console: Console) -> int:
    """Run `eugen-bench report` and return the exit status."""
    report = write_report(options.folder)
    console.print(f"Report: {report}", markup=False, soft_wrap=True)
    if report.name != REPORT:
        console.print(f"{REPORT} is left as it is: its images are nowhere else.", soft_wrap=True)
    if options.publish is not None:
        publish(options.folder, options.publish)
        console.print(f"Published to {options.publish}", markup=False, soft_wrap=True)
    return 0


def render_speed_command(options: RenderSpeed, console: Console) -> int:
    """Run `eugen-bench render-speed` and return the exit status."""
    from eugen_nerf.bench.frame_times import measure_runs

    if not options.load_config:
        raise UserError("--load-config CONFIG names a run whose frames are timed; it is missing.")
    table, machine = measure_runs(options.load_config, options.frames, command_line())
    console.print(table.rich())
    console.print(machine, markup=False, soft_wrap=True)
    return 0


def readme_command(options: Readme, console: Console) -> int:
    """Run `eugen-bench readme` and return the exit status."""
    update_readme(options.file, options.folders)
    console.print(f"Updated {options.file}", markup=False, soft_wrap=True)
    return 0


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the program."""
    options = tyro.cli(Command, prog="eugen-bench", args=arguments, description=__doc__)
    console = make_console()
    with exit_on_user_error(console):
        if isinstance(options, Run):
            status = run_command(options, console)
        elif isinstance(options, Report):
            status = report_command(options, console)
        elif isinstance(options, RenderSpeed):
            status = render_speed_command(options, console)
        else:
            status = readme_command(options, console)
    sys.exit(status)


if __name__ == "__main__":
    main()

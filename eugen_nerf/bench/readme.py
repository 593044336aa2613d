"""Write the tables of finished benchmarks into another Markdown file."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from eugen_nerf.bench.folder import read_benchmark
from eugen_nerf.bench.notes import conditions, describe_machines, doubts, missing_scenes, without_mean
from eugen_nerf.bench.results import ResultStore
from eugen_nerf.bench.summary import mean_over_scenes, summarize
from eugen_nerf.bench.tables import chosen, method_table
from eugen_nerf.errors import UserError
from eugen_nerf.files import replace_text

BEGIN, END = "<!-- eugen-bench:begin -->", "<!-- eugen-bench:end -->"

# A subset of the columns, since a README is narrow.
SHOWN = (
    "PSNR (dB)",
    "PSNR, common views",
    "SSIM",
    "LPIPS",
    "Frame time",
    "Time ratio [95 %]",
    "Training",
    "Multiply-adds per sample",
    "Views",
    "Trainings",
)


def update_readme(file: Path, folders: Sequence[Path]) -> None:
    """Replace the text between the markers of a Markdown file with the tables of benchmarks.

    The command that does so is inserted as a comment.

    Raises:
        UserError: no folders are given, the file or its markers are missing, it is not UTF-8, or a folder has no
            results.
    """
    try:
        text = file.read_bytes().decode("utf8")  # read_text would lose the line endings
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: is not in UTF-8 ({error}). Save it in that encoding.") from error
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UserError(f"{file}: lacks the lines {BEGIN} and {END}, between which the tables go.")
    if not folders:
        raise UserError(f"{file}: unchanged, no result folders given. Name the folders whose tables to insert.")
    command = shlex.join(["eugen-bench", "readme", file.name, *(folder.as_posix() for folder in folders)])
    tables = "\n".join([f"<!-- {command} -->\n", *(_section(folder) for folder in folders)])
    between = f"\n{tables}\n"
    if rest.startswith("\r\n"):
        between = between.replace("\n", "\r\n")
    try:
        replace_text(file.resolve(), f"{before}{BEGIN}{between}{END}{after}")
    except OSError as error:
        raise UserError(f"{file}: cannot be written ({error.strerror}).") from error


def _section(folder: Path) -> str:
    benchmark = read_benchmark(folder)
    scenes = summarize(benchmark, ResultStore(folder))
    if not scenes:
        raise UserError(f"{folder}: holds no results yet.")
    methods = scenes[0].methods if len(scenes) == 1 else mean_over_scenes(scenes)
    where = scenes[0].name if len(scenes) == 1 else f"mean of {len(scenes)} scenes"
    gaps = [*missing_scenes(benchmark, scenes), *(without_mean(benchmark, methods) if len(scenes) > 1 else [])]
    if not methods:
        raise UserError(f"{folder}: no method has results on every scene yet, so there is no mean to show.")
    table = chosen(method_table(methods), SHOWN).markdown()
    measured = " ".join(f"Measured {line}" for line in describe_machines(scenes))
    text = " ".join([*conditions(benchmark), *gaps, measured, *doubts(benchmark, scenes)])
    return f"**{benchmark.title}** ({where}). {text}\n\n{table}"

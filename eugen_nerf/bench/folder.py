"""The folder of a benchmark: what is in it, what may be replaced there, and its configuration."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from eugen_nerf.bench.config import Benchmark, benchmark_from_json
from eugen_nerf.bench.jobs import read_json, write_json
from eugen_nerf.bench.lock import LOCK, alone_in
from eugen_nerf.bench.results import RESULTS, ResultStore
from eugen_nerf.errors import UserError

CONFIG = "benchmark.json"
REPORT = "report.html"
TABLES = "results.md"
# Everything that a benchmark writes to its folder. Nothing else is ever removed.
OWN_FOLDERS = ("runs", "jobs", "pictures")
OWN_FILES = (RESULTS, CONFIG, REPORT, TABLES, LOCK)


def prepare_folder(folder: Path, benchmark: Benchmark, *, resume: bool = False, replace: bool = False) -> ResultStore:
    """Create the folder of a benchmark. `prepared_folder` also locks it.

    Args:
        resume: continue in a folder that has results.
        replace: remove the files of an earlier benchmark from the folder, and nothing else.

    Raises:
        UserError: the folder has content and neither option was given, its results are damaged, or it cannot be
            written.
    """
    try:
        if _check_folder(folder, benchmark, resume, replace):
            _remove_own(folder)
        folder.mkdir(parents=True, exist_ok=True)
        ResultStore(folder).read()  # find damaged results before the configuration is replaced
        for name in OWN_FOLDERS:
            (folder / name).mkdir(exist_ok=True)
        write_json(folder / CONFIG, dataclasses.asdict(benchmark))
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}).") from error
    return ResultStore(folder)


@contextmanager
def prepared_folder(
    folder: Path, benchmark: Benchmark, *, resume: bool = False, replace: bool = False
) -> Iterator[ResultStore]:
    """Create a folder with `prepare_folder`, and lock it against other benchmarks until the end.

    Raises:
        UserError: as `prepare_folder`, or another benchmark is using the folder.
    """
    try:
        _check_folder(folder, benchmark, resume, replace)  # leave no lock file in a folder that is not a benchmark's
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror}).") from error
    with alone_in(folder):
        yield prepare_folder(folder, benchmark, resume=resume, replace=replace)


def _check_folder(folder: Path, benchmark: Benchmark, resume: bool, replace: bool) -> bool:
    """Whether an earlier benchmark is to be removed. Raises UserError if the folder may not be written."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; --out takes a folder.")
    title = _title(folder)
    if replace and os.path.isfile(folder / CONFIG):
        if title != benchmark.title:
            raise UserError(
                f"{folder}: holds the results of another benchmark{f', {title!r}' if title else ''}, which would be "
                "lost. Choose another folder, or remove those first."
            )
        return True
    if folder.exists():
        _check_content(folder, resume)
    if title not in (None, benchmark.title):
        raise UserError(
            f"{folder}: holds the results of another benchmark, {title!r}, which cannot be continued with "
            f"{benchmark.title!r}. Choose another folder with --out."
        )
    return False


def _title(folder: Path) -> str | None:
    """Title of the benchmark in a folder, whatever version wrote it; None if it cannot be read."""
    try:
        data = read_json(folder / CONFIG)
    except (OSError, ValueError):
        return None
    return str(data.get("title")) if isinstance(data, dict) else None


def _check_content(folder: Path, resume: bool) -> None:
    names = {path.name for path in folder.iterdir()} - {LOCK}  # ours, or left by a run that ended before its first file
    foreign = sorted(names - {*OWN_FOLDERS, *OWN_FILES})
    if foreign and CONFIG not in names:
        raise UserError(f"{folder}: holds other files ({foreign[0]}) and no benchmark. Choose another folder.")
    if names and not resume:
        raise UserError(f"{folder}: is not empty. Continue there with --resume, or choose another folder with --out.")


def _remove_own(folder: Path) -> None:
    for name in OWN_FOLDERS:
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in set(OWN_FILES) - {LOCK}:  # which is held meanwhile
        (folder / name).unlink(missing_ok=True)


def read_benchmark(folder: Path) -> Benchmark:
    """Read the configuration of a folder that `prepare_folder` created.

    Raises:
        UserError: the folder has none.
    """
    path = folder / CONFIG
    try:
        data = read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}).") from error
    if data is None:
        raise UserError(f"{folder}: holds no benchmark ({CONFIG} is missing). Give the --out folder of a run.")
    return benchmark_from_json(data, str(path))

"""The results in docs/results, and the tables of README.md made from them."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

from eugen_nerf.bench.folder import TABLES, read_benchmark
from eugen_nerf.bench.readme import BEGIN, END, update_readme
from eugen_nerf.bench.report import render_markdown
from eugen_nerf.bench.results import RESULTS, ResultStore
from eugen_nerf.bench.summary import collect, summarize

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf8")
FOLDERS = sorted(path.parent for path in (ROOT / "docs" / "results").glob(f"*/{RESULTS}"))


def test_tables_of_the_readme_are_those_of_the_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    between = README.partition(BEGIN)[2].partition(END)[0]
    command = re.search(r"<!-- eugen-bench readme README.md (.*) -->", between)
    if not FOLDERS and command is None:
        pytest.skip("no results are committed")
    assert command is not None
    monkeypatch.chdir(ROOT)
    shutil.copyfile("README.md", tmp_path / "README.md")
    update_readme(tmp_path / "README.md", [Path(folder) for folder in shlex.split(command[1])])
    assert (tmp_path / "README.md").read_text("utf8") == README


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_committed_tables_are_those_of_the_rows(folder: Path) -> None:
    benchmark = read_benchmark(folder)
    store = ResultStore(folder)
    scenes = summarize(benchmark, store)
    assert scenes
    assert render_markdown(benchmark, scenes, collect(benchmark, store)) == (folder / TABLES).read_text("utf8")
    assert not any(method.failures for scene in scenes for method in scene.methods)

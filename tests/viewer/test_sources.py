"""The viewer's own checks, and that the built viewer in the package matches its sources."""

from __future__ import annotations

import gzip
import hashlib
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.viewer import fixture
from tests.viewer.conftest import ROOT

VIEWER = ROOT / "viewer"
BUILT = ROOT / "eugen_nerf" / "export" / "web"
BUDGET = 40_000  # bytes of the page without its scene, compressed


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def source_hash() -> str:
    """The hash as computed by vite.config.ts."""
    names = ["index.html", "package.json", "package-lock.json", "vite.config.ts"]
    for folder in ("public", "src"):
        names += [str(path.relative_to(VIEWER)) for path in (VIEWER / folder).rglob("*") if path.is_file()]
    digest = hashlib.sha256()
    for name in sorted(names):
        digest.update(f"{name}\0".encode() + (VIEWER / name).read_bytes() + b"\0")
    return digest.hexdigest()


def test_the_built_viewer_is_that_of_the_sources() -> None:
    built = (BUILT / "sources.sha256").read_text().strip()
    assert built == source_hash(), "viewer/ has changed since it was built: run npm run build there"


def test_the_built_viewer_is_small_and_names_no_host() -> None:
    content = files(BUILT)
    assert sum(len(gzip.compress(data)) for data in content.values()) <= BUDGET
    for name, data in content.items():
        if name != "icon.svg":  # its XML namespace looks like an address
            assert b"http://" not in data, name
            assert b"https://" not in data, name


def test_browsers_without_light_and_dark_have_every_color() -> None:
    """In browsers without light-dark(), a declaration with it is invalid, and uses of its variable are transparent."""
    style = (VIEWER / "src" / "style.css").read_text()
    chosen = re.findall(r"(--\w+): light-dark\(", style)
    assert len(chosen) == style.count("light-dark(") - 1  # only in variables, and in the query for its support
    fallback = style.partition("@supports not (color: light-dark(red, red)) {")[2].partition("\n}\n")[0]
    assert re.findall(r"(--\w+): ", fallback) == chosen


def test_the_fixtures_are_what_python_writes(tmp_path: Path) -> None:
    fixture.write(tmp_path)
    assert files(tmp_path) == files(fixture.FOLDER), "run python -m tests.viewer.fixture"


@pytest.fixture(scope="module")
def npm() -> str:
    """npm with the viewer's packages installed."""
    program = shutil.which("npm")
    if program is None:
        pytest.skip("no npm: the viewer's own tests need node 20.19 or newer")
    marker = VIEWER / "node_modules" / ".package-lock.json"
    if not marker.is_file() or marker.stat().st_mtime < (VIEWER / "package-lock.json").stat().st_mtime:
        done = run(program, "ci", "--no-audit", "--no-fund", "--prefer-offline")
        if done.returncode and any(
            word in done.stderr for word in ("ENOTFOUND", "ECONNREFUSED", "EAI_AGAIN", "ETIMEDOUT")
        ):
            pytest.skip("npm reaches no registry to install the viewer's packages from")
        assert done.returncode == 0, done.stderr
        marker.touch()
    return program


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=VIEWER, capture_output=True, text=True, timeout=300, check=False, env={**os.environ, **environment}
    )


def test_types_style_and_units(npm: str) -> None:
    done = run(npm, "run", "check")
    assert done.returncode == 0, done.stdout + done.stderr


def test_building_again_gives_the_same_files(npm: str, tmp_path: Path) -> None:
    done = run(npm, "run", "build", EUGEN_VIEWER_OUT=str(tmp_path / "web"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert files(tmp_path / "web") == files(BUILT)

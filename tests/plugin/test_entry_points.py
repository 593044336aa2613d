"""A part of the plugin that cannot be imported must not disable nerfstudio's other methods."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from nerfstudio.plugins.registry import discover_methods
from nerfstudio.plugins.registry_dataparser import discover_dataparsers
from nerfstudio.plugins.types import MethodSpecification

from eugen_nerf.plugin import entry_points as ours
from eugen_nerf.plugin.dataparsers import SceneDataParserConfig

CONVERTED = {"eugen-vanilla-nerf", "eugen-mipnerf", "eugen-nerfacto"}
FIELD_METHODS = {"eugen-nerf", "eugen-nerf-order2", "eugen-nerf-mlp", "eugen-nerf-low-rank", "eugen-nerf-snnk"}
METHODS = FIELD_METHODS | CONVERTED
DATAPARSERS = {"eugen-scene", "eugen-blender", "eugen-transforms", "eugen-colmap", "eugen-llff"}


def test_nerfstudio_discovers_the_methods() -> None:
    methods, descriptions = discover_methods()
    assert set(methods) >= METHODS
    for name in METHODS:
        assert methods[name].method_name == name
        assert descriptions[name]


def test_nerfstudio_discovers_the_dataparsers() -> None:
    dataparsers, descriptions = discover_dataparsers()
    assert set(dataparsers) >= DATAPARSERS
    for name in DATAPARSERS:
        config = dataparsers[name]
        assert isinstance(config, SceneDataParserConfig)
        assert config.layout == ("auto" if name == "eugen-scene" else name.removeprefix("eugen-"))
        assert descriptions[name]


def test_every_declared_entry_point_resolves() -> None:
    declared = [
        point
        for group in ("nerfstudio.method_configs", "nerfstudio.dataparser_configs")
        for point in entry_points(group=group)
        if point.value.startswith("eugen_nerf.")
    ]
    assert {point.name for point in declared} == METHODS | DATAPARSERS
    for point in declared:
        assert not isinstance(point.load(), ours.Unavailable), point.name


def test_nerfstudio_knows_the_methods_where_ours_are_imported_first() -> None:
    program = """
from eugen_nerf.plugin.methods import eugen_vanilla_nerf
from nerfstudio.configs.method_configs import all_methods
print(*all_methods)
"""
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert set(run.stdout.split()) >= METHODS
    assert "Warning" not in run.stdout


@pytest.mark.parametrize("error", [ImportError("no module named x"), AttributeError("y"), OSError("libz.so")])
def test_an_import_failure_becomes_a_stand_in(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(name: str) -> None:
        assert name == "eugen_nerf.plugin.methods"
        raise error

    monkeypatch.setattr(ours.importlib, "import_module", fail)
    stand_in = ours.methods__eugen_nerf_mlp
    assert isinstance(stand_in, ours.Unavailable)
    assert not isinstance(stand_in, MethodSpecification)
    assert repr(stand_in) == f"eugen-nerf-mlp of eugen-nerf, which cannot be loaded ({type(error).__name__}: {error})"


@pytest.mark.parametrize("name", ["methods", "models__x", "__path__", "nothing"])
def test_other_attributes_do_not_exist(name: str) -> None:
    with pytest.raises(AttributeError, match=name):
        getattr(ours, name)


def test_nerfstudio_goes_on_without_a_broken_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a separate process, in which importing the model fails as with an incompatible version of nerfstudio."""
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['eugen_nerf.plugin.model'] = None\n")
    program = """
from nerfstudio.configs.method_configs import all_methods
from nerfstudio.configs.dataparser_configs import all_dataparsers
print("methods:", *sorted(all_methods))
print("dataparsers:", *sorted(all_dataparsers))
"""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = {line.split(":")[0]: line.split() for line in done.stdout.splitlines() if ": " in line}
    assert "nerfacto" in lines["methods"]
    assert not METHODS & set(lines["methods"])
    assert set(lines["dataparsers"]) >= DATAPARSERS  # they do not need the model
    text = " ".join(done.stdout.split())
    assert "eugen-nerf of eugen-nerf, which cannot be loaded" in text
    assert "eugen_nerf.plugin.model" in text

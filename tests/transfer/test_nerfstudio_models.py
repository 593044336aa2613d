"""eugen-transfer on runs of nerfstudio's own methods."""

from __future__ import annotations

import dataclasses
import io
import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import tyro
import yaml
from nerfstudio.configs.method_configs import AnnotatedBaseConfigUnion
from nerfstudio.scripts import eval as ns_eval
from nerfstudio.scripts.train import main
from rich.console import Console

from eugen_nerf.errors import UserError
from eugen_nerf.plugin.compat import without_nerfstudio_lpips
from eugen_nerf.transfer.cli import Transfer, transfer

pytestmark = pytest.mark.slow

# Each method: small options, steps, features, its new name, networks with the number of their EUGen layers.
METHODS: dict[str, tuple[list[str], int, int, str, dict[str, int]]] = {
    "vanilla-nerf": (
        ["--pipeline.model.num-coarse-samples=8", "--pipeline.model.num-importance-samples=8"],
        25,
        128,
        "eugen-vanilla-nerf",
        {"field_coarse.mlp_base": 3, "field_fine.mlp_base": 3},
    ),
    "mipnerf": (
        ["--pipeline.model.num-coarse-samples=8", "--pipeline.model.num-importance-samples=8"],
        25,
        128,
        "eugen-mipnerf",
        {"field.mlp_base": 3},
    ),
    "nerfacto": (
        [
            "--pipeline.model.implementation=torch",
            "--pipeline.model.log2-hashmap-size=10",
            "--pipeline.model.num-proposal-samples-per-ray",
            "16",
            "8",
            "--pipeline.model.num-nerf-samples-per-ray=8",
            "--pipeline.datamanager.pixel-sampler.num-rays-per-batch=64",
        ],
        40,
        32,
        "eugen-nerfacto",
        {"field.mlp_head": 1},
    ),
}


def train(method: str, scene: Path, output: Path) -> Path:
    small, steps, *_ = METHODS[method]
    words = [
        method,
        f"--output-dir={output}",
        "--timestamp=t",
        f"--max-num-iterations={steps}",
        "--machine.device-type=cpu",
        "--mixed-precision=False",
        "--vis=tensorboard",
        "--logging.local-writer.enable=False",
        "--pipeline.datamanager.train-num-rays-per-batch=64",
        "--steps-per-eval-image=1000",
        "--steps-per-eval-batch=1000",
        *small,
        "blender-data",
        f"--data={scene}",
        "--scale-factor=0.9",
    ]
    with without_nerfstudio_lpips():
        config: Any = tyro.cli(AnnotatedBaseConfigUnion, args=words)  # type: ignore[call-overload]
        main(config)
    return Path(config.get_base_dir())


@pytest.fixture(scope="module")
def runs(ball_scene: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of each method."""
    output = tmp_path_factory.mktemp("nerfstudio")
    return {method: train(method, ball_scene, output) for method in METHODS}


@pytest.mark.parametrize("method", METHODS)
def test_a_run_becomes_one_with_eugen_layers(
    method: str, runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runs[method]
    *_, features, name, layers = METHODS[method]
    console = Console(file=io.StringIO(), width=160)
    given = Transfer(
        run / "config.yml", features, pixel_fraction=1.0, max_samples=3000, views=1, timestamp="s", ridge=1e-9
    )
    outcome = transfer(given, console)
    assert outcome.run.parts[-2:] == (name, "s")
    assert {path: len(shares) for path, shares in outcome.explained.items()} == layers
    assert all(share > 0.5 for shares in outcome.explained.values() for share in shares)
    assert outcome.after["psnr"] > outcome.before["psnr"] - 0.5
    assert outcome.after["multiply_adds_per_sample"] < outcome.before["multiply_adds_per_sample"]

    result = tmp_path / "result.json"
    monkeypatch.setattr(
        sys, "argv", ["ns-eval", f"--load-config={outcome.run / 'config.yml'}", f"--output-path={result}"]
    )
    ns_eval.entrypoint()
    assert abs(json.loads(result.read_text())["results"]["psnr"] - outcome.after["psnr"]) < 1

    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert f"ns-train {name}" in printed
    assert "--pipeline.model.eugen.feature-bias True" in printed
    command = shlex.split(printed[printed.index("ns-train") :])
    assert command[:2] == ["ns-train", name]
    more: Any = tyro.cli(AnnotatedBaseConfigUnion, args=command[1:])  # type: ignore[call-overload]
    written = yaml.load((outcome.run / "config.yml").read_text(), Loader=yaml.Loader)
    assert more.pipeline.model == written.pipeline.model
    # The scene has the same world coordinates.
    assert more.pipeline.datamanager.dataparser == dataclasses.replace(
        written.pipeline.datamanager.dataparser, data=more.pipeline.datamanager.dataparser.data
    )
    assert more.data == written.pipeline.datamanager.dataparser.data


def test_a_plan_that_does_not_fit(runs: dict[str, Path]) -> None:
    run = runs["nerfacto"]
    with pytest.raises(
        UserError,
        match=r"do not fit the model: field\.mlp_head\.layers\.0, Linear.*65 features .* more than its 64 units",
    ):
        transfer(Transfer(run / "config.yml", 65, views=1), Console(file=io.StringIO()))
    with pytest.raises(UserError, match=r"^--layers, .* do not fit the model: 'trunk' matches no .*: .*mlp_head"):
        transfer(Transfer(run / "config.yml", 8, layers=("trunk",), views=1), Console(file=io.StringIO()))
    with pytest.raises(UserError, match=r"proposal_networks\.0.*, proposal_networks\.1.* cannot be transferred"):
        transfer(Transfer(run / "config.yml", 8, layers=("proposal*",), views=1), Console(file=io.StringIO()))

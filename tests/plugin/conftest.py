"""Shared fixtures of the plugin's tests: options that make training take seconds, and a run trained with them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import tyro
from nerfstudio.configs.method_configs import AnnotatedBaseConfigUnion
from nerfstudio.scripts.train import main

from eugen_nerf.plugin.trainer_config import EugenTrainerConfig

SMALL_FIELD = ["num-levels=4", "log2-hashmap-size=11", "base-resolution=4", "max-resolution=32", "num-features=16"]
SMALL = [
    "--machine.device-type=cpu",
    *(f"--pipeline.model.field.{option}" for option in SMALL_FIELD),
    "--pipeline.model.steps-per-diagonal=128",
    "--pipeline.model.occupancy-threshold=0.03",
    "--pipeline.model.occupancy-resolution=16",
    "--pipeline.target-num-samples=4096",
    "--pipeline.max-num-samples-per-ray=64",
    "--logging.local-writer.enable=False",
]

Parse = Callable[..., EugenTrainerConfig]


@pytest.fixture(scope="session")
def small_options() -> list[str]:
    """Options of ns-train, to be placed after the method's name."""
    return SMALL


@pytest.fixture(scope="session")
def parse() -> Parse:
    """The configuration for an ns-train command line, appended to the small options."""

    def parse_arguments(*arguments: str | Path, method: str = "eugen-nerf") -> EugenTrainerConfig:
        words = [method, *SMALL, *map(str, arguments)]
        return tyro.cli(AnnotatedBaseConfigUnion, args=words)  # type: ignore[return-value,call-overload]

    return parse_arguments


@pytest.fixture(scope="session")
def trained_run(ball_scene: Path, parse: Parse, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run of ns-train on the ball: config.yml, checkpoints, events."""
    output = tmp_path_factory.mktemp("runs")
    config = parse(
        "--data", ball_scene, "--output-dir", output, "--timestamp=first", "--max-num-iterations=300",
        "--steps-per-eval-image=200",
    )  # fmt: skip
    main(config)
    return config.get_base_dir()

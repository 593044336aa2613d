"""A trained run of the MLP baseline, for tests that transfer it to EUGen layers."""

from __future__ import annotations

from pathlib import Path

import pytest
from nerfstudio.scripts.train import main

from tests.plugin.conftest import Parse, parse, small_options

__all__ = ["parse", "small_options"]


@pytest.fixture(scope="session")
def mlp_run(ball_scene: Path, parse: Parse, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run of eugen-nerf-mlp on the ball."""
    output = tmp_path_factory.mktemp("teachers")
    arguments = ["--data", ball_scene, "--output-dir", output, "--timestamp=mlp", "--max-num-iterations=200"]
    # At the default learning rates the teacher is better, and loses more at half of its width.
    arguments += ["--optimizers.networks.optimizer.lr=0.003", "--optimizers.encoding.optimizer.lr=0.006"]
    config = parse(*arguments, "--steps-per-eval-image=1000", method="eugen-nerf-mlp")
    main(config)
    return config.get_base_dir()

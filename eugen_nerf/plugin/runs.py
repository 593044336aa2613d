"""Load finished nerfstudio runs of any method."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from nerfstudio.configs.method_configs import all_methods

from eugen_nerf.errors import UserError
from eugen_nerf.plugin.checkpoints import check_weights, latest_checkpoint, read_checkpoint
from eugen_nerf.plugin.compat import without_nerfstudio_lpips
from eugen_nerf.plugin.run_config import read_config


def load_run(load_config: Path) -> Any:
    """The pipeline of a finished run, with its test split and the weights next to its configuration.

    nerfstudio's own eval_setup looks for the weights where the run was trained. For a run that was copied or moved,
    that is another run or none.

    Raises:
        UserError: there is no such run, or its checkpoint is missing, damaged or from another model.
    """
    config = read_config(load_config)
    file = latest_checkpoint(load_config, config)
    checkpoint = read_checkpoint(file)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pipeline = build_pipeline(config, load_config, device)
    check_weights(pipeline.model, checkpoint["pipeline"], file, str(load_config))
    pipeline.load_pipeline(checkpoint["pipeline"], checkpoint["step"])
    pipeline.eval()
    return pipeline


def build_pipeline(config: Any, load_config: Path, device: torch.device) -> Any:
    """Build the pipeline of a configuration, with the test split and new weights.

    Raises:
        UserError: this installation does not know the method.
    """
    registered: Any = all_methods.get(config.method_name)
    if not hasattr(registered, "pipeline"):
        raise UserError(f"{load_config}: is a run of {config.method_name}, which is not installed.")
    # As in nerfstudio's eval_setup: YAML loses the dataset type of a data manager.
    config.pipeline.datamanager._target = registered.pipeline.datamanager._target
    with without_nerfstudio_lpips(), fixed_image_order():
        try:
            return config.pipeline.setup(device=device, test_mode="test")
        except (FileNotFoundError, AssertionError) as error:
            if isinstance(error, AssertionError) and "does not exist" not in str(error):
                raise
            manager = config.pipeline.datamanager
            data = manager.data or manager.dataparser.data
            raise UserError(
                f"{load_config}: its scene {data} cannot be read ({str(error).rstrip('.')}). If that path is "
                "relative, run this from the folder in which the run was trained."
            ) from error


@contextlib.contextmanager
def fixed_image_order() -> Iterator[None]:
    """Fix the order in which nerfstudio shuffles cached images; otherwise training would differ between calls."""
    state = random.getstate()
    random.seed(0)
    try:
        yield
    finally:
        random.setstate(state)

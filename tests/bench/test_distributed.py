"""One training on two processes: nerfstudio wraps the model in DistributedDataParallel, here over gloo on the CPU.

ns-train itself starts several processes only for GPUs, so the processes are started here.
"""

from __future__ import annotations

import copy
import functools
import os
import random
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes, TrainingCallbackLocation
from nerfstudio.engine.optimizers import Optimizers
from torch import Tensor
from torch.cuda.amp.grad_scaler import GradScaler
from torch.nn.parallel import DistributedDataParallel

from eugen_nerf.bench.methods import apply_overrides, registered_config
from tests.bench.conftest import SMALL

STEPS = 64
RANKS = 2
SECONDS = 240.0  # far more than it takes on an idle machine
OPTIONS = {
    **SMALL,
    "pipeline.target_num_samples": 4096,
    "pipeline.datamanager.steps_drawn_at_once": 1,  # so that a step's rays follow from its seed
    # Above the mean of the cells, which is then the threshold: some cells are empty from the first update on.
    "pipeline.model.occupancy_threshold": 100.0,
    # Features are selected during this training.
    "pipeline.model.field.num_features": 8,
    "pipeline.model.field.candidate_features": 16,
}


class Training:
    """The pipeline and optimizers of nerfstudio's trainer, without its files and its loop."""

    def __init__(self, scene: Path, seed: int) -> None:
        # The order of the images in a batch comes from Python's generator, everything else from PyTorch's.
        random.seed(0)
        np.random.seed(seed)
        torch.manual_seed(seed)
        config: Any = copy.deepcopy(registered_config("eugen-nerf"))
        apply_overrides(config, OPTIONS)
        config.pipeline.datamanager.data = scene
        self.pipeline = config.pipeline.setup(device="cpu", test_mode="val")
        self.pipeline.spent = lambda step: step / STEPS
        self.optimizers = Optimizers(config.optimizers, self.pipeline.get_param_groups())
        attributes = TrainingCallbackAttributes(self.optimizers, None, self.pipeline, None)
        self.callbacks: list[TrainingCallback] = self.pipeline.get_training_callbacks(attributes)

    def begin(self, step: int) -> None:
        self.pipeline.train()
        for callback in self.callbacks:
            callback.run_callback_at_location(step, TrainingCallbackLocation.BEFORE_TRAIN_ITERATION)
        self.optimizers.zero_grad_all()

    def loss(self, step: int, rank: int) -> Tensor:
        """The number of rays of the batch that a rank draws at a step."""
        torch.manual_seed(1000 * step + rank)
        _, losses, _ = self.pipeline.get_train_loss_dict(step)
        return functools.reduce(torch.add, losses.values())

    def end(self, step: int) -> None:
        self.optimizers.optimizer_scaler_step_all(GradScaler(enabled=False))
        self.optimizers.scheduler_step_all(step)

    @property
    def rays(self) -> int:
        """The number of rays in the next batch."""
        return int(self.pipeline.datamanager.get_train_rays_per_batch())

    @rays.setter
    def rays(self, rays: int) -> None:
        self.pipeline.dynamic_num_rays_per_batch = rays
        self.pipeline._update_pixel_samplers()

    def state(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self.pipeline.model.state_dict().items()}


def rank_main(rank: int, scene: Path, folder: Path) -> None:
    """Train on one rank; write the losses, rays and occupied cells of every step, and the final state, to a file."""
    # Otherwise gloo finds the interface to listen on by the host's name.
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder / 'meet'}",
        world_size=RANKS,
        rank=rank,
        timeout=timedelta(seconds=SECONDS),
    )
    training = Training(scene, seed=rank)  # nerfstudio also gives every rank its own seed
    training.pipeline._model = DistributedDataParallel(training.pipeline._model, find_unused_parameters=True)
    losses, cells, rays = [], [], []
    for step in range(STEPS):
        training.begin(step)
        cells.append(training.pipeline.model.occupancy.bits.clone())
        rays.append(training.rays)
        loss = training.loss(step, rank)
        loss.backward()
        training.end(step)
        losses.append(loss.item())
    state = training.state()
    found = {"losses": losses, "cells": cells, "rays": rays, "state": state, "resumed": resumed(rank, scene, state)}
    torch.save(found, folder / f"rank-{rank}.pt")
    dist.destroy_process_group()


def resumed(rank: int, scene: Path, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The parameters after one more step of a training that starts with all candidates and loads the state."""
    training = Training(scene, seed=rank)
    training.pipeline._model = DistributedDataParallel(training.pipeline._model, find_unused_parameters=True)
    training.pipeline.load_pipeline({f"_model.module.{name}": value for name, value in state.items()}, STEPS)
    training.begin(STEPS)
    training.loss(STEPS, rank).backward()
    training.end(STEPS)
    return {name: value.detach().clone() for name, value in training.pipeline.model.named_parameters()}


@pytest.fixture(scope="module")
def ranks(ball_scene: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    spawn: Any = torch.multiprocessing.spawn  # type: ignore[attr-defined]
    context = spawn(rank_main, args=(ball_scene, folder), nprocs=RANKS, join=False)
    end = time.monotonic() + SECONDS
    try:
        while not context.join(timeout=1.0):
            assert time.monotonic() < end, f"the ranks have not come to an end within {SECONDS:g} s"
    finally:
        for process in context.processes:
            process.kill()
    return [torch.load(folder / f"rank-{rank}.pt") for rank in range(RANKS)]


@pytest.mark.slow
def test_loss_curve_equals_one_process_with_both_batches(ranks: list[dict[str, Any]], ball_scene: Path) -> None:
    training = Training(ball_scene, seed=0)
    losses = []
    for step in range(STEPS):
        training.begin(step)
        both = []
        for rank in range(RANKS):
            training.rays = ranks[rank]["rays"][step]
            both.append(training.loss(step, rank))
        torch.stack(both).mean().backward()
        training.end(step)
        losses.append([loss.item() for loss in both])
    expected = torch.tensor(losses)
    found = torch.tensor([rank["losses"] for rank in ranks]).T
    assert expected[-1].mean() < 0.8 * expected[0].mean()  # the training made progress
    # The sum over the ranks has another order, and Adam magnifies the round-off of small gradients.
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=2e-4)


@pytest.mark.slow
def test_ranks_hold_the_same_model_and_the_same_occupancy(ranks: list[dict[str, Any]]) -> None:
    first, second = ranks
    assert first["losses"] != second["losses"]  # the ranks saw different rays
    assert first["rays"] != second["rays"]  # and each rank adapts its own batch size
    for one, other in zip(first["cells"], second["cells"], strict=True):
        assert torch.equal(one, other)
        assert not (one == 255).all()
    assert not torch.equal(first["cells"][0], first["cells"][-1])
    assert first["state"].keys() == second["state"].keys()
    assert first["state"]["field.color_network.layers.0.weight"].shape[1] == 8  # features were selected
    for name, value in first["state"].items():
        assert torch.equal(value, second["state"][name]), name


@pytest.mark.slow
def test_ranks_go_on_from_a_checkpoint_with_selected_features(ranks: list[dict[str, Any]]) -> None:
    first, second = (rank["resumed"] for rank in ranks)
    before = ranks[0]["state"]
    weight = "field.color_network.layers.0.weight"
    assert first[weight].shape == before[weight].shape
    assert not torch.equal(first[weight], before[weight])
    for name, value in first.items():
        assert torch.equal(value, second[name]), name

"""Train and evaluate one row of a benchmark with nerfstudio's trainer, a clock and our evaluation."""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackLocation
from torch.optim.lr_scheduler import LambdaLR

from eugen_nerf.bench.counting import count
from eugen_nerf.bench.jobs import Progress, TrainingJob
from eugen_nerf.bench.machine import peak_memory
from eugen_nerf.bench.methods import row_config
from eugen_nerf.bench.scene_files import camera_fingerprint
from eugen_nerf.plugin import evaluation
from eugen_nerf.plugin.compat import without_nerfstudio_lpips
from eugen_nerf.plugin.pipeline import SampleBudgetPipeline

# Shares of a row's time, for the progress bar.
LOADING, TRAINING = 0.03, 0.85


def synchronize() -> None:
    """Wait until the device has finished all its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Clock:
    """Counts the seconds between `start` and `stop`, which both wait for the device."""

    def __init__(self) -> None:
        self._before = 0.0
        self._since: float | None = None

    def start(self) -> None:
        synchronize()
        self._since = time.perf_counter()

    def stop(self) -> None:
        synchronize()
        self._before = self.seconds
        self._since = None

    @property
    def seconds(self) -> float:
        running = 0.0 if self._since is None else time.perf_counter() - self._since
        return self._before + running


class Monitor:
    """Tracks a nerfstudio trainer through callbacks: clock, budget, curve, progress.

    The first step is not timed, because it compiles kernels and fills caches.
    """

    def __init__(self, job: TrainingJob, trainer: Any, report: Callable[[Progress], None]) -> None:
        self.job = job
        self.trainer = trainer
        self.report = report
        self.clock = Clock()
        self.steps = 0
        self.timed_rays = 0
        self.curve: list[dict[str, float]] = []
        self.pending = sorted(job.curve_at)
        views = evaluation.num_test_views(trainer.pipeline)
        self.views = evaluation.spread_order(views)[: job.curve_views]
        self._rays_of_step = 0

    def attach(self) -> None:
        """Make the trainer call this monitor around each step."""
        before = TrainingCallback([TrainingCallbackLocation.BEFORE_TRAIN_ITERATION], self._before_step)
        after = TrainingCallback([TrainingCallbackLocation.AFTER_TRAIN_ITERATION], self._after_step)
        self.trainer.callbacks = [before, *self.trainer.callbacks, after]

    @property
    def share(self) -> float:
        """Spent share of the budget."""
        budget = self.job.budget
        if budget.iterations is not None:
            return self.steps / budget.iterations
        assert budget.seconds is not None
        return min(self.clock.seconds / budget.seconds, 1.0)

    def share_before(self, step: int) -> float:
        """Share of the budget spent before a step. For future steps, only a budget of iterations knows it."""
        iterations = self.job.budget.iterations
        return self.share if iterations is None else step / iterations

    def _before_step(self, step: int) -> None:
        self._rays_of_step = self.trainer.pipeline.datamanager.get_train_rays_per_batch()

    def _after_step(self, step: int) -> None:
        self.steps += 1
        if self.steps == 1:
            self.clock.start()
        else:
            self.timed_rays += self._rays_of_step
        share = self.share
        finished = share >= 1
        if finished or (self.pending and share >= self.pending[0]):
            self.clock.stop()
            if self.pending and share >= self.pending[0]:
                self._evaluate(share)
            if finished:
                self.trainer.stop_training = True
            else:
                self.clock.start()
        psnr = self.curve[-1]["psnr"] if self.curve else None
        self.report(Progress("training", LOADING + TRAINING * share, self.steps, psnr))

    def _evaluate(self, share: float) -> None:
        self.pending = [at for at in self.pending if at > share]
        psnr = evaluation.quick_psnr(self.trainer.pipeline, self.views, self.job.curve_pixels)
        self.curve.append({"step": self.steps, "seconds": self.clock.seconds, "psnr": psnr})


def follow_clock(trainer: Any, monitor: Monitor) -> None:
    """Drive the learning-rate schedules by the spent share of the budget instead of by steps.

    With a budget in seconds, the number of steps is not known in advance.
    """
    for group, scheduler in trainer.optimizers.schedulers.items():
        max_steps = getattr(trainer.optimizers.config[group]["scheduler"], "max_steps", None)
        if max_steps is None or not isinstance(scheduler, LambdaLR):
            continue

        def scaled(rate: Callable[[Any], float], steps: int = max_steps) -> Callable[[int], float]:
            return lambda _: rate(monitor.share * steps)

        scheduler.lr_lambdas = [scaled(rate) for rate in scheduler.lr_lambdas]


def train_and_evaluate(job: TrainingJob, out: Path, report: Callable[[Progress], None]) -> dict[str, Any]:
    """Train a row, write nerfstudio's usual run folder, and evaluate on the test split.

    Args:
        out: folder of the benchmark. The run goes to `runs`, a few test views and their ground truth to `pictures`.
        report: called with the progress after every step.

    Returns:
        The measurements, as JSON data.

    Raises:
        UserError: the method or the scene cannot be used.
    """
    report(Progress("loading"))
    config = row_config(job, out / "runs", "cuda" if torch.cuda.is_available() else "cpu")
    run = config.get_base_dir()
    shutil.rmtree(run, ignore_errors=True)  # left by an interrupted attempt
    config.save_config()
    random.seed(job.seed)
    np.random.seed(job.seed)
    torch.manual_seed(job.seed)
    trainer = config.setup(local_rank=0, world_size=1)
    with without_nerfstudio_lpips():
        trainer.setup(test_mode="test")
    evaluation.check_held_out(trainer.pipeline)
    evaluation.check_background(trainer.pipeline)
    monitor = Monitor(job, trainer, report)
    monitor.attach()
    if isinstance(trainer.pipeline, SampleBudgetPipeline):
        trainer.pipeline.spent = monitor.share_before
    if job.budget.seconds is not None and job.fit_schedules:
        follow_clock(trainer, monitor)
    trainer.train()
    monitor.clock.stop()  # where something else than the budget ended the training
    memory = peak_memory()

    begun = LOADING + TRAINING
    psnr = monitor.curve[-1]["psnr"] if monitor.curve else None
    order = evaluation.spread_order(evaluation.num_test_views(trainer.pipeline))
    rows = evaluation.evaluate(
        trainer.pipeline,
        order[: job.eval_images],
        evaluation.lpips_if_on_disk(),
        lambda part: report(Progress("evaluating", begun + (1 - begun) * part, monitor.steps, psnr)),
        out / "pictures" / job.folder,
        job.pictures,
    )
    with evaluation.evaluating(trainer.pipeline):
        camera = evaluation.test_view(trainer.pipeline, order[0]).camera
        size = count(trainer.pipeline.model, camera)
    seconds = monitor.clock.seconds
    return {
        "load_config": str((run / "config.yml").relative_to(out)),
        "checkpoint_bytes": sum(os.path.getsize(file) for file in config.get_checkpoint_dir().glob("*.ckpt")),
        "steps": monitor.steps,
        "training_seconds": seconds,
        "rays_per_second": monitor.timed_rays / seconds if seconds > 0 else None,
        "curve": monitor.curve,
        "curve_views": monitor.views,
        "views": rows,
        "num_test_views": len(order),
        "test_split": evaluation.test_split(trainer.pipeline),
        "cameras": camera_fingerprint(Path(job.scene_path)),
        **{metric: evaluation.mean(rows, metric) for metric in ("psnr", "ssim", "lpips")},
        "pictures": [row["view"] for row in rows[: job.pictures]],
        "picture_size": [int(camera.width), int(camera.height)],
        **size,
        **memory,
    }

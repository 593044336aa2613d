"""Clock, budget, curve and learning rates of a row, and that measuring does not affect the training."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from eugen_nerf.bench.config import Budget, load_benchmark
from eugen_nerf.bench.jobs import Progress, TrainingJob, training_jobs
from eugen_nerf.bench.training import Clock, Monitor, follow_clock, train_and_evaluate
from eugen_nerf.errors import UserError
from eugen_nerf.plugin import evaluation
from tests.bench.conftest import WriteConfig
from tests.scenes import builders


@pytest.fixture
def job(write_config: WriteConfig) -> TrainingJob:
    return training_jobs(load_benchmark(write_config()))[0]


class Hand:
    """Replaces time.perf_counter by a clock that only advances when told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)


@pytest.fixture
def hand(monkeypatch: pytest.MonkeyPatch) -> Hand:
    return Hand(monkeypatch)


def test_clock_counts_while_it_runs(hand: Hand) -> None:
    clock = Clock()
    assert clock.seconds == 0
    clock.start()
    hand.now += 2
    assert clock.seconds == 2
    clock.stop()
    hand.now += 5
    assert clock.seconds == 2
    clock.start()
    hand.now += 1
    assert clock.seconds == 3


def fake_trainer(steps: int) -> Any:
    manager = SimpleNamespace(eval_dataset=range(4), get_train_rays_per_batch=lambda: 10)
    pipeline = SimpleNamespace(datamanager=manager)
    return SimpleNamespace(pipeline=pipeline, callbacks=[], stop_training=False)


def drive(monitor: Monitor, hand: Hand, seconds_per_step: float) -> int:
    """Run steps like nerfstudio's trainer until the monitor ends the training; return their number."""
    step = 0
    while not monitor.trainer.stop_training:
        assert step < 10_000, "the training has no end"
        monitor._before_step(step)
        hand.now += seconds_per_step
        monitor._after_step(step)
        step += 1
    return step


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch, hand: Hand) -> list[list[int]]:
    """Let evaluations take 1000 s and return 20 dB. Returns the views of each evaluation."""
    calls: list[list[int]] = []

    def quick_psnr(_: Any, views: list[int], pixels: int | None) -> float:
        calls.append(list(views))
        hand.now += 1000
        return 20.0

    monkeypatch.setattr(evaluation, "quick_psnr", quick_psnr)
    return calls


def test_iterations_and_curve(job: TrainingJob, hand: Hand, evaluated: list[list[int]]) -> None:
    reports: list[Progress] = []
    job = dataclasses.replace(job, budget=Budget(iterations=10), curve_at=(0.5, 0.1, 1.0), curve_views=2)
    monitor = Monitor(job, fake_trainer(10), reports.append)
    assert drive(monitor, hand, 2.0) == 10
    # Neither the first step nor evaluations are timed.
    assert [(p["step"], p["seconds"]) for p in monitor.curve] == [(1, 0.0), (5, 8.0), (10, 18.0)]
    assert monitor.clock.seconds == 18.0
    assert monitor.timed_rays == 90
    assert evaluated == [[0, 2]] * 3
    assert [report.step for report in reports] == list(range(1, 11))
    fractions = [report.fraction for report in reports]
    assert fractions == sorted(fractions)
    assert reports[-1].psnr == 20.0


def test_seconds_are_those_of_training(job: TrainingJob, hand: Hand, evaluated: list[list[int]]) -> None:
    job = dataclasses.replace(job, budget=Budget(seconds=60.0), curve_at=(0.5, 1.0))
    monitor = Monitor(job, fake_trainer(0), lambda _: None)
    assert drive(monitor, hand, 4.0) == 16  # one untimed step and 15 of 4 s
    assert [point["seconds"] for point in monitor.curve] == [32.0, 60.0]
    assert monitor.share == 1.0


def test_points_of_the_curve_that_one_step_passes_are_one_evaluation(
    job: TrainingJob, hand: Hand, evaluated: list[list[int]]
) -> None:
    job = dataclasses.replace(job, budget=Budget(seconds=10.0), curve_at=(0.1, 0.2, 0.3, 1.0))
    monitor = Monitor(job, fake_trainer(0), lambda _: None)
    drive(monitor, hand, 5.0)
    assert [point["seconds"] for point in monitor.curve] == [5.0, 10.0]


def test_learning_rates_follow_the_clock(job: TrainingJob) -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 200)
    own = torch.optim.lr_scheduler.StepLR(torch.optim.SGD([parameter], lr=1.0), 10)
    config = {"a": {"scheduler": SimpleNamespace(max_steps=100)}, "b": {"scheduler": SimpleNamespace()}}
    optimizers = SimpleNamespace(schedulers={"a": scheduler, "b": own}, config=config)
    monitor: Any = SimpleNamespace(share=0.0)
    follow_clock(SimpleNamespace(optimizers=optimizers), monitor)
    rates = []
    for share in (0.0, 0.5, 0.5, 1.0):
        monitor.share = share
        optimizer.step()
        scheduler.step()
        rates.append(scheduler.get_last_lr()[0])
    assert rates == [1.0, 0.75, 0.75, 0.5]


def test_steps_to_come_are_known_where_the_budget_is_in_steps(
    job: TrainingJob, hand: Hand, evaluated: list[list[int]]
) -> None:
    counted = Monitor(dataclasses.replace(job, budget=Budget(iterations=10)), fake_trainer(10), lambda _: None)
    assert [counted.share_before(step) for step in (0, 5, 10)] == [0.0, 0.5, 1.0]
    timed = Monitor(dataclasses.replace(job, budget=Budget(seconds=10.0)), fake_trainer(0), lambda _: None)
    timed.clock.start()
    hand.now += 5
    assert timed.share_before(1) == timed.share_before(2) == 0.5


@pytest.mark.slow
class TestRealTraining:
    def test_features_are_selected_before_the_last_step_at_the_latest(self, job: TrainingJob, tmp_path: Path) -> None:
        late = {"pipeline.model.field.candidate_features": 24, "pipeline.selection_fraction": 0.999}
        job = dataclasses.replace(job, overrides={**job.overrides, **late})
        train_and_evaluate(job, tmp_path, lambda _: None)
        state = torch.load(next(tmp_path.rglob("*.ckpt")), weights_only=False)["pipeline"]
        assert not any(24 in value.shape for name, value in state.items() if "_network." in name)

    def test_a_budget_in_seconds_ends_the_training(self, job: TrainingJob, tmp_path: Path) -> None:
        job = dataclasses.replace(job, budget=Budget(seconds=0.3), curve_at=(1.0,))
        values = train_and_evaluate(job, tmp_path, lambda _: None)
        assert values["training_seconds"] >= 0.3
        assert values["steps"] > 1
        checkpoint = torch.load(next(tmp_path.rglob("*.ckpt")), weights_only=False)
        # The schedule has reached its end although the number of steps was unknown.
        scheduler = checkpoint["schedulers"]["encoding"]
        assert scheduler["_last_lr"][0] < 0.1 * scheduler["base_lrs"][0]

    def test_evaluations_on_the_way_change_nothing(self, job: TrainingJob, tmp_path: Path) -> None:
        states = []
        for number, at in enumerate([(1.0,), (0.2, 0.4, 0.6, 1.0)]):
            out = tmp_path / str(number)
            train_and_evaluate(dataclasses.replace(job, curve_at=at), out, lambda _: None)
            states.append(torch.load(next(out.rglob("*.ckpt")), weights_only=False)["pipeline"])
        assert states[0].keys() == states[1].keys()
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])

    def test_rests_of_an_interrupted_attempt_are_removed(self, job: TrainingJob, tmp_path: Path) -> None:
        run = tmp_path / "runs" / "ball" / "eugen-nerf" / f"EUGen-seed-0-{job.mark}" / "nerfstudio_models"
        run.mkdir(parents=True)
        (run / "step-000000777.ckpt").write_text("half a checkpoint")
        train_and_evaluate(job, tmp_path, lambda _: None)
        assert [path.name for path in run.iterdir()] == ["step-000000011.ckpt"]

    def test_photos_that_are_trained_on_are_no_test(self, job: TrainingJob, tmp_path: Path) -> None:
        builders.make_transforms(tmp_path / "scene")
        overrides = {**job.overrides, "pipeline.datamanager.dataparser.eval_interval": 0}
        job = dataclasses.replace(job, scene_path=str(tmp_path / "scene"), overrides=overrides)
        with pytest.raises(UserError, match=r"000\.png: is in both the training .* like 2 of the 2 test .*held-out"):
            train_and_evaluate(job, tmp_path / "out", lambda _: None)

    def test_nerfacto_trains_offline_beside_ours(
        self, job: TrainingJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """With nerfstudio's own LPIPS its construction would download weights."""
        import torchvision

        def refuse(*_: Any, **__: Any) -> None:
            raise OSError("no network")

        monkeypatch.setattr(torchvision.models, "alexnet", refuse)
        small = {
            "pipeline.datamanager.train_num_rays_per_batch": 64,
            "pipeline.model.implementation": "torch",
            "pipeline.model.num_levels": 2,
            "pipeline.model.log2_hashmap_size": 8,
            "pipeline.model.hidden_dim": 8,
            "pipeline.model.hidden_dim_color": 8,
            "pipeline.model.camera_optimizer.mode": "off",
            "pipeline.model.background_color": "white",
        }
        job = dataclasses.replace(job, method="nerfacto", overrides=small, budget=Budget(iterations=3))
        values = train_and_evaluate(job, tmp_path, lambda _: None)
        assert values["psnr"] > 0
        assert values["samples_per_ray"] == 48  # the default for the main field
        # 4 encoded values -> 8 -> 1 density, 15 features; with 16 of the direction and 32 of the photo -> 8 -> 8 -> 3.
        assert values["multiply_adds_per_sample"] == (4 * 8 + 8 * 16) + (63 * 8 + 8 * 8 + 8 * 3)
        assert values["merged_network_parameters"] == values["multiply_adds_per_sample"] + (8 + 16) + (8 + 8 + 3)

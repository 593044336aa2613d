"""EugenTrainer: checkpoints are either complete or absent."""

from __future__ import annotations

import resource
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from nerfstudio.engine.trainer import Trainer
from nerfstudio.utils import writer
from torch import nn

from eugen_nerf.errors import UserError
from eugen_nerf.plugin import methods
from eugen_nerf.plugin.trainer import EugenTrainer


def trainer(folder: Path, only_latest: bool) -> EugenTrainer:
    """A trainer that contains only what it saves."""
    made: Any = EugenTrainer.__new__(EugenTrainer)
    made.checkpoint_dir = folder
    made.pipeline = nn.Linear(200, 200)
    made.optimizers = SimpleNamespace(optimizers={}, schedulers={})
    made.grad_scaler = torch.amp.GradScaler("cpu", enabled=False)
    made.config = SimpleNamespace(save_only_latest_checkpoint=only_latest)
    return made


@pytest.mark.parametrize("only_latest", [True, False])
def test_keeps_what_it_is_asked_to_keep(only_latest: bool, tmp_path: Path) -> None:
    saving = trainer(tmp_path / "models", only_latest)
    for step in (10, 20):
        saving.save_checkpoint(step)
    there = sorted(file.name for file in (tmp_path / "models").iterdir())
    assert there == ["step-000000010.ckpt", "step-000000020.ckpt"][int(only_latest) :]
    loaded = torch.load(tmp_path / "models" / there[-1])
    assert loaded["step"] == 20
    assert torch.equal(loaded["pipeline"]["weight"], saving.pipeline.weight)


def test_only_checkpoints_lie_among_checkpoints_while_one_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """nerfstudio's commands parse a step from every file name in the folder, even during training."""
    saving = trainer(tmp_path / "models", only_latest=False)
    saving.save_checkpoint(10)
    seen: list[str] = []
    save = torch.save

    def watched(state: Any, path: Path) -> None:
        save(state, path)
        seen.extend(file.name for file in (tmp_path / "models").iterdir())

    monkeypatch.setattr(torch, "save", watched)
    saving.save_checkpoint(20)
    assert seen == ["step-000000010.ckpt"]
    assert [file.name for file in tmp_path.iterdir()] == ["models"]


@pytest.mark.parametrize("full", [True, False])
def test_a_checkpoint_that_ends_half_way_leaves_the_one_before(
    full: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = tmp_path / "models"
    saving = trainer(models, only_latest=True)
    saving.save_checkpoint(10)
    before = (models / "step-000000010.ckpt").read_bytes()
    if full:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=4096))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # files end here, as on a full disk
    try:
        with pytest.raises(UserError, match=r"checkpoint of step 20 cannot be written.*Earlier .* unchanged") as told:
            saving.save_checkpoint(20)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert ("the disk is full" in str(told.value)) == full
    assert [file.name for file in tmp_path.rglob("*")] == ["models", "step-000000010.ckpt"]
    assert (models / "step-000000010.ckpt").read_bytes() == before
    assert saving.checkpoint_dir == models


def test_a_folder_that_is_gone_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/models: the checkpoint of step 1 cannot be written \(Not a directory\)"):
        trainer(tmp_path / "file" / "models", only_latest=False).save_checkpoint(1)


def test_methods_train_with_it() -> None:
    for method in (methods.eugen_nerf, methods.eugen_nerf_mlp, methods.eugen_vanilla_nerf):
        assert method.config._target is EugenTrainer


def test_progress_counts_the_steps_that_led_to_a_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(writer.GLOBAL_BUFFER, "max_iter", 30)
    monkeypatch.setattr(Trainer, "setup", lambda self, test_mode: setattr(self, "_start_step", 100))
    made: Any = EugenTrainer.__new__(EugenTrainer)
    made.config = SimpleNamespace(max_num_iterations=30)
    made.grad_scaler = torch.amp.GradScaler("cpu", enabled=False)
    made.setup("val")
    assert writer.GLOBAL_BUFFER["max_iter"] == 130


def test_mixed_precision_may_begin_at_a_checkpoint_in_full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a checkpoint holds no state of a gradient scaler, which torch's refuses."""
    monkeypatch.setitem(writer.GLOBAL_BUFFER, "max_iter", 30)
    monkeypatch.setattr(Trainer, "setup", lambda self, test_mode: setattr(self, "_start_step", 100))
    made: Any = EugenTrainer.__new__(EugenTrainer)
    made.config = SimpleNamespace(max_num_iterations=30)
    made.grad_scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    made.setup("val")
    made.grad_scaler.load_state_dict(torch.amp.GradScaler("cpu", enabled=False).state_dict())
    assert made.grad_scaler.get_scale() == 8
    made.grad_scaler.load_state_dict(torch.amp.GradScaler("cpu", init_scale=2.0).state_dict())
    assert made.grad_scaler.get_scale() == 2

"""The plugin with tensors on a GPU: no operation mixes them with tensors on the CPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from nerfstudio.scripts import train
from nerfstudio.scripts.eval import ComputePSNR
from torch import nn

from eugen_nerf import ConversionPlan, convert
from eugen_nerf.export.web import Options, export_web
from eugen_nerf.plugin.evaluation import evaluate, mean
from eugen_nerf.plugin.runs import load_run
from tests.plugin.conftest import Parse
from tests.pretended_gpu import OnGpu, pretended_gpu

pytestmark = pytest.mark.slow


def test_two_devices_do_not_mix(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests below rely on this."""
    with pretended_gpu(monkeypatch) as gpu:
        there, here = torch.arange(3, device=gpu), torch.arange(3)
        for mixed in (
            lambda: there + here,
            lambda: torch.cat([there, here]),
            lambda: here[there],
            lambda: nn.Linear(3, 2).to(gpu)(here.float()),
            lambda: torch.rand(3, generator=torch.Generator(), device=gpu),
        ):
            with pytest.raises(RuntimeError, match=r"device|cuda:0"):
                mixed()
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()
        allowed = there[here], there + torch.tensor(1), here.to(there.device), torch.zeros_like(there)
        assert {type(value) for value in allowed} == {OnGpu}
        here[1:] = there[1:]
        assert type(here) is type(there.cpu()) is torch.Tensor


@pytest.mark.parametrize("method", ["eugen-nerf", "eugen-nerf-order2", "eugen-nerf-mlp", "eugen-nerf-snnk"])
def test_training(method: str, ball_scene: Path, parse: Parse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training steps, feature selection, evaluations and a checkpoint."""
    config = parse(
        "--machine.device-type=cuda", "--data", ball_scene, "--output-dir", tmp_path, "--timestamp=now",
        "--max-num-iterations=20", "--steps-per-eval-batch=4", "--steps-per-eval-image=5",
        "--steps-per-eval-all-images=12", method=method,
    )  # fmt: skip
    with pretended_gpu(monkeypatch):
        train.main(config)
    assert len(list(config.get_checkpoint_dir().glob("step-*.ckpt"))) == 1


def test_a_finished_run(trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rendered images, evaluation by nerfstudio and export."""
    run = trained_run / "config.yml"
    with pretended_gpu(monkeypatch):
        pipeline = load_run(run)
        assert {type(parameter) for parameter in pipeline.parameters()} == {OnGpu}
        assert mean(evaluate(pipeline, [0]), "psnr") > 20
        ComputePSNR(load_config=run, output_path=tmp_path / "result.json").main()
        export_web([run], tmp_path / "page", Options())
    assert json.loads((tmp_path / "result.json").read_text())["results"]["psnr"] > 17


def test_converted_layers_are_where_the_others_are(monkeypatch: pytest.MonkeyPatch) -> None:
    with pretended_gpu(monkeypatch) as gpu:
        model = nn.TransformerEncoderLayer(16, 2, 64, activation="gelu").to(gpu)
        convert(model, ConversionPlan(num_features=8, layers=("linear1",)))
        assert {type(parameter) for parameter in model.parameters()} == {OnGpu}
        assert model(torch.randn(3, 2, 16, device=gpu)).device == gpu

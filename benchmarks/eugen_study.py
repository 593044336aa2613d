"""What EUGen layers buy at equal inference cost: training runs behind docs/eugen-study.md.

    python benchmarks/eugen_study.py run PLAN --picture NAME=FILE --scene NAME=FOLDER --output study.jsonl
    python benchmarks/eugen_study.py report study.jsonl

A plan is a list of trials, see benchmarks/eugen_study_plans.py. Trials that the output file already holds are skipped,
so a run can be interrupted and continued. Cost is that of the merged network, in multiply-adds per evaluation.
Nothing is timed.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import math
import random
from pathlib import Path
from typing import Any

import eugen_study_plans as plans
import numpy as np
import torch
from eugen_study_plans import Network, Teacher, Trial
from eugen_study_report import put_into, tables
from PIL import Image
from rich.console import Console
from torch import Tensor, nn

from eugen_nerf.field import ChainNetwork
from eugen_nerf.layers import ConversionPlan, Dense, build_network, convert
from eugen_nerf.layers.transfer import TransferOptions, transfer_network

FINAL_RATE = 1 / 30  # learning rates decay exponentially to this share of their initial values


def build(network: Network, in_features: int, num_hidden_layers: int, out_features: int) -> ChainNetwork:
    """Build hidden layers of one kind and a linear layer, evaluated as a merged chain."""
    layers = build_network(
        network.kind,
        in_features,
        network.width,
        num_hidden_layers,
        out_features,
        num_features=max(network.features, network.candidates),
        order=network.order,
        shared=network.shared,
        norm_first=network.norm,
        phi=network.phi,
        trainable_projections=network.trained_projections,
        feature_bias=network.feature_bias,
        activation=network.phi,
    )
    with torch.no_grad():
        for layer in layers[:-1]:
            for name, gain in (("weight", network.weight_gain), ("projections", network.projection_gain)):
                if hasattr(layer, name):
                    getattr(layer, name).mul_(gain)
    return ChainNetwork(layers)


def parameter_groups(module: nn.Module, trial: Trial) -> list[dict]:
    """Adam's parameter groups; projections may have their own learning rate."""
    named = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    projections = [parameter for name, parameter in named if name.endswith("projections")]
    others = [parameter for name, parameter in named if not name.endswith("projections")]
    groups = [{"params": others, "lr": trial.rate}]
    if projections:
        groups.append({"params": projections, "lr": trial.rate * trial.projection_rate})
    return groups


def conversion_plan(network: Network) -> ConversionPlan:
    """EUGen layers that a trained MLP is converted to: the network's own, or those that merge into it."""
    features = network.features if network.kind == "eugen" else network.width
    return ConversionPlan(features, order=network.order, norm=False, phi=network.phi, feature_bias=True)


def transfer_options(trial: Trial) -> TransferOptions:
    given = trial.teacher
    assert given is not None
    return TransferOptions(
        solver=given.solver,  # type: ignore[arg-type]
        rows=given.rows,  # type: ignore[arg-type]
        selection=given.selection,  # type: ignore[arg-type]
        seed=trial.seed,
    )


@torch.no_grad()
def narrow(network: ChainNetwork) -> ChainNetwork:
    """Convert EUGen layers of order 1 to the narrow MLP that they merge into."""
    chain = network.merged()
    layers: list[nn.Module] = []
    for stage in chain.stages:
        layer = Dense(stage.in_features, stage.out_features, stage.phi)
        assert layer.bias is not None
        layer.weight.copy_(stage.projections)
        if stage.offsets is None:
            layer.bias.zero_()
        else:
            layer.bias.copy_(stage.offsets)
        layers.append(layer)
    last = nn.Linear(chain.weight.shape[1], chain.out_features)
    last.weight.copy_(chain.weight)
    assert chain.bias is not None
    last.bias.copy_(chain.bias)
    return ChainNetwork(nn.Sequential(*layers, last))


class Decay:
    """Adam with exponentially decaying learning rates."""

    def __init__(self, optimizers: list[torch.optim.Optimizer], steps: int) -> None:
        self.optimizers = optimizers
        self.steps = steps
        self.schedules = [
            torch.optim.lr_scheduler.ExponentialLR(optimizer, FINAL_RATE ** (1 / steps)) for optimizer in optimizers
        ]

    def followed_by(self, optimizers: list[torch.optim.Optimizer]) -> Decay:
        """Schedule other optimizers whose learning rates decay at the same pace."""
        return Decay(optimizers, self.steps)

    def step(self, loss: Tensor) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for optimizer, schedule in zip(self.optimizers, self.schedules, strict=True):
            optimizer.step()
            schedule.step()


def restart(optimizer: torch.optim.Optimizer, part: float) -> None:
    """Set learning rates to a share of their initial values."""
    for group in optimizer.param_groups:
        group["lr"] = part * group.pop("initial_lr")


# Regime (a): a network on Fourier features


def fourier_features(x: Tensor, octaves: int) -> Tensor:
    """[N, D] in [0, 1] -> [N, 2 * octaves * D], NeRF's positional encoding (Mildenhall et al. 2020, eq. 4)."""
    angles = (x[:, None] * (math.pi * 2.0 ** torch.arange(octaves))[:, None]).flatten(1)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class Picture:
    """Fit a photo: pixel position -> color, through Fourier features and six hidden layers."""

    hidden_layers = 6
    octaves = 9
    batch = 2048

    def __init__(self, path: Path, longest_side: int = 384) -> None:
        with Image.open(path) as image:
            rgba = image.convert("RGBA")
            paper = Image.new("RGBA", rgba.size, "white")
            rgb = Image.alpha_composite(paper, rgba).convert("RGB")
        rgb.thumbnail((longest_side, longest_side), Image.Resampling.BOX)
        pixels = torch.from_numpy(np.asarray(rgb).copy()).float() / 255
        height, width, _ = pixels.shape
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        positions = torch.stack([columns, rows], dim=-1).float().add_(0.5) / max(height, width)
        self.inputs = fourier_features(positions.flatten(0, 1), self.octaves)
        self.targets = pixels.flatten(0, 1)
        self._trained: dict[Trial, ChainNetwork] = {}

    def run(self, trial: Trial) -> dict[str, float]:
        torch.manual_seed(trial.seed)
        result = {}
        if trial.teacher is None:
            network = build(trial.network, self.inputs.shape[1], self.hidden_layers, 3)
        else:
            teacher = self._teacher(trial.teacher, trial)
            seen = self.inputs[torch.randint(len(self.inputs), (16384,))]
            network = ChainNetwork(convert(copy.deepcopy(teacher.layers), conversion_plan(trial.network)).module)
            batches = [(part, part) for part in seen.split(4096)]
            transfer_network(teacher.layers, network.layers, batches, transfer_options(trial))
            if trial.network.kind == "mlp":
                network = narrow(network)
            result = {"teacher_psnr": self._psnr(teacher), "transferred_psnr": self._psnr(network)}
        self._train(network, trial)
        with torch.no_grad():
            chain = network.merged()
        counts = {"multiply_adds": chain.multiply_adds, "parameters": chain.num_parameters}
        return {**result, "psnr": self._psnr(network), **counts}

    def _teacher(self, teacher: Teacher, trial: Trial) -> ChainNetwork:
        training = Trial(trial.task, Network("mlp", teacher.width), teacher.rate, teacher.steps, trial.seed)
        if training not in self._trained:
            network = build(training.network, self.inputs.shape[1], self.hidden_layers, 3)
            self._train(network, training)
            self._trained[training] = network
        return self._trained[training]

    def _train(self, network: ChainNetwork, trial: Trial) -> None:
        decay = Decay([torch.optim.Adam(parameter_groups(network, trial), fused=True)], trial.steps)
        for _ in range(trial.steps):
            rows = torch.randint(len(self.inputs), (self.batch,))
            loss = (network(self.inputs[rows]) - self.targets[rows]).square().mean()
            decay.step(loss)

    @torch.no_grad()
    def _psnr(self, network: ChainNetwork) -> float:
        return psnr((network(self.inputs).clamp(0, 1) - self.targets).square().mean().item())


# Regime (b): hash grid and small networks, as in eugen-nerf


class Scene:
    """Train the method on a scene and measure test views."""

    views = 10
    hidden_layers = (1, 2)  # of the density and the color network

    def __init__(self, data: Path, samples: int) -> None:
        self.data = data
        self.samples = samples
        self._trained: dict[Trial, Any] = {}

    def run(self, trial: Trial) -> dict[str, float]:
        seed_everything(trial.seed)
        result = {}
        if trial.teacher is None:
            pipeline = self._pipeline(trial.network, trial.color)
        else:
            pipeline = self._teacher(trial.teacher, trial)
            original = pipeline.model
            result["teacher_psnr"] = self._psnr(pipeline)
            pipeline._model = self._taken_over(pipeline, trial)
            result["transferred_psnr"] = self._psnr(pipeline)
            seed_everything(trial.seed)
        if trial.steps:
            self._train(pipeline, trial)
        field = pipeline.model.field
        result |= {
            "psnr": self._psnr(pipeline),
            "multiply_adds": field.multiply_adds(),
            "parameters": field.network_parameters(),
        }
        if trial.teacher is not None:
            pipeline._model = original
        return result

    def _pipeline(self, network: Network, color: Network | None = None) -> Any:
        from nerfstudio.configs.method_configs import all_methods

        config: Any = copy.deepcopy(all_methods["eugen-nerf-mlp"].pipeline)
        config.datamanager.data = self.data
        config.target_num_samples = self.samples
        pipeline = config.setup(device="cpu", test_mode="test")
        field = pipeline.model.field
        encoded = self._encode(pipeline)
        density_layers, color_layers = self.hidden_layers
        field.density_network = build(network, encoded, density_layers, 16)
        field.color_network = build(color or network, 31, color_layers, 3)
        field.config.num_features, field.config.candidate_features = network.features, network.candidates
        if color:
            field.config.num_features = (network.features, color.features)
        field.set_initial_density(0.1 if pipeline.model.renderer.space.contracted else 1.0)
        return pipeline

    def _encode(self, pipeline: Any) -> int:
        """Set the encoding of positions and return its width."""
        return pipeline.model.field.encoding.layout.out_features

    def _update_occupancy(self, pipeline: Any, step: int) -> None:
        pipeline.model.renderer.update_occupancy(step)

    def _teacher(self, teacher: Teacher, trial: Trial) -> Any:
        training = Trial(trial.task, Network("mlp", teacher.width), teacher.rate, teacher.steps, trial.seed)
        if training not in self._trained:
            pipeline = self._pipeline(training.network)
            self._train(pipeline, training)
            self._trained = {training: pipeline}
        return self._trained[training]

    def _taken_over(self, pipeline: Any, trial: Trial) -> Any:
        from eugen_nerf.plugin import recording
        from eugen_nerf.transfer import student

        assert trial.teacher is not None
        pipeline.eval()
        model = copy.deepcopy(pipeline.model)
        for chain in (model.field.density_network, model.field.color_network):
            chain.layers = convert(chain.layers, conversion_plan(trial.network)).module
        recorded = recording.record(pipeline, ["field"], 1.0, 1 << 17, trial.seed)
        student.fit(pipeline.model, model, recorded, transfer_options(trial))
        if trial.network.kind == "mlp":
            for name in ("density_network", "color_network"):
                setattr(model.field, name, narrow(getattr(model.field, name)))
        return model

    def _train(self, pipeline: Any, trial: Trial) -> None:
        from eugen_nerf.optim import MaskedAdam

        field = pipeline.model.field
        networks = nn.ModuleList([field.density_network, field.color_network])
        adam = torch.optim.Adam(parameter_groups(networks, trial), eps=1e-15, fused=True)
        optimizers: list[torch.optim.Optimizer] = [adam]
        if table := list(field.encoding.parameters()):
            optimizers.append(MaskedAdam(table, lr=1e-2 * trial.table_rate, eps=1e-15))
        selection = round(trial.selection_at * trial.steps) if trial.network.candidates else None
        decay = Decay(optimizers, selection if selection and trial.restart else trial.steps)
        pipeline.train()
        first = 0 if trial.teacher is None else trial.teacher.steps
        for step in range(first, first + trial.steps):
            if step == selection:
                pipeline.select_features(adam)
                if trial.dense_after:
                    rate = adam.param_groups[0]["lr"]
                    field.density_network, field.color_network = map(narrow, networks)
                    networks = nn.ModuleList([field.density_network, field.color_network])
                    optimizers[0] = torch.optim.Adam(networks.parameters(), lr=rate, eps=1e-15, fused=True)
                    decay = decay.followed_by(optimizers)
                if trial.restart:
                    for optimizer in optimizers:
                        restart(optimizer, trial.restart if optimizer is adam else 1.0)
                    decay = Decay(optimizers, trial.steps - step)
            self._update_occupancy(pipeline, step)
            _, losses, _ = pipeline.get_train_loss_dict(step)
            decay.step(sum(losses.values()))

    @torch.no_grad()
    def _psnr(self, pipeline: Any) -> float:
        from eugen_nerf.errors import UserError
        from eugen_nerf.plugin import evaluation

        order = evaluation.spread_order(evaluation.num_test_views(pipeline))[: self.views]
        try:
            value = evaluation.mean(evaluation.evaluate(pipeline, order), "psnr")
        except UserError:  # the image contains non-finite values
            return math.nan
        assert value is not None
        return value


# Regime (a) on rays of a scene


class FourierFeatures(nn.Module):
    """Positions [N, 3] in the unit cube -> [N, 6 * octaves]."""

    def __init__(self, octaves: int) -> None:
        super().__init__()
        self.octaves = octaves

    def forward(self, x: Tensor) -> Tensor:
        return fourier_features(x, self.octaves)


class FourierScene(Scene):
    """A density network of eight hidden layers on Fourier features in place of the hash grid, as in NeRF.

    To make this trainable on a CPU, the occupancy grid comes from a hash grid trained for a short time, and does not
    change.
    """

    hidden_layers = (8, 1)
    octaves = 8
    guide = Trial("guide", Network("mlp", 64), 1e-2, 600, 0)

    def __init__(self, data: Path, samples: int) -> None:
        super().__init__(data, samples)
        self._bits: Tensor | None = None

    def _encode(self, pipeline: Any) -> int:
        if self._bits is None:
            scene = Scene(self.data, 1 << 14)
            seed_everything(self.guide.seed)
            guide = scene._pipeline(self.guide.network)
            scene._train(guide, self.guide)
            self._bits = guide.model.renderer.occupancy.bits.clone()
            del guide
        pipeline.model.renderer.occupancy.bits.copy_(self._bits)
        pipeline.model.field.encoding = FourierFeatures(self.octaves)
        return 6 * self.octaves

    def _update_occupancy(self, pipeline: Any, step: int) -> None:
        """Do nothing: the occupancy grid does not change."""


def seed_everything(seed: int) -> None:
    """Seed all generators; nerfstudio also draws pixels with Python's and NumPy's."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def psnr(mean_square: float) -> float:
    return -10 * math.log10(mean_square)


def run(trials: list[Trial], tasks: dict[str, Picture | Scene], output: Path) -> None:
    """Run the trials that the output file does not hold yet; each writes one line of JSON."""
    done = {json.loads(line)["key"] for line in output.read_text().splitlines()} if output.exists() else set()
    console = Console()
    for number, trial in enumerate(trials, start=1):
        if trial.task not in tasks or trial.key in done:
            continue
        result: dict[str, Any] = tasks[trial.task].run(trial)
        done.add(trial.key)
        diverged = not math.isfinite(result["psnr"])
        psnr = "diverged" if diverged else f"{result['psnr']:.2f} dB"
        if diverged:
            result["psnr"] = None
        with output.open("a") as file:
            file.write(json.dumps({"key": trial.key, **dataclasses.asdict(trial), **result}) + "\n")
        layers = plans.described(trial.network, trial.color)
        console.print(
            f"{number}/{len(trials)} {trial.task} {layers} lr={trial.rate:g} seed {trial.seed}: "
            f"{psnr} at {result['multiply_adds']}",
            highlight=False,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    runs = commands.add_parser("run", help="train")
    runs.add_argument("plan", choices=sorted(plans.PLANS))
    runs.add_argument("--picture", action="append", default=[], help="NAME=FILE of a photo to fit")
    runs.add_argument("--scene", action="append", default=[], help="NAME=FOLDER of a scene to train on")
    runs.add_argument(
        "--fourier",
        action="append",
        default=[],
        help="NAME=FOLDER of a scene to train on with Fourier features, a quarter of the samples",
    )
    runs.add_argument("--samples", type=int, default=1 << 14, help="samples of a training step on scenes")
    runs.add_argument("--threads", type=int, default=1)
    runs.add_argument("--part", default="1/1", help="K/N: every N-th trial from the K-th, for N processes side by side")
    runs.add_argument("--output", type=Path, required=True)
    reports = commands.add_parser("report", help="print tables")
    reports.add_argument("results", type=Path)
    reports.add_argument("--into", type=Path, help="document whose tables are replaced, instead of printing them")
    arguments = parser.parse_args()
    if arguments.command == "report":
        text = tables(arguments.results)
        if arguments.into is None:
            print(text)
        else:
            put_into(arguments.into, text)
        return
    torch.set_num_threads(arguments.threads)
    tasks: dict[str, Picture | Scene] = {}
    for given in arguments.picture:
        name, _, path = given.partition("=")
        tasks[name] = Picture(Path(path))
    for given in arguments.scene:
        name, _, path = given.partition("=")
        tasks[name] = Scene(Path(path), arguments.samples)
    for given in arguments.fourier:
        name, _, path = given.partition("=")
        tasks[name] = FourierScene(Path(path), arguments.samples // 4)
    part, _, parts = arguments.part.partition("/")
    run(plans.PLANS[arguments.plan]()[int(part) - 1 :: int(parts)], tasks, arguments.output)


if __name__ == "__main__":
    main()

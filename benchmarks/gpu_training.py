"""Train a scene with nerfstudio's loop, and time frames of the trained model."""

from __future__ import annotations

import functools
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import torch
from gpu_processes import Row, Tell
from gpu_timing import ROUNDS, TimeUp, failure, times

VIEWS = 5  # of the test split, for frames per second
# nerfacto updates its proposal networks in every step at first, and in every fifth from step 5,000 of 30,000 on. Our
# few steps keep these proportions, so that on average they cost as much as those of a whole training.
NERFACTO_STEPS, NERFACTO_WARM_UP = 500, 5_000 / 30_000
TELLS = 5  # seconds between two reports of a training


def name_methods() -> None:
    """Let nerfstudio find methods and scenes if the package is not installed. Call it before importing nerfstudio."""
    if "eugen-nerf" in entry_points(group="nerfstudio.method_configs").names:
        return
    place = "eugen_nerf.plugin.entry_points:"
    methods = ("eugen-nerf", "eugen-nerf-mlp")
    os.environ["NERFSTUDIO_METHOD_CONFIGS"] = ",".join(f"{m}={place}methods__{m.replace('-', '_')}" for m in methods)
    os.environ["NERFSTUDIO_DATAPARSER_CONFIGS"] = f"eugen-scene={place}dataparsers__eugen_scene"


def nerfacto_overrides(implementation: str, steps: int) -> dict[str, Any]:
    """The settings that are fair to nerfacto on synthetic scenes: those of the benchmark configuration, without the one
    for CPUs, and with a warm-up that fits the number of steps.
    """
    import yaml

    config = yaml.safe_load((Path(__file__).resolve().parents[1] / "configs" / "nerfacto.yaml").read_text())
    (overrides,) = (method["overrides"] for method in config["methods"] if method["method"] == "nerfacto")
    del overrides["pipeline.model.eval_num_rays_per_chunk"]
    warm_up = max(1, round(steps * NERFACTO_WARM_UP))
    return {
        **overrides,
        "pipeline.model.implementation": implementation,
        "pipeline.model.proposal_warmup": warm_up,
    }


@dataclass
class Watch:
    """Follows a training, stops it at the deadline, and knows its speed even if the training has no result."""

    method: str
    steps: int
    deadline: float
    tell: Tell
    ms: float | None = None  # of a step, without the first

    def __post_init__(self) -> None:
        self._first = self._told = 0.0

    def __call__(self, progress: Any) -> None:
        now = time.monotonic()
        if progress.phase == "training":
            if progress.step == 1:
                self._first = now
            else:
                self.ms = 1000 * (now - self._first) / (progress.step - 1)
        finished = progress.step >= self.steps  # the evaluation may take the time until the process is killed
        if now > self._told + TELLS or finished:
            self._told = now
            speed = f" at {1000 / self.ms:.1f} it/s" if self.ms else ""
            self.tell({"doing": f"{self.method}, {progress.phase}, after {progress.step} iterations{speed}"})
        if now > self.deadline and not finished:
            raise TimeUp(f"the minutes were spent while {progress.phase}, after {progress.step} iterations")


@dataclass
class Trainings:
    """Trainings of a scene with nerfstudio's loop."""

    scene: Path
    iterations: int
    tcnn: bool
    deadline: float
    folder: Path  # shared, since nerfstudio's event writers keep writing to the folder of the first training
    speeds: dict[str, tuple[float, float | None]]  # milliseconds and rays of a step, by method
    tell: Tell

    def rows(self, method: str) -> Iterator[Row]:
        """Measure iterations per second, PSNR of the test views, and frames per second on the trained scene."""
        name_methods()
        import eugen_nerf.plugin.methods  # noqa: F401  # if the import fails this says why; nerfstudio would not
        from eugen_nerf.bench.config import Budget
        from eugen_nerf.bench.jobs import TrainingJob
        from eugen_nerf.bench.training import train_and_evaluate

        name, overrides, steps, views = method, {}, self.iterations, 20
        if method == "nerfacto":
            implementation, steps, views = "tcnn" if self.tcnn else "torch", min(self.iterations, NERFACTO_STEPS), 3
            name, overrides = f"nerfacto ({implementation})", nerfacto_overrides(implementation, steps)
        job = TrainingJob(
            scene="scene",
            scene_path=str(self.scene),
            name=method,
            method=method,
            dataparser="eugen-scene",
            overrides=overrides,
            seed=0,
            budget=Budget(iterations=steps),
            fit_schedules=True,
            curve_at=(),
            curve_views=0,
            curve_pixels=None,
            eval_images=views,
            pictures=0,
        )
        what = f"{name}, {steps} iterations"
        watch = Watch(method, steps, self.deadline, self.tell)
        try:
            values = train_and_evaluate(job, self.folder, watch)
        except Exception as error:  # report its speed nevertheless
            yield self._row(method, what, watch.ms, None, failure(error))
            return
        seconds = values["training_seconds"]
        ms = 1000 * seconds / max(steps - 1, 1)  # the first step is not timed
        note = f"PSNR {values['psnr']:.2f} dB of {views} test views after {seconds:.0f} s"
        yield self._row(method, what, ms, values["rays_per_second"], note)
        if method != "nerfacto":
            yield from frame_rows(method, self.folder / values["load_config"], self.deadline)

    def _row(self, method: str, what: str, ms: float | None, rays_per_second: float | None, note: str) -> Row:
        """The methods differ in rays per step, so both steps and rays are compared."""
        if not ms:
            return what, "", "", "", note
        rays = rays_per_second * ms / 1000 if rays_per_second else None  # of a step, on average
        self.speeds[method] = ms, rays
        self.tell({"speed": {method: (ms, rays)}})
        ratios = []
        if "eugen-nerf" in self.speeds:
            our_ms, our_rays = self.speeds["eugen-nerf"]
            ratios.append(f"{ms / our_ms:.2f}x a step")
            if rays and our_rays:
                ratios.append(f"{ms / our_ms * our_rays / rays:.2f}x a ray")
        if rays:
            note = f"{1000 * rays / ms / 1e6:.3f} M rays/s, {rays:.0f} rays a step; {note}"
        return what, f"{1000 / ms:.1f} it/s", f"{ms:.2f}", "; ".join(ratios), note


def frame_rows(method: str, load_config: Path, deadline: float) -> Iterator[Row]:
    """Time test views of a trained run, one after another, at their size and at twice that size.

    Measured are our renderer alone, from rays to pixels, and nerfstudio's path from camera to image.
    """
    from eugen_nerf.plugin.evaluation import evaluating, render_view
    from eugen_nerf.plugin.runs import load_run

    pipeline = load_run(load_config)
    renderer = pipeline.model.renderer
    rounds = -(-ROUNDS // VIEWS)
    for factor in (1, 2):
        cameras = pipeline.datamanager.eval_dataset.cameras[:VIEWS].to(pipeline.device)
        cameras.rescale_output_resolution(float(factor))
        size = f"{int(cameras.width[0])} x {int(cameras.height[0])}"
        with evaluating(pipeline):
            bundles = [rays_of(pipeline.model, cameras, i).flatten() for i in range(len(cameras))]
            rays = [(b.origins.contiguous(), b.directions.contiguous()) for b in bundles]
            kinds = {
                "rays to pixels": [functools.partial(renderer.render, *of_view) for of_view in rays],
                "rays to pixels, one at a time": [
                    functools.partial(wait_for, functools.partial(renderer.render, *of_view)) for of_view in rays
                ],
                "camera to picture": [
                    functools.partial(render_view, pipeline, cameras[i : i + 1]) for i in range(len(cameras))
                ],
            }
            for kind, views in kinds.items():
                if time.monotonic() > deadline:
                    raise TimeUp(f"the minutes were spent before {size}, {kind}")
                ms = statistics.mean(t.ms for t in times(*views, rounds=rounds, warm_up=2, alone=False))
                yield f"{method}, {size}, {kind}", f"{1000 / ms:.0f} frames/s", f"{ms:.2f}", "", ""


def rays_of(model: Any, cameras: Any, index: int) -> Any:
    """The rays of an image in the order in which the model draws them."""
    picture = model._picture_rays(cameras[index : index + 1])
    return cameras.generate_rays(camera_indices=index, keep_shape=True) if picture is None else picture.rays


def wait_for(function: Callable[[], object]) -> None:
    """Call a function and wait until the GPU has finished its work."""
    function()
    torch.cuda.synchronize()

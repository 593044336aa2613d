"""Speed of the CUDA kernels against PyTorch, tiny-cuda-nn and what the GPU can do. One command, at most 8 minutes.

    python benchmarks/gpu.py [--scene DIR] [--iterations 5000] [--batch 1048576] [--minutes 8] [--markdown FILE]
                             [--only SECTION ...]

Times are CUDA events: after a warm-up, the median of 50 runs that take turns, each with cold caches and queued while
the GPU is still busy, so that no time of the CPU is in them; marches wait for the GPU in between and come with the
CPU's part, "rays to gradients" comes with all of it. Frames follow one another as fast as CPU and GPU get through them;
"one at a time" waits for each, as a viewer does. "Against the machine" compares with matrix products and copies
measured in the same run. tiny-cuda-nn is left out where it cannot be imported; its PyTorch modules take float32 rows
and give fp16, so its times are compared with ours for fp16 rows, which move less, and for float32 rows, which move
more. ``--scene`` (a Blender scene, e.g. lego at 400 x 400) adds training with ns-train's own loop, PSNR, and frames per
second at the scene's size and at twice that; the package need not be installed for it, nerfstudio must.

Every line is printed, and the file written anew, as soon as it is measured: what fails costs its own line alone, and
makes the exit code 1.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import functools
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from printing import markdown_table, print_table
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # on a machine that is lent, nothing may be installed

from eugen_nerf.errors import UserError
from eugen_nerf.field import EugenField, FieldConfig
from eugen_nerf.layers import build_network, merge_chain
from eugen_nerf.layers.merge import MergedChain
from eugen_nerf.occupancy import pack_bits
from eugen_nerf.ops import (
    Backend,
    HashGridLayout,
    PackedSamples,
    RadianceField,
    Space,
    StepRule,
    differentiable_render,
    dispatch,
    operators,
    reference,
)
from eugen_nerf.ops.operators import rule_argument, space_arguments
from eugen_nerf.ops.packing import PackedChain, pack_chain
from eugen_nerf.tcnn_modules import hash_grid, load_tcnn, mlp

ROUNDS, WARM_UP = 50, 10
WIDTHS = (32, 64, 128)
OURS_FLOAT32, TCNN = "ours, float32 rows", "tcnn, float32 rows in"
VIEWS = 5  # of the test split, for frames per second
NERFACTO_STEPS = 500
# In this order: whatever has workers of its own, or a compiler, comes late, so that nothing is lost where it hangs.
SECTIONS = ("networks", "hash-grid", "rays", "training", "torch.compile", "nerfacto")
DEVICE = "cuda"
FLUSHED_BYTES = 256 << 20  # more than any second-level cache holds
AHEAD = 4_000_000  # clock cycles that the GPU waits while the CPU queues a run, about 2 ms

HEADS = ("what", "who", "ms", "time against ours", "against the machine")
Row = tuple[str, str, str, str, str]


class TimeUp(Exception):
    """The minutes of the command are spent."""


def times(
    *functions: Callable[[], object], rounds: int = ROUNDS, warm_up: int = WARM_UP, alone: bool = True
) -> list[float]:
    """Median milliseconds from the first to the last of a function's work on the device; functions take turns.

    Args:
        alone: the device's own time, with cold caches; else as it comes, gaps included in which it waits for the CPU.
    """
    for function in functions:
        for _ in range(warm_up):
            function()
    flushed = torch.zeros(FLUSHED_BYTES // 4, device=DEVICE)
    events: list[list[tuple[Any, Any]]] = [[] for _ in functions]
    for _ in range(rounds):
        for function, kept in zip(functions, events, strict=True):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            if alone:
                flushed.sum()  # reading: what is written would have to leave the cache while we measure
                torch.cuda._sleep(AHEAD)
            start.record()
            function()
            end.record()
            kept.append((start, end))
    torch.cuda.synchronize()
    return [statistics.median(start.elapsed_time(end) for start, end in kept) for kept in events]


@dataclass(frozen=True)
class Machine:
    """What the GPU reaches with PyTorch's own operators."""

    tflops: float  # fp16 matrix products
    tbytes: float  # TB/s read and written by a copy

    @staticmethod
    def measure() -> Machine:
        a = torch.randn(8192, 8192, device=DEVICE, dtype=torch.float16)
        numbers = torch.randn(256 << 20, device=DEVICE)
        target = torch.empty_like(numbers)
        product, copied = times(lambda: a @ a, lambda: target.copy_(numbers))
        return Machine(2 * 8192**3 / product / 1e9, 2 * numbers.numel() * 4 / copied / 1e9)


@dataclass(frozen=True)
class Contender:
    """Somebody who does the same work."""

    name: str
    run: Callable[[Tensor], Tensor]
    x: Tensor
    grad: Tensor  # of what it returns
    parameters: tuple[Tensor, ...]

    def forward(self) -> None:
        with torch.no_grad():
            self.run(self.x)

    def forward_backward(self) -> Callable[[], None]:
        """To all parameters and to x."""
        x = self.x.detach().requires_grad_()

        def run() -> None:
            for tensor in (x, *self.parameters):
                tensor.grad = None  # nothing is added up
            self.run(x).backward(self.grad)

        return run

    def backward(self) -> Callable[[], None]:
        """To all parameters."""
        out = self.run(self.x)

        def run() -> None:
            for tensor in self.parameters:
                tensor.grad = None
            out.backward(self.grad, retain_graph=True)

        return run


def race(
    what: str,
    contenders: list[tuple[str, Callable[[], Callable[[], object]]]],
    note: Callable[[str, float], str],
    factors: dict[str, float] | None = None,
    beside: dict[str, str] | None = None,
    alone: bool = True,
) -> Iterator[Row]:
    """A row for each; who fails at the first run has a row that says so, and is left out.

    Args:
        contenders: name and function that prepares what is timed; the first is "ours" to all others.
        note: of a name and its milliseconds.
        factors: what the times of some are multiplied by.
        beside: for some, who else to compare them with.
        alone: as for `times`.
    """
    able: dict[str, Callable[[], object]] = {}
    for name, prepare in contenders:
        try:
            function = prepare()
            function()
            torch.cuda.synchronize()  # a kernel's crash is its own
            able[name] = function
        except Exception as error:
            yield what, name, "", "", failure(error)
    found = times(*able.values(), alone=alone)
    took = {name: ms * (factors or {}).get(name, 1) for name, ms in zip(able, found, strict=True)}
    ours = took.get(contenders[0][0])
    for name, ms in took.items():
        ratios = [f"{ms / ours:.2f}x"] if ours else []
        other = (beside or {}).get(name, "")
        if other in took:
            ratios.append(f"{ms / took[other]:.2f}x of {other}")
        yield what, name, f"{ms:.3f}", "; ".join(ratios), note(name, ms)


def failure(error: BaseException) -> str:
    """One line."""
    return f"failed: {type(error).__name__}: {' '.join(str(error).split())[:200]}"


def tiny_cuda_nn() -> ModuleType | None:
    try:
        return load_tcnn()
    except UserError as error:
        print(f"Without tiny-cuda-nn: {error}")
        return None


class HalfMlp(nn.Module):
    """The merged chain as PyTorch evaluates it in half precision: ReLU features, no norm."""

    def __init__(self, chain: MergedChain) -> None:
        super().__init__()
        self.matrices = nn.ParameterList(s.projections.half() for s in chain.stages)
        self.output = nn.Parameter(chain.weight.half())

    def forward(self, x: Tensor) -> Tensor:
        for matrix in self.matrices:
            x = torch.relu(nn.functional.linear(x, matrix))
        return nn.functional.linear(x, self.output)


def eugen_chain(width: int) -> tuple[MergedChain, PackedChain]:
    """A merged EUGen network 32-width-width-16."""
    layers = build_network("eugen", 32, 64, 2, 16, width, norm_first=False).to(DEVICE)
    with torch.no_grad():
        chain = merge_chain(layers)
        return chain, pack_chain(chain)


def network_rows(
    batch: int, machine: Machine, tcnn: ModuleType | None, compiled: bool = False, deadline: float = math.inf
) -> Iterator[Row]:
    """Networks 32-W-W-16: EUGen merged by our kernels, the same by PyTorch, an MLP of that shape by tiny-cuda-nn.

    Args:
        compiled: by torch.compile alone, against ours.
        deadline: no width is begun after it.
    """
    for width in WIDTHS:
        if time.monotonic() > deadline:
            raise TimeUp(f"the minutes were spent before width {width}")
        chain, packed = eugen_chain(width)
        x32, grad32 = torch.randn(batch, 32, device=DEVICE), torch.randn(batch, 16, device=DEVICE)
        x16, grad16 = x32.half(), grad32.half()
        parameters = packed.parameters.detach().requires_grad_()

        def ours(x: Tensor, parameters: Tensor = parameters, packed: PackedChain = packed) -> Tensor:
            return operators.network(x, parameters, packed.spec, packed.eps)

        eager = HalfMlp(chain).to(DEVICE)
        contenders = [Contender("ours, fp16 rows", ours, x16, grad16, (parameters,))]
        if compiled:
            torch.compiler.reset()
            module = torch.compile(eager, dynamic=False)
            contenders.append(Contender("torch.compile fp16", module, x16, grad16, tuple(eager.parameters())))
        else:
            contenders.append(Contender(OURS_FLOAT32, ours, x32, grad32, (parameters,)))
            contenders.append(Contender("torch fp16", eager, x16, grad16, tuple(eager.parameters())))
        if tcnn is not None and not compiled:
            network = mlp(32, 16, width, 2).to(DEVICE)
            contenders.append(Contender(TCNN, network, x32, grad16, tuple(network.parameters())))

        def note(name: str, ms: float, work: int, chain: MergedChain = chain) -> str:
            tflops = work * 2 * batch * chain.multiply_adds / ms / 1e9
            into, out = (4 if "float32" in name else 2) * 32, (4 if name == OURS_FLOAT32 else 2) * 16
            # Backward reads inputs and gradients, and writes the inputs' gradients.
            moved = batch * (into + out + (2 * into + out if work > 1 else 0)) / ms / 1e9
            return f"{tflops:.0f} of {machine.tflops:.0f} TFLOP/s, rows {moved:.2f} of {machine.tbytes:.2f} TB/s"

        what = f"network 32-{width}-{width}-16"
        yield from race(
            f"{what}, forward",
            [(c.name, lambda c=c: c.forward) for c in contenders],  # type: ignore[misc]
            functools.partial(note, work=1),
            beside={TCNN: OURS_FLOAT32},
        )
        yield from race(
            f"{what}, forward + backward",
            [(c.name, c.forward_backward) for c in contenders],
            functools.partial(note, work=3),
            beside={TCNN: OURS_FLOAT32},
        )


def hash_rows(batch: int, machine: Machine, tcnn: ModuleType | None) -> Iterator[Row]:
    """The default hash grid, 16 levels of 2 features, up to 2^19 entries each."""
    layout = HashGridLayout.build(16, 2, 19, 16, 2048)
    x = torch.rand(batch, 3, device=DEVICE)
    table = torch.randn(layout.num_entries, 2, device=DEVICE).requires_grad_()
    grad = torch.randn(batch, layout.out_features, device=DEVICE)
    half = table.detach().half()
    few = x[: batch // 16].contiguous()  # eager PyTorch needs about 2 kB for each position
    grid = (layout.resolutions, layout.offsets, layout.log2_table_size)

    def ours(x: Tensor) -> Tensor:
        return operators.hash_encode(x, table, *grid)

    trained = [Contender("ours", ours, x, grad, (table,))]
    if tcnn is not None:
        encoding = hash_grid(layout).to(DEVICE)
        trained.append(Contender("tcnn, fp16 table", encoding, x, grad.half(), tuple(encoding.parameters())))
    eager = Contender("torch, a sixteenth of the batch times 16", lambda x: reference.hash_encode(x, table, layout),
                      few, grad[: batch // 16], (table,))  # fmt: skip
    halves = Contender("ours, fp16 table", lambda x: operators.hash_encode(x, half, *grid), x, grad, ())

    def note(name: str, ms: float) -> str:
        gathered = batch * 16 * 8 * (4 if "fp16" in name else 8)
        return f"entries {gathered / ms / 1e9:.2f} of {machine.tbytes:.2f} TB/s"

    yield from race(
        "hash_encode, forward",
        [(c.name, lambda c=c: c.forward) for c in (trained[0], halves, *trained[1:], eager)],  # type: ignore[misc]
        note,
        {eager.name: 16},
    )
    yield from race(
        "hash_encode, backward", [(c.name, c.backward) for c in (*trained, eager)], lambda *_: "", {eager.name: 16}
    )


def ray_rows(batch: int) -> Iterator[Row]:
    """March and composite a training step's samples: those of few rays through a box whose cells all count as occupied,
    as at the beginning, and of many rays that meet few occupied cells each."""
    for share in (1.0, 0.03):
        yield from rays_through_a_box(max(1, int(batch / (500 * share))), share)  # a ray crosses about 500 steps of it
    yield from gradient_rows(max(1, batch // 4 // 15))  # about as many samples as a training step has


class Rays:
    """So many rays through a box where this share of the cells is occupied."""

    space, resolution = Space(((-1.5, -1.5, -1.5), (1.5, 1.5, 1.5))), 128
    rule = StepRule(space.diagonal / 1024)

    def __init__(self, rays: int, share: float) -> None:
        self.bits = pack_bits(torch.rand(self.resolution**3, device=DEVICE) < share)
        origins = 4 * nn.functional.normalize(torch.randn(rays, 3, device=DEVICE), dim=-1)
        directions = nn.functional.normalize(torch.rand(rays, 3, device=DEVICE) - 0.5 - origins, dim=-1)
        near, far = torch.full((rays,), 1.0, device=DEVICE), torch.full((rays,), 8.0, device=DEVICE)
        self.where, self.jitter = (origins, directions, near, far), torch.full((rays,), 0.5, device=DEVICE)

    def march(self) -> PackedSamples:
        arguments = (*space_arguments(self.space), rule_argument(self.rule))
        return PackedSamples(*operators.march(*self.where, self.jitter, self.bits, self.resolution, *arguments))


def rays_through_a_box(rays: int, share: float) -> Iterator[Row]:
    """March and composite so many rays where this share of the cells is occupied."""
    box = Rays(rays, share)

    def eager_march() -> PackedSamples:
        return reference.march(*box.where, box.bits, box.resolution, box.space, box.rule, box.jitter)

    samples = box.march()
    size = f"{samples.num_samples} samples of {rays} rays"
    yield from race(f"march, {size}", [("ours", lambda: box.march), ("torch", lambda: eager_march)], lambda *_: "")

    sigma, rgb = torch.rand(samples.num_samples, device=DEVICE), torch.rand(samples.num_samples, 3, device=DEVICE)
    grad = torch.randn(rays, 5, device=DEVICE)

    def composite(sigma: Tensor, rgb: Tensor) -> Tensor:
        return operators.composite(sigma, rgb, samples.t_starts, samples.t_ends, samples.ray_offsets)

    def eager_composite(sigma: Tensor, rgb: Tensor) -> Tensor:
        color, alpha, depth = reference.composite(sigma, rgb, samples)
        return torch.cat([color, alpha[:, None], depth[:, None]], dim=1)

    def forward_backward(run: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], None]:
        density, color = (tensor.detach().requires_grad_() for tensor in (sigma, rgb))

        def step() -> None:
            density.grad = color.grad = None
            run(density, color).backward(grad)

        return step

    contenders = [("ours", lambda: forward_backward(composite)), ("torch", lambda: forward_backward(eager_composite))]
    yield from race(f"composite, forward + backward, {size}", contenders, lambda *_: "")


class OneByOne:
    """A field that does not show what it is made of, so that its ops run one by one."""

    backend: Backend = "auto"

    def __init__(self, field: RadianceField) -> None:
        self.field, self.density_at = field, field.density_at

    def __call__(self, unit: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        return self.field(unit, directions)


def gradient_rows(rays: int) -> Iterator[Row]:
    """From rays to the gradient of every parameter, as it comes: in one piece, and op by op."""
    box, field = Rays(rays, 0.03), EugenField(FieldConfig()).to(DEVICE)

    def step(show: Callable[[Any], Any]) -> Callable[[], None]:
        def run() -> None:
            field.zero_grad()
            place = (*box.where, box.bits, box.resolution, box.space, box.rule)
            color, _, _, _ = differentiable_render(*place, show(field.merged()), box.jitter, True)
            color.square().sum().backward()

        return run

    contenders = [("ours", lambda: step(lambda merged: merged)), ("ours, op by op", lambda: step(OneByOne))]
    what = f"rays to gradients, {box.march().num_samples} samples of {rays} rays"
    yield from race(what, contenders, lambda *_: "", alone=False)


def name_methods() -> None:
    """Let nerfstudio find methods and scenes where the package is not installed; before it is imported."""
    if "eugen-nerf" in entry_points(group="nerfstudio.method_configs").names:
        return
    place = "eugen_nerf.plugin.entry_points:"
    methods = ("eugen-nerf", "eugen-nerf-mlp")
    os.environ["NERFSTUDIO_METHOD_CONFIGS"] = ",".join(f"{m}={place}methods__{m.replace('-', '_')}" for m in methods)
    os.environ["NERFSTUDIO_DATAPARSER_CONFIGS"] = f"eugen-scene={place}dataparsers__eugen_scene"


def nerfacto_overrides(implementation: str) -> dict[str, Any]:
    """The settings that are fair to nerfacto on such scenes: those of configs/lego.yaml, but for what a CPU wants."""
    import yaml

    config = yaml.safe_load((Path(__file__).resolve().parents[1] / "configs" / "lego.yaml").read_text())
    (overrides,) = (method["overrides"] for method in config["methods"] if method["method"] == "nerfacto")
    del overrides["pipeline.model.eval_num_rays_per_chunk"]
    return {**overrides, "pipeline.model.implementation": implementation}


@dataclass
class Trainings:
    """Trainings of a scene through nerfstudio's loop."""

    scene: Path
    iterations: int
    tcnn: ModuleType | None
    deadline: float
    folder: Path  # one for all, since nerfstudio's writers of events go on writing where the first training began
    took: dict[str, float] = field(default_factory=dict)  # milliseconds of a step, by method

    def rows(self, *methods: str) -> Iterator[Row]:
        """Iterations per second, PSNR of the test views, and frames per second on the trained scene."""
        name_methods()
        import eugen_nerf.plugin.methods  # noqa: F401  # where it cannot be imported this says why; nerfstudio would not
        from eugen_nerf.bench.config import Budget
        from eugen_nerf.bench.jobs import Progress, TrainingJob
        from eugen_nerf.bench.training import train_and_evaluate

        nerfacto = nerfacto_overrides("tcnn" if self.tcnn is not None else "torch")
        known: dict[str, tuple[str, dict[str, Any], int, int]] = {
            "eugen-nerf": ("eugen-nerf", {}, self.iterations, 20),
            "eugen-nerf-mlp": ("eugen-nerf-mlp", {}, self.iterations, 20),
            "nerfacto": (f"nerfacto ({nerfacto['pipeline.model.implementation']})", nerfacto,
                         min(self.iterations, NERFACTO_STEPS), 3),
        }  # fmt: skip
        for method in methods:
            name, overrides, steps, views = known[method]
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

            def watch(progress: Progress) -> None:
                if time.monotonic() > self.deadline:
                    raise TimeUp(f"the minutes were spent while {progress.phase}, after {progress.step} iterations")

            try:
                values = train_and_evaluate(job, self.folder, watch)
            except Exception as error:  # the other methods' numbers are worth having
                yield what, "", "", "", failure(error)
                continue
            seconds = values["training_seconds"]
            ms = 1000 * seconds / max(steps - 1, 1)  # the first step is not in the seconds
            self.took[method] = ms
            ratio = f"{ms / self.took['eugen-nerf']:.2f}x" if "eugen-nerf" in self.took else ""
            note = f"PSNR {values['psnr']:.2f} dB of {views} test views after {seconds:.0f} s"
            yield what, f"{1000 / ms:.1f} it/s", f"{ms:.2f}", ratio, note
            if method != "nerfacto":
                try:
                    yield from frame_rows(method, self.folder / values["load_config"])
                except Exception as error:
                    yield f"{method}, frames", "", "", "", failure(error)


def frame_rows(method: str, load_config: Path) -> Iterator[Row]:
    """Test views of a trained run, one after another, at their size and at twice that: from rays to pixels by our
    renderer, and from camera to picture as nerfstudio asks for it."""
    from eugen_nerf.bench.evaluation import evaluating, render_view
    from eugen_nerf.plugin.runs import load_run

    pipeline = load_run(load_config)
    renderer = pipeline.model.renderer
    rounds = -(-ROUNDS // VIEWS)
    for factor in (1, 2):
        cameras = pipeline.datamanager.eval_dataset.cameras[:VIEWS].to(pipeline.device)
        cameras.rescale_output_resolution(float(factor))
        size = f"{int(cameras.width[0])} x {int(cameras.height[0])}"
        with evaluating(pipeline):
            bundles = [cameras.generate_rays(camera_indices=i, keep_shape=True).flatten() for i in range(len(cameras))]
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
                ms = statistics.mean(times(*views, rounds=rounds, warm_up=2, alone=False))
                yield f"{method}, {size}, {kind}", f"{1000 / ms:.0f} frames/s", f"{ms:.2f}", "", ""


def wait_for(function: Callable[[], object]) -> None:
    """Until the GPU has done all of a function's work."""
    function()
    torch.cuda.synchronize()


@dataclass
class Report:
    """Rows as they come in."""

    title: Callable[[], str]
    markdown: Path | None
    rows: list[Row] = field(default_factory=list)

    def add(self, section: str, rows: Callable[[], Iterator[Row]]) -> None:
        """All rows of a section, up to the first that cannot be had."""
        try:
            for row in rows():
                self.put(row)
        except Exception as error:
            self.put((section, "", "", "", failure(error)))
        with contextlib.suppress(RuntimeError):  # after a kernel's crash nothing works
            torch.cuda.empty_cache()

    def put(self, row: Row) -> None:
        print(" | ".join(row), flush=True)
        self.rows.append(row)
        if self.markdown:
            self.markdown.parent.mkdir(parents=True, exist_ok=True)
            self.markdown.write_text("\n".join([self.title(), "", *markdown_table(HEADS, self.rows)]) + "\n")


def scene_folder(name: Path) -> Path:
    """The scene at a path, or of this name in $EUGEN_DATA."""
    for folder in (name, Path(os.environ.get("EUGEN_DATA", ".")) / name):
        if folder.is_dir():
            return folder.absolute()
    raise SystemExit(f"{name}: there is no such scene, here or in EUGEN_DATA.")


def kernels_problem() -> str | None:
    """Why ops on this GPU would run on eager PyTorch."""
    return dispatch.native_problem(torch.device(DEVICE))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scene", type=Path, help="also train and render this scene")
    parser.add_argument("--iterations", type=int, default=5000, help="of each training")
    parser.add_argument("--batch", type=int, default=1 << 20, help="rows and positions at a time")
    parser.add_argument("--minutes", type=float, default=8, help="after which a training is given up")
    parser.add_argument(
        "--only", nargs="+", choices=SECTIONS, default=SECTIONS, metavar="SECTION",
        help=f"of {', '.join(SECTIONS)}; in processes of their own, if a kernel's crash costs all that follow it",
    )  # fmt: skip
    parser.add_argument("--markdown", type=Path, help="write the table to this file too")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks/gpu.py needs an NVIDIA GPU, and PyTorch sees none here.")
    scene = scene_folder(arguments.scene) if arguments.scene else None
    begun = time.monotonic()
    deadline = begun + 60 * arguments.minutes - 20
    problem = kernels_problem()
    machine, tcnn, batch = Machine.measure(), tiny_cuda_nn(), arguments.batch
    name = torch.cuda.get_device_name()  # after a kernel's crash it may not be had

    def title() -> str:
        kernels = f"; KERNELS NOT IN USE: {problem}" if problem else ""
        return (
            f"{name}, torch {torch.__version__}, {datetime.date.today()}; batch {batch}; "
            f"{machine.tflops:.0f} TFLOP/s and {machine.tbytes:.2f} TB/s measured; "
            f"{time.monotonic() - begun:.0f} s{kernels}"
        )

    report = Report(title, arguments.markdown)
    if tcnn is None:
        report.put(("tiny-cuda-nn", "", "", "", "not measured: it is not installed"))
    folder = tempfile.TemporaryDirectory()
    trainings = Trainings(scene, arguments.iterations, tcnn, deadline, Path(folder.name)) if scene else None
    sections: dict[str, Callable[[], Iterator[Row]]] = {
        "networks": lambda: network_rows(batch, machine, tcnn),
        "hash-grid": lambda: hash_rows(batch, machine, tcnn),
        "rays": lambda: ray_rows(batch // 4),
        "training": lambda: trainings.rows("eugen-nerf", "eugen-nerf-mlp") if trainings else iter(()),
        # 30 seconds are what the compiler may take for a width.
        "torch.compile": lambda: network_rows(batch, machine, tcnn, compiled=True, deadline=deadline - 30),
        "nerfacto": lambda: trainings.rows("nerfacto") if trainings else iter(()),
    }
    with folder:
        for section in SECTIONS:
            if section in arguments.only:
                report.add(section, sections[section])
    print_table(title(), HEADS, report.rows, None)
    if any(row[-1].startswith("failed") for row in report.rows):
        raise SystemExit("Not everything could be measured; rows that begin with 'failed' say why.")


if __name__ == "__main__":
    main()

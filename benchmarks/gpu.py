"""Speed of the CUDA kernels against PyTorch, tiny-cuda-nn and what the GPU can do. One command, at most 8 minutes.

    python benchmarks/gpu.py [--scene DIR] [--iterations 5000] [--batch 1048576] [--markdown FILE]

Times are CUDA events: after a warm-up, the median of 50 runs that take turns. "Against the machine" compares with
matrix products and copies measured in the same run. tiny-cuda-nn is left out where it cannot be imported.
``--scene`` (a Blender scene, e.g. lego at 400 x 400) adds training with ns-train's own loop, PSNR and frames per
second at the scene's size and at twice that.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from printing import print_table
from torch import Tensor, nn

from eugen_nerf.errors import UserError
from eugen_nerf.layers import build_network, merge_chain
from eugen_nerf.layers.merge import MergedChain
from eugen_nerf.ops import HashGridLayout, cpu, hash_encode, reference
from eugen_nerf.ops.packing import pack_chain
from eugen_nerf.tcnn_modules import hash_grid, load_tcnn, mlp

ROUNDS, WARM_UP = 50, 10
WIDTHS = (32, 64, 128)
DEVICE = "cuda"

Row = list[str]


def times(*functions: Callable[[], object], rounds: int = ROUNDS) -> list[float]:
    """Median milliseconds on the device of each function; they take turns."""
    for function in functions:
        for _ in range(WARM_UP):
            function()
    events: list[list[tuple[Any, Any]]] = [[] for _ in functions]
    for _ in range(rounds):
        for function, kept in zip(functions, events, strict=True):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            function()
            end.record()
            kept.append((start, end))
    torch.cuda.synchronize()
    return [statistics.median(start.elapsed_time(end) for start, end in kept) for kept in events]


def ceilings() -> tuple[float, float]:
    """fp16 matrix products in TFLOP/s, copying in TB/s (read and written)."""
    a = torch.randn(8192, 8192, device=DEVICE, dtype=torch.float16)
    numbers = torch.empty(256 << 20, device=DEVICE)
    target = torch.empty_like(numbers)
    product, copied = times(lambda: a @ a, lambda: target.copy_(numbers))
    return 2 * 8192**3 / product / 1e9, 2 * numbers.numel() * 4 / copied / 1e9


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


def network_rows(batch: int, peak: float, bandwidth: float, tcnn: ModuleType | None) -> list[Row]:
    """Merged EUGen networks 32-W-W-16, all in and out in half precision, and ours with float32 rows too."""
    rows = []
    for width in WIDTHS:
        layers = build_network("eugen", 32, 64, 2, 16, width, norm_first=False).to(DEVICE)
        with torch.no_grad():
            chain = merge_chain(layers)
        packed = pack_chain(chain)
        x32 = torch.randn(batch, 32, device=DEVICE)
        x16, grad16 = x32.half(), torch.randn(batch, 16, device=DEVICE).half()
        parameters = packed.parameters.detach().requires_grad_()
        eager = HalfMlp(chain).to(DEVICE)
        compiled = torch.compile(eager)
        others: dict[str, nn.Module] = {"torch fp16": eager, "torch.compile fp16": compiled}
        if tcnn is not None:
            others["tcnn"] = mlp(32, 16, width, 2).to(DEVICE)

        def ours(x: Tensor, parameters: Tensor = parameters, packed: Any = packed) -> Tensor:
            return cpu.network(x, parameters, list(packed.spec), list(packed.eps))

        def forward(function: Callable[[Tensor], Tensor], x: Tensor, _: Tensor) -> Callable[[], None]:
            def run() -> None:
                with torch.no_grad():
                    function(x)

            return run

        def train(function: Callable[[Tensor], Tensor], x: Tensor, grad: Tensor) -> Callable[[], None]:
            inputs = x.detach().requires_grad_()

            def run() -> None:
                inputs.grad = None
                function(inputs).backward(grad)

            return run

        for what, make, work in (("forward", forward, 1), ("forward + backward", train, 3)):
            names = ["ours, fp16 rows", "ours, float32 rows", *others]
            functions = [
                make(ours, x16, grad16),
                make(ours, x32, grad16.float()),
                *(make(module, x16, grad16) for module in others.values()),
            ]
            for name, took in zip(names, (found := times(*functions)), strict=True):
                flops = work * 2 * batch * chain.multiply_adds / took / 1e9
                bytes_a_row = (4 if "float32" in name else 2) * (48 if work == 1 else 32 + 16 + 32)
                moved = batch * bytes_a_row / took / 1e9
                note = f"{flops:.0f} of {peak:.0f} TFLOP/s, rows {moved:.2f} of {bandwidth:.2f} TB/s"
                rows.append([f"network 32-{width}-{width}-16, {what}", name, f"{took:.3f}", f"{took / found[0]:.2f}x",
                             note])  # fmt: skip
    return rows


def hash_rows(batch: int, bandwidth: float, tcnn: ModuleType | None) -> list[Row]:
    """The default hash grid, 16 levels of 2 features, up to 2^19 entries each."""
    rows = []
    layout = HashGridLayout.build(16, 2, 19, 16, 2048)
    x = torch.rand(batch, 3, device=DEVICE)
    table = torch.randn(layout.num_entries, 2, device=DEVICE).requires_grad_()
    grad = torch.randn(batch, layout.out_features, device=DEVICE)
    modules: dict[str, tuple[Callable[[Tensor], Tensor], Tensor]] = {
        "ours": (lambda x: hash_encode(x, table, layout), grad)
    }
    if tcnn is not None:
        modules["tcnn, fp16"] = (hash_grid(layout).to(DEVICE), grad.half())
    few = x[: batch // 16]  # eager PyTorch needs about 2 kB for each position

    def backward(out: Tensor, grad: Tensor) -> Callable[[], None]:
        return lambda: out.backward(grad, retain_graph=True)

    with torch.no_grad():
        found = times(
            *((lambda f=f: f(x)) for f, _ in modules.values()),  # type: ignore[misc]
            lambda: reference.hash_encode(few, table, layout),
        )
    names = [*modules, "torch, a sixteenth of the batch times 16"]
    found[-1] *= 16
    gathered = batch * 16 * 8 * 8
    for name, took in zip(names, found, strict=True):
        note = f"rows {gathered / took / 1e9:.2f} of {bandwidth:.2f} TB/s"
        rows.append(["hash_encode, forward", name, f"{took:.3f}", f"{took / found[0]:.2f}x", note])
    found = times(*(backward(f(x), g) for f, g in modules.values()))
    for name, took in zip(modules, found, strict=True):
        rows.append(["hash_encode, backward", name, f"{took:.3f}", f"{took / found[0]:.2f}x", ""])
    return rows


def training_rows(scene: Path, iterations: int, tcnn: ModuleType | None) -> list[Row]:
    """Training through nerfstudio's loop, PSNR of the test views, and frames per second on the trained scene."""
    from eugen_nerf.bench.config import Budget
    from eugen_nerf.bench.jobs import TrainingJob
    from eugen_nerf.bench.training import train_and_evaluate

    nerfacto = {
        "pipeline.model.near_plane": 2,
        "pipeline.model.far_plane": 6,
        "pipeline.model.background_color": "white",
        "pipeline.model.use_appearance_embedding": False,
        "pipeline.model.proposal_initial_sampler": "uniform",
        "pipeline.model.distortion_loss_mult": 0,
        "pipeline.model.disable_scene_contraction": True,
        "pipeline.model.camera_optimizer.mode": "off",
        "pipeline.model.implementation": "tcnn" if tcnn is not None else "torch",
    }
    rows, rates = [], []
    with tempfile.TemporaryDirectory() as folder:
        for method, overrides, steps in (
            ("eugen-nerf", {}, iterations),
            ("eugen-nerf-mlp", {}, iterations),
            ("nerfacto", nerfacto, min(iterations, 500)),
        ):
            job = TrainingJob(
                scene="scene",
                scene_path=str(scene),
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
                eval_images=20,
                pictures=0,
            )
            try:
                values = train_and_evaluate(job, Path(folder), lambda _: None)
            except Exception as error:  # the other methods' numbers are worth having
                rows.append([f"{method}, {steps} iterations", "", "", "", f"failed: {error}"])
                continue
            rates.append(steps / values["training_seconds"])
            note = f"PSNR {values['psnr']:.2f} dB of 20 test views after {values['training_seconds']:.0f} s"
            rows.append([f"{method}, {steps} iterations", values["training_seconds"] and f"{rates[-1]:.1f} it/s",
                         f"{1000 / rates[-1]:.2f}", f"{rates[0] / rates[-1]:.2f}x", note])  # fmt: skip
            if method != "nerfacto":
                rows += frame_rows(method, Path(folder) / values["load_config"])
    return rows


def frame_rows(method: str, load_config: Path) -> list[Row]:
    """Test views of a trained run from camera to picture, at their size and at twice that."""
    from eugen_nerf.bench.evaluation import evaluating, render_view
    from eugen_nerf.bench.frame_times import load_run

    pipeline = load_run(load_config)
    rows = []
    for factor in (1, 2):
        cameras = pipeline.datamanager.eval_dataset.cameras[:5].to(pipeline.device)
        cameras.rescale_output_resolution(float(factor))
        size = f"{int(cameras.width[0])} x {int(cameras.height[0])}"
        views = [functools.partial(render_view, pipeline, cameras[i : i + 1]) for i in range(5)]
        with evaluating(pipeline):
            took = statistics.median(times(*views))
        rows.append([f"{method}, frame {size}", f"{1000 / took:.0f} frames/s", f"{took:.2f}", "", ""])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scene", type=Path, help="also train and render this scene")
    parser.add_argument("--iterations", type=int, default=5000, help="of each training")
    parser.add_argument("--batch", type=int, default=1 << 20, help="rows and positions at a time")
    parser.add_argument("--markdown", type=Path, help="write the table to this file too")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks/gpu.py needs an NVIDIA GPU, and PyTorch sees none here.")
    begun = time.monotonic()
    peak, bandwidth = ceilings()
    tcnn = tiny_cuda_nn()
    rows = [*network_rows(arguments.batch, peak, bandwidth, tcnn), *hash_rows(arguments.batch, bandwidth, tcnn)]
    if arguments.scene:
        rows += training_rows(arguments.scene, arguments.iterations, tcnn)
    title = (
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {datetime.date.today()}; batch "
        f"{arguments.batch}; {peak:.0f} TFLOP/s and {bandwidth:.2f} TB/s measured; {time.monotonic() - begun:.0f} s"
    )
    heads = ["what", "who", "ms", "time against ours", "against the machine"]
    print_table(title, heads, rows, arguments.markdown)


if __name__ == "__main__":
    main()

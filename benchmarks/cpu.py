"""Speed of the native CPU ops against eager PyTorch and against the limits of the machine.

    python benchmarks/cpu.py [--threads 2] [--scene DIR] [--markdown FILE]

Prints one table; every ratio compares timings that are interleaved within this run. ``--scene`` adds training steps on
that scene, of several methods in turns, and the share of them that is spent outside the model.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import datetime
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from printing import print_table
from torch import nn

from eugen_nerf.bench.machine import cpu_model
from eugen_nerf.bench.statistics import middle, paired_ratio
from eugen_nerf.field import EugenField, FieldConfig
from eugen_nerf.layers import EUGen, LayerStack, build_network, merge_chain
from eugen_nerf.occupancy import pack_bits
from eugen_nerf.ops import (
    HashGridLayout,
    PackedSamples,
    RadianceField,
    Space,
    StepRule,
    composite,
    cpu,
    differentiable_render,
    hash_encode,
    march,
    network,
    reference,
    render,
    select_visible,
    spherical_harmonics,
)
from eugen_nerf.ops.packing import pack_products
from eugen_nerf.ops.products import describe
from eugen_nerf.ops.radiance_field import FactoredField
from eugen_nerf.optim import MaskedAdam

N = 65_536  # samples; a training step has 2^15 on a CPU by default, 2^18 on a GPU

Op = Callable[..., torch.Tensor]


def times(*functions: Callable[[], object], rounds: int = 11) -> list[float]:
    """Median milliseconds of each function; calls are interleaved, so that a slow moment affects all alike."""
    for function in functions:
        function()
    samples: list[list[float]] = [[] for _ in functions]
    for _ in range(rounds):
        for function, kept in zip(functions, samples, strict=True):
            start = time.perf_counter()
            function()
            kept.append(1000 * (time.perf_counter() - start))
    return [statistics.median(kept) for kept in samples]


def keep_freed_memory() -> None:
    """Let glibc keep freed memory, as a process does after its first training steps.

    Otherwise every large tensor gets new pages from the system. That costs eager PyTorch, which allocates many of
    them, up to three times the work itself: the ratios would be too high, and vary from process to process.
    """
    if platform.libc_ver()[0] == "glibc":
        trim_threshold, mmap_threshold = -1, -3  # malloc.h
        for parameter in (trim_threshold, mmap_threshold):
            ctypes.CDLL(None).mallopt(parameter, (1 << 31) - 1)


def machine() -> tuple[float, float]:
    """Measure the machine's limits: single-precision matrix products in GFLOP/s, copying in GB/s (read and written).

    Products use torch's library or numpy's, whichever is faster on this processor: on some AMD processors MKL reaches
    half of OpenBLAS's rate.
    """
    a = torch.randn(2048, 2048)
    b = a.numpy()
    numbers = torch.randn(64 << 20)
    target = torch.empty_like(numbers)
    # Not interleaved: each library's threads wait for work for a while, and would take the other's cores.
    by_torch, by_numpy, copied = (times(f)[0] for f in (lambda: a @ a, lambda: b @ b, lambda: target.copy_(numbers)))
    return 2 * 2048**3 / min(by_torch, by_numpy) / 1e6, 2 * numbers.numel() * 4 / copied / 1e6


def network_rows(peak: float) -> list[list[str]]:
    rows = []
    generator = torch.Generator().manual_seed(0)
    x, grad = torch.randn(N, 32, generator=generator), torch.randn(N, 16, generator=generator)
    for label, kind, hidden, features, order in (
        ("MLP 32-64-64-16", "mlp", 64, 64, 1),
        ("EUGen 32-64-64-16 merged", "eugen", 64, 64, 1),
        ("EUGen m=32, order 1", "eugen", 64, 32, 1),
        ("EUGen m=32, order 2", "eugen", 64, 32, 2),
    ):
        layers = build_network(kind, 32, hidden, 2, 16, features, order=order, norm_first=False)
        with torch.no_grad():
            chain = merge_chain(layers)

        def forward(op: Op, chain: object = chain) -> None:
            with torch.no_grad():
                op(x, chain)

        def train(op: Op, layers: torch.nn.Sequential = layers) -> None:
            inputs = x.detach().requires_grad_()
            op(inputs, merge_chain(layers)).backward(grad)
            layers.zero_grad()

        rows += rated_rows(label, N * chain.multiply_adds, peak, forward, train)
    return [*rows, *trunk_rows(peak)]


def trunk_rows(peak: float) -> list[list[str]]:
    """Time the trunk of eugen-vanilla-nerf: eight layers of 256, three of them EUGen layers, a skip connection."""
    torch.manual_seed(0)
    layers = [
        EUGen(256, 256, 128, norm=True) if i in (1, 3, 5) else nn.Linear({0: 63, 4: 319}.get(i, 256), 256)
        for i in range(8)
    ]
    stack = LayerStack(layers, [None if isinstance(layer, EUGen) else nn.ReLU() for layer in layers], [4])
    generator = torch.Generator().manual_seed(0)
    x, grad = (torch.randn(N // 4, width, generator=generator) for width in (63, 256))

    def forward(op: Op) -> None:
        stack.network = op
        with torch.no_grad():
            stack(x)

    def train(op: Op) -> None:
        stack.network = op
        stack(x).backward(grad)
        stack.zero_grad()

    label = "trunk of eugen-vanilla-nerf, N / 4"
    return rated_rows(label, N // 4 * stack.multiply_adds(), peak, forward, train)


def rated_rows(
    label: str, multiply_adds: int, peak: float, forward: Callable[[Op], None], train: Callable[[Op], None]
) -> list[list[str]]:
    """Time the forward pass, and forward with backward, by native code and by PyTorch's operators."""
    rows = []
    for passes, what, run in ((1, "forward", forward), (3, "forward + backward", train)):
        native, eager = times(lambda run=run: run(network), lambda run=run: run(reference.network))  # type: ignore[misc]
        rate = passes * 2 * multiply_adds / native / 1e6  # recomputation is not counted as work
        limit = f"{rate:.0f} of {peak:.0f} GFLOP/s ({rate / peak:.0%})"
        rows.append([f"{label}, {what}", f"{native:.2f}", f"{eager:.2f}", f"{eager / native:.1f}x", limit])
    return rows


def hash_rows(bandwidth: float) -> list[list[str]]:
    rows = []
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(N, 3, generator=generator)
    for levels, features, log2 in ((16, 2, 16), (16, 2, 17), (16, 2, 18), (16, 2, 19), (8, 4, 17)):
        layout = HashGridLayout.build(levels, features, log2, 16, 2048 if levels == 16 else 512)
        table = torch.randn(layout.num_entries, features, generator=generator).requires_grad_()
        grad = torch.randn(N, layout.out_features, generator=generator)

        def forward(op: Op, table: torch.Tensor = table, grid: HashGridLayout = layout) -> None:
            with torch.no_grad():
                op(x, table, grid)

        encoded = [op(x, table, layout) for op in (hash_encode, reference.hash_encode)]

        def backward(which: int, table: torch.Tensor = table, grad: torch.Tensor = grad, out: list = encoded) -> None:
            table.grad = None
            out[which].backward(grad, retain_graph=True)

        native, eager = times(lambda: forward(hash_encode), lambda: forward(reference.hash_encode), rounds=5)
        native_back, eager_back = times(lambda: backward(0), lambda: backward(1), rounds=5)
        label = f"hash_encode L={levels} F={features} T=2^{log2}"
        gathered = N * levels * 8 * features * 4
        rates = [f"{b / t / 1e6:.1f} GB/s of rows, copy {bandwidth:.0f}" for b, t in
                 ((gathered, native), (2 * gathered, native_back))]  # fmt: skip
        rows.append([f"{label}, forward", f"{native:.2f}", f"{eager:.2f}", f"{eager / native:.1f}x", rates[0]])
        ratio = f"{eager_back / native_back:.1f}x"
        rows.append([f"{label}, backward", f"{native_back:.2f}", f"{eager_back:.2f}", ratio, rates[1]])
    return rows


def optimizer_rows(bandwidth: float) -> list[list[str]]:
    """Time the optimizer's step on a partly touched table against torch's Adam."""
    rows = []
    generator = torch.Generator().manual_seed(0)
    entries = 3_000_000 // 4
    for share in (0.1, 0.5, 1.0):
        touched = torch.rand(entries, 1, generator=generator) < share
        grad = torch.randn(entries, 4, generator=generator) * touched
        steps = []
        for make in (MaskedAdam, torch.optim.Adam, lambda p: torch.optim.Adam(p, fused=True)):
            parameter = torch.nn.Parameter(torch.zeros(entries, 4))
            parameter.grad = grad
            steps.append(make([parameter]).step)
        ours, plain, fused = times(*steps)
        moved = 4 * grad.numel() * (1 + 6 * share)  # the gradient; value and two moments, read and written
        note = f"{moved / ours / 1e6:.1f} GB/s, copy {bandwidth:.0f}; torch fused {fused:.2f} ms"
        rows.append(
            [f"MaskedAdam, {share:.0%} of 3M touched", f"{ours:.2f}", f"{plain:.2f}", f"{plain / ours:.1f}x", note]
        )
    return rows


def merging_rows() -> list[list[str]]:
    """Time merging the layers of eugen-nerf's networks and the gradient of it, as a training step does both."""
    field = EugenField(FieldConfig(log2_hashmap_size=4)).factored()
    assert isinstance(field, FactoredField)
    products = [product for chain in (field.density, field.color) for product in pack_products(chain).products]
    factors, places = describe(products)
    detached, needed = [factor.detach() for factor in factors], [True] * len(factors)
    grad = torch.randn(len(reference.factor_products(products)), generator=torch.Generator().manual_seed(0))

    def train_natively() -> None:
        cpu.factor_products_forward(detached, places)
        cpu.factor_products_backward(detached, places, grad, needed)

    def train() -> None:
        torch.autograd.grad(reference.factor_products(products), factors, grad)

    native, eager = times(train_natively, train, rounds=1001)
    label = "factor_products, eugen-nerf, forward + backward"
    return [[label, f"{native:.3f}", f"{eager:.3f}", f"{eager / native:.1f}x", ""]]


def composite_rows() -> list[list[str]]:
    generator = torch.Generator().manual_seed(0)
    counts = torch.randint(0, 64, (N // 32,), generator=generator)
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), counts.cumsum(0)])
    n = int(offsets[-1])
    starts = torch.rand(n, generator=generator).cumsum(0)
    samples = PackedSamples(offsets, starts, starts + 0.01)
    sigma, rgb = (
        t.requires_grad_() for t in (torch.rand(n, generator=generator), torch.rand(n, 3, generator=generator))
    )

    def train(op: Callable[..., tuple[torch.Tensor, ...]]) -> None:
        color, alpha, _ = op(sigma, rgb, samples)
        (color.sum() + alpha.sum()).backward()

    # What training selects of each sample: position, direction, encoding, outputs of the density network, density.
    rows = [torch.rand(n, width, generator=generator) for width in (3, 3, 32, 16, 1)]
    density = 100 * sigma.detach()  # hides half of the samples

    def select(op: Callable[..., object]) -> Callable[[], object]:
        return lambda: op(density, samples, rows)

    pairs = {
        "composite, {} rays, forward + backward": (lambda: train(composite), lambda: train(reference.composite)),
        "select_visible, {} rays": (select(select_visible), select(reference.select_visible)),
    }
    table = []
    for label, pair in pairs.items():
        native, eager = times(*pair)
        table.append([label.format(len(counts)), f"{native:.2f}", f"{eager:.2f}", f"{eager / native:.1f}x", ""])
    return table


def ray_rows() -> list[list[str]]:
    """Time an image of 200 x 200 of a ball whose surface stops rays, in an empty box; the networks are not trained."""
    size, resolution = 200, 128
    space = Space(((-1.0, -1.0, -1.0), (1.0, 1.0, 1.0)))
    rule = StepRule(2 * 3**0.5 / 1024)
    axis = torch.linspace(-0.3, 0.3, size)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    directions = torch.nn.functional.normalize(torch.stack([x, y, torch.ones_like(x)], dim=-1).reshape(-1, 3), dim=-1)
    origins = torch.tensor([0.0, 0.0, -4.0]).expand_as(directions).contiguous()
    near, far = torch.full((size * size,), 2.0), torch.full((size * size,), 6.0)
    cells = (torch.arange(resolution) + 0.5) / resolution * 2 - 1
    # A ball looks the same whichever axis varies fastest in the grid's bits.
    radius = torch.stack(torch.meshgrid(cells, cells, cells, indexing="ij"), dim=-1).norm(dim=-1)
    bits = pack_bits((radius < 0.8).flatten())
    torch.manual_seed(0)
    field = EugenField(FieldConfig())
    with torch.no_grad():
        field.encoding.table.normal_(std=4.0)  # dense and empty samples, as in a trained scene
    evaluator = field.evaluator()

    rows = []
    unit = torch.nn.functional.normalize(torch.randn(N, 3, generator=torch.Generator().manual_seed(1)), dim=-1)
    native, eager = times(lambda: spherical_harmonics(unit), lambda: reference.spherical_harmonics(unit))
    rows.append(["spherical_harmonics", f"{native:.2f}", f"{eager:.2f}", f"{eager / native:.1f}x", ""])
    few = slice(0, size * size, 16)
    arguments = origins[few], directions[few], near[few], far[few], bits, resolution, space, rule
    native, eager = times(lambda: march(*arguments), lambda: reference.march(*arguments), rounds=5)
    rays = len(origins[few])
    rows.append([f"march, {rays} rays", f"{native:.2f}", f"{eager:.2f}", f"{eager / native:.1f}x", ""])
    trained = field.merged()

    def step(field: RadianceField) -> None:
        color, _, _, _ = differentiable_render(*arguments, field, None, True)
        color.square().sum().backward(retain_graph=True)

    native, eager = times(lambda: step(trained), lambda: step(replace(trained, backend="reference")), rounds=5)
    label = f"differentiable_render, {rays} rays, forward + backward"
    rows.append([label, f"{native:.2f}", f"{eager:.2f}", f"{eager / native:.1f}x", "occluded samples left out"])
    native, eager = times(
        lambda: render(origins, directions, near, far, bits, resolution, space, rule, evaluator),
        lambda: reference.render(origins, directions, near, far, bits, resolution, space, rule, evaluator),
        rounds=3,
    )
    samples = render(origins, directions, near, far, bits, resolution, space, rule, evaluator)[3]
    note = f"{samples.sum() / native / 1000:.1f} M samples/s"
    rows.append([f"render, {size} x {size}", f"{native:.1f}", f"{eager:.1f}", f"{eager / native:.1f}x", note])
    return rows


TURN = 5  # steps of one training before the next one's
WARM_UP = 300  # steps


class TimedTraining:
    """A training of ns-train, step by step, with the time inside the model's forward, backward and update."""

    def __init__(self, method: str, scene: Path, **field: object) -> None:
        from nerfstudio.configs.method_configs import all_methods

        config: Any = copy.deepcopy(all_methods[method])
        config.pipeline.datamanager.data = scene
        config.vis = "viewer+tensorboard"
        for name, value in field.items():
            setattr(config.pipeline.model.field, name, value)
        self.trainer = config.setup(local_rank=0, world_size=1)
        pipeline = config.pipeline.setup(device="cpu", test_mode="val", world_size=1, local_rank=0, grad_scaler=None)
        self.trainer.pipeline, self.pipeline = pipeline, pipeline
        self.trainer.optimizers = self.trainer.setup_optimizers()
        self.done, self.rays, self.inside = 0, 0, 0.0
        self.seconds: list[float] = []  # a step, of each turn
        pipeline.model.get_outputs = self.timed(pipeline.model.get_outputs)
        for optimizer in self.trainer.optimizers.optimizers.values():
            optimizer.step = self.timed(optimizer.step)

    def timed(self, function: Callable[..., object]) -> Callable[..., object]:
        def run(*args: object, **kwargs: object) -> object:
            start = time.perf_counter()
            result = function(*args, **kwargs)
            self.inside += time.perf_counter() - start
            return result

        return run

    def run(self, steps: int) -> None:
        backward = torch.Tensor.backward
        torch.Tensor.backward = self.timed(backward)  # type: ignore[method-assign, assignment]
        begin = time.perf_counter()
        try:
            for _ in range(steps):
                self.timed(self.pipeline.model.renderer.update_occupancy)(self.done)
                self.pipeline.train()
                self.trainer.train_iteration(self.done)
                self.done += 1
                self.rays += self.pipeline.datamanager.get_train_rays_per_batch()
        finally:
            torch.Tensor.backward = backward  # type: ignore[method-assign]
        self.seconds.append((time.perf_counter() - begin) / steps)


def training_rows(scene: Path, turns: int = 40) -> list[list[str]]:
    """Time a step of ns-train, of several methods in turns, and its share outside the model."""
    trainings = {
        "eugen-nerf": TimedTraining("eugen-nerf", scene),
        "eugen-nerf-mlp": TimedTraining("eugen-nerf-mlp", scene),
        "eugen-nerf-mlp, 32 wide": TimedTraining("eugen-nerf-mlp", scene, hidden_features=32),
    }
    for training in trainings.values():
        training.run(WARM_UP)
        training.seconds.clear()
        training.rays, training.inside = 0, 0.0
    for turn in range(turns):
        for training in list(trainings.values())[:: 1 if turn % 2 else -1]:
            training.run(TURN)
    reference = trainings["eugen-nerf"].seconds
    rows = []
    for name, training in trainings.items():
        total = TURN * sum(training.seconds)
        note = (
            f"{paired_ratio(training.seconds, reference)} of eugen-nerf's time; {training.rays / total:,.0f} rays/s; "
            f"outside the model {1 - training.inside / total:.0%}"
        )
        rows.append([f"{name}, training step", f"{1000 * middle(training.seconds).value:.1f}", "", "", note])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--scene", type=Path, help="also time training steps on this scene")
    parser.add_argument("--markdown", type=Path, help="write the table to this file too")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    peak, bandwidth = machine()
    rows = [*network_rows(peak), *hash_rows(bandwidth), *optimizer_rows(bandwidth)]
    rows += [*merging_rows(), *composite_rows(), *ray_rows()]
    if arguments.scene:
        rows += training_rows(arguments.scene)
    title = f"{cpu_model()}, {arguments.threads} threads, torch {torch.__version__}, {datetime.date.today()}; N = {N}"
    heads = ["what", "native ms", "eager ms", "ratio", "relative to the machine"]
    print_table(title, heads, rows, arguments.markdown)


if __name__ == "__main__":
    main()

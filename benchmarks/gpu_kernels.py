"""Measure single kernels against PyTorch, tiny-cuda-nn and their own variants, and the path from rays to gradients."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from gpu_processes import Gpu, Row
from gpu_timing import DEVICE, Contender, TimeUp, race
from torch import Tensor, nn

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
    cuda,
    cuda_driver,
    differentiable_render,
    operators,
    reference,
)
from eugen_nerf.ops.operators import rule_argument, space_arguments
from eugen_nerf.ops.packing import PackedChain, pack_chain
from eugen_nerf.ops.tiles import Tiles, choices
from eugen_nerf.tcnn_modules import hash_grid, mlp

WIDTHS = (32, 64, 128)
OURS_FLOAT32 = "ours, float32 rows"
TCNN_ROWS, TCNN_TABLE = "tcnn, float32 rows in", "tcnn, fp16 table"
COMPILER_SECONDS = 30  # reserved for torch.compile, for each width
STEPS_THROUGH_BOX = 500  # of one ray, approximately
FEWEST_WARPS = 4  # of the blocks that are tried; smaller ones leave multiprocessors idle
LAST = 1000  # rows of a batch that are compared with PyTorch's
FEW_CELLS = 0.03  # share of occupied cells once a training has found the object
BLOCK = 8  # cells along the side of an occupied block


class HalfMlp(nn.Module):
    """The merged chain as PyTorch evaluates it in half precision: ReLU features, no norm."""

    def __init__(self, chain: MergedChain) -> None:
        super().__init__()
        stages = [*((stage.projections, stage.offsets) for stage in chain.stages), (chain.weight, chain.bias)]
        self.layers = nn.ModuleList(_half_linear(weight, bias) for weight, bias in stages)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = torch.relu(layer(x))
        return self.layers[-1](x)


def _half_linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device=weight.device, dtype=torch.float16)
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(bias)
    return layer


@torch.no_grad()
def check_last_rows(name: str, mine: Tensor, theirs: Tensor, tolerance: float, whose: str = "PyTorch's") -> None:
    """Compare the end of a batch with another implementation, so that no wrong result is reported as a speed.

    Raises:
        RuntimeError: the results differ.
    """
    difference = float((mine.double() - theirs.double()).norm() / theirs.double().norm().clamp_min(1e-12))
    if not difference <= tolerance:
        raise RuntimeError(f"{name}: the last rows of the batch differ from {whose} by {difference:.1e}")


def eugen_chain(width: int) -> tuple[MergedChain, PackedChain]:
    """A merged EUGen network 32-width-width-16."""
    layers = build_network("eugen", 32, 64, 2, 16, width, norm_first=False).to(DEVICE)
    with torch.no_grad():
        chain = merge_chain(layers)
        return chain, pack_chain(chain)


def by_tcnn(name: str, make: Callable[[], nn.Module], x: Tensor, grad: Tensor) -> list[Contender]:
    """tiny-cuda-nn without and, if available, with JIT fusion, since its README recommends trying both."""

    def contender(name: str, module: nn.Module, fused: bool) -> Contender:
        parameters = tuple(module.parameters())
        count = sum(p.numel() for p in parameters) / 1e6

        def remark() -> str:
            gone = "; JIT fusion failed and was not in use" if fused and not module.jit_fusion else ""
            return f"rounds {count:.2f} M parameters to fp16 first{gone}"  # in each forward pass of its module

        return Contender(name, module, x, grad, parameters, remark)

    module: Any = make().to(DEVICE)
    contenders = [contender(name, module, False)]
    if getattr(module, "jit_fusion", False):
        module.jit_fusion = False
        contenders.append(contender(f"{name}, JIT", make().to(DEVICE), True))
    return contenders


def network_rows(width: int, batch: int, gpu: Gpu, tcnn: bool, compiled_until: float | None = None) -> Iterator[Row]:
    """Networks 32-W-W-16: merged EUGen layers by our kernels and by PyTorch, an MLP of that shape by tiny-cuda-nn.

    Args:
        tcnn: whether tiny-cuda-nn is available.
        compiled_until: if given, only compare with torch.compile, provided that the compiler can finish by then.
    """
    if compiled_until is not None and time.monotonic() + COMPILER_SECONDS > compiled_until:
        raise TimeUp("too little was left for the compiler")
    chain, packed = eugen_chain(width)
    x32, grad32 = torch.randn(batch, 32, device=DEVICE), torch.randn(batch, 16, device=DEVICE)
    x16, grad16 = x32.half(), grad32.half()
    parameters = packed.parameters.detach().requires_grad_()

    def ours(x: Tensor) -> Tensor:
        return operators.network(x, parameters, packed.spec, packed.eps)

    eager = HalfMlp(chain).to(DEVICE)
    for x in (x32, x16) if x16.is_cuda else (x32,):  # where a CPU takes the GPU's place, rows of halves are refused
        check_last_rows("network", ours(x)[-LAST:], eager(x16[-LAST:]), 2e-2)
    contenders = [Contender("ours, fp16 rows", ours, x16, grad16, (parameters,))]
    ways: list[Contender] = []
    if compiled_until is not None:
        torch.compiler.reset()
        module = torch.compile(eager, dynamic=False)
        contenders.append(Contender("torch.compile fp16", module, x16, grad16, tuple(eager.parameters())))
    else:
        contenders.append(Contender(OURS_FLOAT32, ours, x32, grad32, (parameters,)))
        contenders.append(Contender("torch fp16", eager, x16, grad16, tuple(eager.parameters())))
        ways = by_tcnn(TCNN_ROWS, lambda: mlp(32, 16, width, 2), x32, grad16) if tcnn else []
    remarks = {c.name: c.remark for c in ways}

    def note(name: str, ms: float, work: int) -> str:
        tflops = work * 2 * batch * chain.multiply_adds / ms / 1e9
        into, out = (4 if "float32" in name else 2) * 32, (4 if name == OURS_FLOAT32 else 2) * 16
        # The backward pass reads inputs and gradients, and writes the gradients of the inputs.
        moved = batch * (into + out + (2 * into + out if work > 1 else 0)) / ms / 1e9
        rates = f"{tflops:.0f} of {gpu.tflops:.0f} TFLOP/s, rows {moved:.2f} of {gpu.tbytes:.2f} TB/s"
        return "; ".join([rates, remarks[name]()] if name in remarks else [rates])

    everybody = [*contenders, *ways]
    for work, passes in ((1, "forward"), (3, "forward + backward")):
        yield from race(
            f"network 32-{width}-{width}-16, {passes}",
            [(c.name, (lambda c=c: c.forward) if work == 1 else c.forward_backward) for c in everybody],  # type: ignore[misc]
            functools.partial(note, work=work),
            beside=dict.fromkeys(remarks, OURS_FLOAT32),
            ways=tuple(remarks),
        )


def tile_rows(width: int, batch: int) -> Iterator[Row]:
    """The kernels of a merged EUGen network 32-W-W-16 with other tiles than those that `tiles.plan` chooses."""
    _, packed = eugen_chain(width)
    device = cuda_driver.gpu(torch.cuda.current_device())
    half = cuda.half_dtype()
    x, grad = (torch.randn(batch, n, device=DEVICE).to(half) for n in (32, 16))
    network = packed.parameters, packed.spec, packed.eps
    forward, backward = choices(packed.spec, device.shared_memory)

    def evaluate(tiles: Tiles) -> list[Tensor]:
        return [cuda.network_forward(device, x, *network, tiles)]

    def differentiate(tiles: Tiles) -> list[Tensor]:
        parameters, *rest = network
        return list(cuda.network_backward(device, x, parameters, grad, *rest, True, tiles))

    def racer(run: Callable[[Tiles], list[Tensor]], tiles: Tiles, expected: list[Tensor]) -> Callable[[], object]:
        for mine, theirs in zip(run(tiles), expected, strict=True):
            check_last_rows("network", mine[-LAST:], theirs[-LAST:], 2e-2, "those with the chosen tiles")
        return lambda: run(tiles)

    def block(warps: int, tiles: int, streamed: bool, keep_sums: bool = False) -> str:
        places = ", weights in parts" * streamed + ", sums in registers" * keep_sums
        return f"{warps} warps of {16 * tiles} rows{places}"

    of_forward = [(t.warps, block(t.warps, t.tiles, t.streamed), t) for t in forward]
    of_backward = [(t.back_warps, block(t.back_warps, t.back_tiles, t.back_streamed, t.keep_sums), t) for t in backward]
    for passes, run, found in (("forward", evaluate, of_forward), ("backward", differentiate, of_backward)):
        chosen = found[0][-1]
        expected = run(chosen)
        contenders = [
            (name, functools.partial(racer, run, tiles, expected))
            for warps, name, tiles in found
            if tiles is chosen or warps >= FEWEST_WARPS
        ]
        yield from race(f"network 32-{width}-{width}-16, {passes}", contenders, lambda *_: "")


def hash_rows(batch: int, gpu: Gpu, tcnn: bool) -> Iterator[Row]:
    """The default hash grid, 16 levels of 2 features, up to 2^19 entries each."""
    layout = HashGridLayout.build(16, 2, 19, 16, 2048)
    x = torch.rand(batch, 3, device=DEVICE)
    table = torch.randn(layout.num_entries, 2, device=DEVICE).requires_grad_()
    grad = torch.randn(batch, layout.out_features, device=DEVICE)
    half = table.detach().half()
    few = batch // 4  # positions for eager PyTorch, which needs about 2 kB each
    grid = (layout.resolutions, layout.offsets, layout.log2_table_size)

    def ours(x: Tensor) -> Tensor:
        return operators.hash_encode(x, table, *grid)

    check_last_rows("hash_encode", ours(x)[-LAST:], reference.hash_encode(x[-LAST:], table, layout), 1e-4)
    mine = Contender("ours", ours, x, grad, (table,))
    ways = by_tcnn(TCNN_TABLE, lambda: hash_grid(layout), x, grad.half()) if tcnn else []
    eager = Contender("torch, a quarter of the batch times 4", lambda x: reference.hash_encode(x, table, layout),
                      x[:few].contiguous(), grad[:few], (table,))  # fmt: skip
    halves = Contender("ours, fp16 table", lambda x: operators.hash_encode(x, half, *grid), x, grad, ())
    remarks = {c.name: c.remark for c in ways}

    def note(name: str, ms: float) -> str:
        # What has to cross the memory's bus: positions, results, and the table once, which the caches can hold.
        result, entry = (2, 2) if name in remarks else (4, 2 if name == halves.name else 4)
        moved = batch * (3 * 4 + layout.out_features * result) + table.numel() * entry
        vertices = batch * layout.num_levels * 8
        rate = f"{moved / ms / 1e9:.2f} of {gpu.tbytes:.2f} TB/s, {vertices / ms / 1e6:.0f} vertices/ns"
        return "; ".join([rate, remarks[name]()] if name in remarks else [rate])

    yield from race(
        "hash_encode, forward",
        [(c.name, lambda c=c: c.forward) for c in (mine, halves, *ways, eager)],  # type: ignore[misc]
        note,
        {eager.name: few and batch / few},
        ways=tuple(remarks),
    )
    yield from race(
        "hash_encode, backward",
        [(c.name, c.backward) for c in (mine, *ways, eager)],
        lambda *_: "",
        {eager.name: few and batch / few},
        ways=tuple(remarks),
    )


def rays_with(samples: int, share: float) -> int:
    """Number of rays with about this many samples if this share of the cells is occupied."""
    return max(1, int(samples / (STEPS_THROUGH_BOX * share)))


class Rays:
    """A number of rays through a box in which this share of the cells is occupied, in blocks, as in a trained scene."""

    space, resolution = Space(((-1.5, -1.5, -1.5), (1.5, 1.5, 1.5))), 128
    rule = StepRule(space.diagonal / 1024)

    def __init__(self, rays: int, share: float) -> None:
        occupied = torch.rand((self.resolution // BLOCK,) * 3, device=DEVICE) < share
        for axis in range(3):
            occupied = occupied.repeat_interleave(BLOCK, axis)
        self.bits = pack_bits(occupied.flatten())
        origins = 4 * nn.functional.normalize(torch.randn(rays, 3, device=DEVICE), dim=-1)
        directions = nn.functional.normalize(torch.rand(rays, 3, device=DEVICE) - 0.5 - origins, dim=-1)
        near, far = torch.full((rays,), 1.0, device=DEVICE), torch.full((rays,), 8.0, device=DEVICE)
        self.where, self.jitter = (origins, directions, near, far), torch.full((rays,), 0.5, device=DEVICE)

    def march(self) -> PackedSamples:
        arguments = (*space_arguments(self.space), rule_argument(self.rule))
        return PackedSamples(*operators.march(*self.where, self.jitter, self.bits, self.resolution, *arguments))


def ray_rows(samples: int, share: float) -> Iterator[Row]:
    """March, composite and select about this many samples of rays. This share of the cells of their box is occupied.

    At the beginning of a training all cells are occupied, so rays are few and long. Later few cells are.
    """
    rays = rays_with(samples, share)
    box = Rays(rays, share)

    def eager_march() -> PackedSamples:
        return reference.march(*box.where, box.bits, box.resolution, box.space, box.rule, box.jitter)

    found = box.march()
    size = f"{found.num_samples} samples of {rays} rays"
    yield from race(f"march, {size}", [("ours", lambda: box.march), ("torch", lambda: eager_march)], lambda *_: "")

    sigma, rgb = torch.rand(found.num_samples, device=DEVICE), torch.rand(found.num_samples, 3, device=DEVICE)
    grad = torch.randn(rays, 5, device=DEVICE)

    def composite(sigma: Tensor, rgb: Tensor) -> Tensor:
        return operators.composite(sigma, rgb, found.t_starts, found.t_ends, found.ray_offsets)

    def eager_composite(sigma: Tensor, rgb: Tensor) -> Tensor:
        color, alpha, depth = reference.composite(sigma, rgb, found)
        return torch.cat([color, alpha[:, None], depth[:, None]], dim=1)

    def forward_backward(run: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], None]:
        density, color = (tensor.detach().requires_grad_() for tensor in (sigma, rgb))

        def step() -> None:
            density.grad = color.grad = None
            run(density, color).backward(grad)

        return step

    contenders = [("ours", lambda: forward_backward(composite)), ("torch", lambda: forward_backward(eager_composite))]
    yield from race(f"composite, forward + backward, {size}", contenders, lambda *_: "")

    # What training selects of each sample: position, direction, encoding, outputs of the density network, density.
    rows = [torch.rand(found.num_samples, width, device=DEVICE) for width in (3, 3, 32, 16, 1)]
    # Half of the samples are occluded where rays have an average number of them.
    hiding = sigma * 40 * rays / max(found.num_samples, 1) / (found.t_ends - found.t_starts).mean()

    def select() -> list[Tensor]:
        samples = (hiding, found.t_starts, found.t_ends, found.ray_offsets)
        return operators.select_visible(*samples, rows, reference.MIN_TRANSMITTANCE)

    contenders = [("ours", lambda: select), ("torch", lambda: lambda: reference.select_visible(hiding, found, rows))]
    yield from race(f"select_visible, {size}", contenders, lambda *_: "")


class OneByOne:
    """Hides the parts of a field, so that its ops run one by one."""

    backend: Backend = "auto"

    def __init__(self, field: RadianceField) -> None:
        self.field, self.density_at = field, field.density_at

    def __call__(self, unit: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        return self.field(unit, directions)


def gradient_rows(samples: int) -> Iterator[Row]:
    """From rays to the gradient of every parameter, fused and op by op, CPU time included."""
    rays = rays_with(samples, FEW_CELLS)
    box, field = Rays(rays, FEW_CELLS), EugenField(FieldConfig()).to(DEVICE)

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

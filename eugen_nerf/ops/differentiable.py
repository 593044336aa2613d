"""Rendering with gradients, for training: in one piece if the device has native code, otherwise op by op.

"In one piece" means a single autograd function that calls the ops' native code directly, forward and backward. Op by
op, PyTorch's dispatch of some hundred operators and its recording of their gradients take a tenth of a step on a CPU
(docs/performance.md) and, apart from the work of the ops themselves, up to half of the cost of a step (docs/gpu.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from eugen_nerf.ops import cpu, cuda, dispatch, operators
from eugen_nerf.ops.checks import check_color_outputs, check_grid, check_network, check_rays, prepare
from eugen_nerf.ops.dispatch import Backend, runs_network
from eugen_nerf.ops.layout import HashGridLayout, PackedSamples, Space, StepRule
from eugen_nerf.ops.packing import PackedChain
from eugen_nerf.ops.products import describe
from eugen_nerf.ops.radiance_field import MAX_LOG_DENSITY, MAX_LOG_SLOPE, FactoredField, RadianceField
from eugen_nerf.ops.reference import MIN_TRANSMITTANCE

F32 = torch.float32
MAX_THICKNESS = -math.log(MIN_TRANSMITTANCE)  # optical thickness in front of a sample that counts as visible


class Field(Protocol):
    """A field that is rendered op by op; both methods are differentiable."""

    backend: Backend

    def density_at(self, unit: Tensor, /) -> tuple[Tensor, Tensor]:
        """Positions in the unit cube [N, 3] -> density [N] per world unit, and what the colors depend on."""
        ...

    def __call__(self, unit: Tensor, directions: Tensor, /) -> tuple[Tensor, Tensor]:
        """Positions in the unit cube [N, 3], unit directions [N, 3] -> density [N], rgb [N, 3]."""
        ...


def differentiable_render(
    origins: Tensor,
    directions: Tensor,
    near: Tensor,
    far: Tensor,
    bits: Tensor,
    resolution: int,
    space: Space,
    rule: StepRule,
    field: RadianceField | FactoredField | Field,
    jitter: Tensor | None = None,
    skip_occluded: bool = False,
) -> tuple[Tensor, Tensor, Tensor, PackedSamples]:
    """March along rays, evaluate the field and composite, with gradients to the field's parameters.

    Compositing is the volume rendering of Mildenhall et al. 2020 ("NeRF", eq. 3). Gradients of native code are of first
    order only; differentiating them again raises RuntimeError or, if the field is rendered op by op,
    NotImplementedError.

    Args:
        origins: [R, 3] world units.
        directions: [R, 3] of unit length.
        near: [R] world units.
        far: [R] world units.
        bits: occupancy bitfield over the unit cube, [resolution**3 / 8] uint8; see `occupied`.
        resolution: cells of the occupancy grid along an axis.
        space: map from the world to the unit cube.
        rule: step sizes, in world units.
        field: the field to render.
        jitter: [R] in [0, 1), offset of each ray's samples in steps; None for 0.5.
        skip_occluded: leave out occluded samples, whose transmittance is below MIN_TRANSMITTANCE.

    Returns:
        rgb [R, 3] without a background, alpha [R], depth [R] in world units (the sum of weight times distance, not
        divided by alpha), and the samples that were composited. First-order gradients reach the tensors that the field
        was made of.

    Raises:
        UserError: the field's backend or EUGEN_BACKEND is unknown, or names a native runner that cannot do the work.
        TypeError: in native code, a tensor has the wrong dtype or device.
        ValueError: in native code, a tensor has the wrong shape, the step rule or the resolution is invalid, or the
            field's parts do not fit together.
    """
    rays = (origins, directions, near, far)
    if isinstance(field, RadianceField | FactoredField):
        factored = field if isinstance(field, FactoredField) else field.factored()
        if (networks := _native_networks(factored, *rays)) is not None:
            shift = torch.full_like(near, 0.5) if jitter is None else jitter
            with torch.no_grad():
                density, color = (network.multiplied() for network in networks)
                where = _march(rays, shift, bits, resolution, space, rule)
                evaluated = _evaluate_densities(*where, factored, density, skip_occluded)
            factors = [factor for network in networks for factor in network.factors]
            places = [(network.places, len(network.factors)) for network in networks]
            tensors = field.table, *factors
            colors, alphas, depths = _InOnePiece.apply(evaluated, field.layout, (density, color), places, *tensors)
            return colors, alphas, depths, evaluated.samples
    if isinstance(field, FactoredField):
        field = field.merged()

    backend = field.backend
    samples = dispatch.march(*rays, bits, resolution, space, rule, jitter, backend=backend)
    unit, views = dispatch.sample_points(origins, directions, samples, space, backend=backend)
    if skip_occluded:
        with torch.no_grad():
            densities = field.density_at(unit)[0]
        samples, (unit, views) = dispatch.select_visible(densities, samples, [unit, views], backend=backend)
    sigma, rgb = field(unit, views)
    return *dispatch.composite(sigma, rgb, samples, backend=backend), samples


@dataclass(frozen=True, eq=False)
class _Network:
    """A network whose matrices are not multiplied yet."""

    factors: list[Tensor]
    places: tuple[int, ...]
    spec: tuple[int, ...]
    eps: tuple[float, ...]

    def multiplied(self) -> PackedChain:
        return PackedChain(_run("factor_products_forward", self.factors, self.places), self.spec, self.eps)


def _native_networks(field: FactoredField, *rays: Tensor) -> tuple[_Network, _Network] | None:
    """The networks for the native code of the field's device; None if the ops have to run one by one."""
    # torch.compile needs to see the individual operators; tensors of torch.func have no memory of their own.
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return None
    if any(t.requires_grad for t in rays) or field.table.dtype != F32:
        return None
    packed = field.native_networks(*rays)
    if packed is None:
        return None
    # On a GPU, the inputs of the color network are in padded rows, see cuda.color_inputs.
    found = zip(packed, (False, True), strict=True)
    if not all(runs_network(chain.spec, field.table.device, field.backend, padded) for chain, padded in found):
        return None
    density, color = (_Network(*describe(chain.products), chain.spec, chain.eps) for chain in packed)
    factors = (*density.factors, *color.factors)
    # Subclasses of Tensor need to see the individual operators, too.
    plain = all(type(t) in (Tensor, torch.nn.Parameter) for t in (*rays, field.table, *factors))
    alike = all((t.dtype, t.device) == (F32, field.table.device) for t in factors)
    return (density, color) if plain and alike else None


@dataclass(frozen=True, eq=False)
class _Evaluated:
    """Samples whose densities have been evaluated. No tensor has a gradient."""

    samples: PackedSamples
    unit: Tensor  # [N, 3] positions in the unit cube
    views: Tensor  # [N, 3] directions
    encoded: Tensor  # [N, L * F] from the hash grid
    raw: Tensor  # [N, 1 + G] from the density network: logarithm of the density, geometry features
    sigma: Tensor  # [N]

    def visible(self) -> _Evaluated:
        """Without occluded samples."""
        samples = (self.samples.t_starts, self.samples.t_ends, self.samples.ray_offsets)
        rows = [self.unit, self.views, self.encoded, self.raw, self.sigma]
        offsets, starts, ends, *kept = _run("select_visible", self.sigma, *samples, rows, MAX_THICKNESS)
        return _Evaluated(PackedSamples(offsets, starts, ends), *kept)


def _run(name: str, *arguments: Any) -> Any:
    """Call an op's native code for the device of its first argument, a tensor or a list of tensors."""
    first = arguments[0] if isinstance(arguments[0], Tensor) else arguments[0][0]
    return operators.choose(first.device, getattr(cpu, name), getattr(cuda, name))(*arguments)


def _march(
    rays: tuple[Tensor, Tensor, Tensor, Tensor],
    jitter: Tensor,
    bits: Tensor,
    resolution: int,
    space: Space,
    rule: StepRule,
) -> tuple[PackedSamples, Tensor, Tensor]:
    """Return the samples, their positions in the unit cube [N, 3] and their directions [N, 3]."""
    *checked, bits = check_rays(*rays, bits, resolution, (rule.step_size, rule.cone_angle))
    jitter = prepare("jitter", jitter, (rays[0].shape[0],), F32, rays[0].device)
    samples = PackedSamples(*_run("march", *checked, jitter, bits, resolution, space, rule))
    unit, views = _run("sample_points", *checked[:2], samples.ray_offsets, samples.t_starts, samples.t_ends, space)
    return samples, unit, views


def _evaluate_densities(
    samples: PackedSamples, unit: Tensor, views: Tensor, field: FactoredField, density: PackedChain, skip_occluded: bool
) -> _Evaluated:
    layout = field.layout
    check_grid(layout, unit.device)
    table = prepare("table", field.table, (layout.num_entries, layout.features_per_level), F32, unit.device)
    encoded = _run("hash_encode_forward", unit, table, layout)
    check_network(encoded, density.parameters, density.spec, density.eps)
    raw = _run("network_forward", encoded, density.parameters, density.spec, density.eps)
    evaluated = _Evaluated(samples, unit, views, encoded, raw, torch.exp(raw[:, 0].clamp(max=MAX_LOG_DENSITY)))
    return evaluated.visible() if skip_occluded else evaluated


class _InOnePiece(torch.autograd.Function):
    """Colors and compositing of samples, and the gradients back to the hash table and the networks' factors."""

    @staticmethod
    def forward(
        ctx: Any,
        at: _Evaluated,
        layout: HashGridLayout,
        networks: tuple[PackedChain, PackedChain],
        places: list[tuple[tuple[int, ...], int]],
        table: Tensor,
        *factors: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.layout, ctx.networks, ctx.places = layout, networks, places
        density, color = networks
        seen = _run("color_inputs", at.views, at.raw[:, 1:])
        # No rows, because the check would copy rows that are padded.
        check_network(seen[:0], color.parameters, color.spec, color.eps)
        check_color_outputs(color.spec)
        rgb = torch.sigmoid(_run("network_forward", seen, color.parameters, color.spec, color.eps))
        samples = at.samples
        packed = (samples.t_starts, samples.t_ends, samples.ray_offsets)
        out = _run("composite_forward", at.sigma, rgb, *packed)
        of_samples = at.unit, at.encoded, at.raw, at.sigma, seen, rgb, *packed
        ctx.save_for_backward(table, density.parameters, color.parameters, *of_samples, *factors)
        return out[:, :3], out[:, 3], out[:, 4]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        table, density, color, unit, encoded, raw, sigma, seen, rgb, *rest = ctx.saved_tensors
        packed, factors = rest[:3], rest[3:]
        needs_table, *needed = ctx.needs_input_grad[4:]
        of_density, of_color = ((chain.spec, chain.eps) for chain in ctx.networks)
        grad = torch.cat([grads[0], grads[1][:, None], grads[2][:, None]], dim=1)
        grad_sigma, grad_rgb = _run("composite_backward", sigma, rgb, *packed, grad)
        grad_logits = torch.ops.aten.sigmoid_backward(grad_rgb, rgb)
        grad_seen, grad_color = _run("network_backward", seen, color, grad_logits, *of_color, True)
        grad_log = grad_sigma * torch.exp(raw[:, 0].clamp(max=MAX_LOG_SLOPE))
        harmonics = seen.shape[1] - raw.shape[1] + 1
        grad_raw = torch.cat([grad_log[:, None], grad_seen[:, harmonics:]], dim=1)
        grad_encoded, grad_density = _run("network_backward", encoded, density, grad_raw, *of_density, needs_table)
        grad_table = None
        if needs_table:
            grad_table, _ = _run("hash_encode_backward", unit, table, grad_encoded, ctx.layout, True, False)
        grad_factors: list[Tensor | None] = []
        for (places, count), grad_values in zip(ctx.places, (grad_density, grad_color), strict=True):
            begin = len(grad_factors)
            mine, wanted = factors[begin : begin + count], needed[begin : begin + count]
            found = _run("factor_products_backward", mine, places, grad_values, wanted)
            grad_factors += [one if need else None for one, need in zip(found, wanted, strict=True)]
        return None, None, None, None, grad_table, *grad_factors

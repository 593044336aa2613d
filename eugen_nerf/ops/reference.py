"""The ops in eager PyTorch, the definition that every native runner has to agree with.

All functions work in float32 and float64 on any device. They are differentiable where their docstring says so. They do
not check their arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from eugen_nerf.layers.factor_products import Product
from eugen_nerf.layers.merge import MergedChain
from eugen_nerf.ops.layout import HashGridLayout, PackedSamples, Space, StepRule, ray_offsets_of

# Multipliers of the spatial hash (Müller et al. 2022, eq. 4).
HASH_PRIMES = (1, 2654435761, 805459861)

# A ray is finished when less than this fraction of light still passes.
MIN_TRANSMITTANCE = 1e-4
OPAQUE = 200.0  # optical thickness that lets no light through in any precision


def hash_encode(x: Tensor, table: Tensor, layout: HashGridLayout) -> Tensor:
    """Multiresolution hash encoding with trilinear interpolation (Müller et al. 2022, section 3).

    Args:
        x: [N, 3] positions in the unit cube; positions outside are clamped onto it, NaN counts as 0.
        table: [layout.num_entries, F] features of the grid's vertices.
        layout: resolutions and row ranges of the levels.

    Returns:
        [N, L * F] interpolated features, level after level. Differentiable in ``table`` and ``x``.
    """
    device = x.device
    resolutions = torch.tensor(layout.resolutions, device=device)
    # The gradient of clamp at its limits is 1 in some versions of PyTorch and 0 in others; here it is 0.
    clamped = torch.where((x > 0) & (x < 1), x, x.detach().nan_to_num(0).clamp(0, 1))
    scaled = clamped[:, None, :] * resolutions[:, None].to(x.dtype)  # [N, L, 3]
    # x = 1 belongs to the last cell, so that the upper vertex exists.
    cell = torch.minimum(scaled.detach().floor().long(), resolutions[:, None] - 1)
    fraction = scaled - cell

    corners = torch.tensor([[c & 1, c >> 1 & 1, c >> 2] for c in range(8)], device=device)
    vertices = cell[:, :, None, :] + corners  # [N, L, 8, 3]
    index = _vertex_rows(vertices, layout)
    weights = torch.where(corners.bool(), fraction[:, :, None, :], 1 - fraction[:, :, None, :]).prod(dim=-1)
    return (table[index] * weights[..., None]).sum(dim=2).flatten(1)


def _vertex_rows(vertices: Tensor, layout: HashGridLayout) -> Tensor:
    """[N, L, 8, 3] integer vertices -> [N, L, 8] rows of the table."""
    device = vertices.device
    x, y, z = vertices.unbind(-1)
    side = torch.tensor([r + 1 for r in layout.resolutions], device=device)[:, None]
    dense = x + side * (y + side * z)
    hashed = spatial_hash(vertices) & ((1 << layout.log2_table_size) - 1)
    is_dense = torch.tensor([layout.is_dense(level) for level in range(layout.num_levels)], device=device)
    offsets = torch.tensor(layout.offsets[:-1], device=device)
    return torch.where(is_dense[:, None], dense, hashed) + offsets[:, None]


def spatial_hash(vertices: Tensor) -> Tensor:
    """Spatial hash of integer vertices (Müller et al. 2022, eq. 4), [..., 3] -> [...] int64; use the low 32 bits."""
    x, y, z = vertices.unbind(-1)
    # The low 32 bits of 64-bit products are those of the unsigned 32-bit products.
    return (x * HASH_PRIMES[0]) ^ (y * HASH_PRIMES[1]) ^ (z * HASH_PRIMES[2])


def spherical_harmonics(directions: Tensor) -> Tensor:
    """Real spherical harmonics up to degree 3 (16 values), the encoding of the viewing direction.

    The encoding is that of Müller et al. 2022 ("Instant NGP").

    Args:
        directions: [N, 3] unit vectors.

    Returns:
        [N, 16], orthonormal over the sphere. Differentiable.
    """
    x, y, z = directions.unbind(-1)
    xx, yy, zz = x * x, y * y, z * z
    return torch.stack(
        [
            torch.full_like(x, 0.28209479177387814),
            -0.4886025119029199 * y,
            0.4886025119029199 * z,
            -0.4886025119029199 * x,
            1.0925484305920792 * x * y,
            -1.0925484305920792 * y * z,
            0.31539156525252005 * (3 * zz - 1),
            -1.0925484305920792 * x * z,
            0.5462742152960396 * (xx - yy),
            -0.5900435899266435 * y * (3 * xx - yy),
            2.890611442640554 * x * y * z,
            -0.4570457994644658 * y * (5 * zz - 1),
            0.3731763325901154 * z * (5 * zz - 3),
            -0.4570457994644658 * x * (5 * zz - 1),
            1.445305721320277 * z * (xx - yy),
            -0.5900435899266435 * x * (xx - 3 * yy),
        ],
        dim=-1,
    )


def network(x: Tensor, chain: MergedChain) -> Tensor:
    """Evaluate a merged chain of EUGen and dense layers (EUGens, arXiv 2601.22563, appendix B.1).

    Args:
        x: [..., D] inputs.
        chain: the merged chain, see `eugen_nerf.layers.merge_chain`.

    Returns:
        [..., D_out]. Differentiable in ``x`` and in every parameter of the chain.
    """
    return chain.evaluate(x)


def occupied(unit: Tensor, bits: Tensor, resolution: int) -> Tensor:
    """Look up positions in an occupancy bitfield (the occupancy grid of Müller et al. 2022, "Instant NGP").

    Args:
        unit: [..., 3] positions in the unit cube; positions outside of it count as empty.
        bits: [resolution**3 / 8] uint8; cell (i, j, k) along x, y, z is bit ``index & 7`` of byte
            ``index >> 3`` with ``index = (k * resolution + j) * resolution + i``.
        resolution: cells along an axis; even, so that the cells fill whole bytes.

    Returns:
        [...] bool.
    """
    inside = ((unit >= 0) & (unit < 1)).all(dim=-1)  # NaN fails both comparisons
    cell = (torch.where(inside[..., None], unit, 0.0) * resolution).long().clamp(max=resolution - 1)
    index = (cell[..., 2] * resolution + cell[..., 1]) * resolution + cell[..., 0]
    return inside & ((bits[index >> 3].long() >> (index & 7)) & 1).bool()


def ray_box_intersection(origins: Tensor, directions: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Distances at which rays enter and leave an axis-aligned box (slab test).

    Args:
        origins: [R, 3] world units.
        directions: [R, 3] of unit length.
        low: [3] lower corner, world units.
        high: [3] upper corner, world units.

    Returns:
        entry [R] and exit [R] in world units along the ray; ``exit < entry`` if the ray misses the box. Both can be
        negative. Differentiable.
    """
    # A zero component would give 0 * inf = NaN on a face; the tiny substitute gives huge but consistent distances.
    tiny = torch.finfo(directions.dtype).tiny ** 0.5
    safe = torch.where(directions.abs() < tiny, torch.full_like(directions, tiny), directions)
    first, second = (low - origins) / safe, (high - origins) / safe
    return torch.minimum(first, second).amax(-1), torch.maximum(first, second).amin(-1)


def factor_products(products: Sequence[Product]) -> Tensor:
    """Multiply the factors of a chain's matrices.

    Args:
        products: matrices and vectors.

    Returns:
        All values, one product behind the other and row by row: [K].
    """
    return torch.cat([product.value().reshape(-1) for product in products])


def march(
    origins: Tensor,
    directions: Tensor,
    near: Tensor,
    far: Tensor,
    bits: Tensor,
    resolution: int,
    space: Space,
    rule: StepRule,
    jitter: Tensor | None = None,
) -> PackedSamples:
    """Place samples along rays wherever the occupancy grid is occupied (Müller et al. 2022, "Instant NGP").

    Sample ``i`` of a ray has its midpoint at step coordinate ``s(near) + i + jitter`` (see `StepRule`) and extends half
    a step to both sides. It exists if the midpoint is nearer than ``far`` (and inside the box of a bounded scene) and
    its cell is occupied.

    Args:
        origins: [R, 3] world units.
        directions: [R, 3] of unit length.
        near: [R] world units.
        far: [R] world units.
        bits: occupancy bitfield over the unit cube, see `occupied`.
        resolution: cells along an axis.
        space: map from the world to the unit cube.
        rule: step sizes.
        jitter: [R] in [0, 1), or None for 0.5.

    Returns:
        The packed samples; not differentiable.
    """
    with torch.no_grad():
        if not space.contracted:
            low = torch.tensor(space.box[0], dtype=origins.dtype, device=origins.device)
            high = torch.tensor(space.box[1], dtype=origins.dtype, device=origins.device)
            entry, leave = ray_box_intersection(origins, directions, low, high)
            near, far = torch.maximum(near, entry), torch.minimum(far, leave)
        start = rule.coordinate(near.clamp_min(0))
        start = start + (0.5 if jitter is None else jitter)
        counts = (rule.coordinate(far.clamp_min(0)) - start).ceil().clamp_min(0)
        counts = torch.where(far > near, counts, torch.zeros_like(counts)).long()

        rays = torch.arange(origins.shape[0], device=origins.device).repeat_interleave(counts)
        first = counts.cumsum(0) - counts
        number = torch.arange(rays.shape[0], device=origins.device) - first[rays]
        s = start[rays] + number
        t_starts, t_ends = rule.distance((s - 0.5).clamp_min(0)), rule.distance(s + 0.5)
        positions = origins[rays] + directions[rays] * (0.5 * (t_starts + t_ends))[:, None]
        keep = occupied(space.to_unit(positions), bits, resolution).nonzero()[:, 0]

        kept = torch.bincount(rays[keep], minlength=origins.shape[0])
        return PackedSamples(ray_offsets_of(kept), t_starts[keep], t_ends[keep])


def sample_points(origins: Tensor, directions: Tensor, samples: PackedSamples, space: Space) -> tuple[Tensor, Tensor]:
    """Positions and directions at which the field is evaluated.

    Args:
        origins: [R, 3] world units.
        directions: [R, 3] of unit length.
        samples: the packed samples of the R rays.
        space: map from the world to the unit cube.

    Returns:
        positions in the unit cube [N, 3], directions [N, 3]. Differentiable here, but not in native runners.
    """
    return space.to_unit(samples.positions(origins, directions)), directions[samples.ray_indices()]


def transmittance(sigma: Tensor, samples: PackedSamples) -> Tensor:
    """Transmittance between the ray's origin and each sample (Mildenhall et al. 2020, "NeRF", eq. 3, T_i).

    Args:
        sigma: [N] densities, per world unit.
        samples: the packed samples.

    Returns:
        [N] in [0, 1]; 1 for the first sample of a ray. Differentiable in ``sigma``.
    """
    # A single running sum covers all rays. Double precision keeps the contribution of earlier rays harmless, provided
    # that the thickness of each sample is bounded and NaN is replaced; the sample's own ray still shows the NaN.
    optical = (sigma * (samples.t_ends - samples.t_starts)).clamp(max=OPAQUE).nan_to_num(nan=0.0)
    running = torch.cat([optical.new_zeros(1, dtype=torch.float64), optical.cumsum(0, dtype=torch.float64)])
    starts = running.index_select(0, samples.ray_offsets[:-1])
    starts = starts.repeat_interleave(samples.counts(), output_size=samples.num_samples)
    return torch.exp((starts - running[:-1]).to(sigma.dtype))


def select_visible(
    sigma: Tensor, samples: PackedSamples, rows: Sequence[Tensor], min_transmittance: float = MIN_TRANSMITTANCE
) -> tuple[PackedSamples, list[Tensor]]:
    """Leave out occluded samples, those with a smaller `transmittance`.

    Args:
        sigma: [N] densities, per world unit, not negative.
        samples: the packed samples.
        rows: tensors [N, ...] with a row for each sample.
        min_transmittance: above 0 and at most 1.

    Returns:
        The M visible samples, and their rows [M, ...]. Only the rows are differentiable, and only here, not in native
        runners.
    """
    with torch.no_grad():
        # Every use of a mask would synchronize with a GPU.
        indices = (transmittance(sigma, samples) >= min_transmittance).nonzero()[:, 0]
    return samples.select(indices), [each.index_select(0, indices) for each in rows]


def composite(sigma: Tensor, rgb: Tensor, samples: PackedSamples) -> tuple[Tensor, Tensor, Tensor]:
    """Emission-absorption volume rendering (Max 1995; Mildenhall et al. 2020, "NeRF", eq. 3).

    Args:
        sigma: [N] densities, per world unit.
        rgb: [N, 3] colors.
        samples: the packed samples of R rays.

    Returns:
        rgb [R, 3] without a background, alpha [R], depth [R] in world units: the sum of weight times distance, not
        divided by alpha. Differentiable in ``sigma`` and ``rgb``. A ray without samples gives zeros.
    """
    rays = samples.ray_indices()
    optical = sigma * (samples.t_ends - samples.t_starts)
    weights = transmittance(sigma, samples) * -torch.expm1(-optical)
    channels = torch.cat([rgb, torch.ones_like(rgb[:, :1]), samples.t_mids[:, None]], dim=-1)
    total = torch.zeros(samples.num_rays, 5, dtype=rgb.dtype, device=rgb.device)
    total = total.index_add(0, rays, weights[:, None] * channels)
    return total[:, :3], total[:, 3], total[:, 4]


@torch.no_grad()
def masked_adam(
    parameter: Tensor,
    grad: Tensor,
    first: Tensor,
    second: Tensor,
    betas: tuple[float, float],
    eps: float,
    step_size: float,
    second_scale: float,
) -> None:
    """One step of Adam (Kingma and Ba 2015), in place, on the values whose gradient is not zero.

    Args:
        parameter, grad, first, second: of one shape; `first` and `second` are the moments.
        betas, eps: as in `torch.optim.Adam`.
        step_size: learning rate divided by the first moment's bias correction.
        second_scale: 1 divided by the second moment's bias correction.
    """
    touched = grad != 0
    first.copy_(torch.where(touched, torch.lerp(grad, first, betas[0]), first))
    second.copy_(torch.where(touched, torch.lerp(grad * grad, second, betas[1]), second))
    update = step_size * first / ((second * second_scale).sqrt() + eps)
    parameter.sub_(torch.where(touched, update, torch.zeros_like(update)))


def render(
    origins: Tensor,
    directions: Tensor,
    near: Tensor,
    far: Tensor,
    bits: Tensor,
    resolution: int,
    space: Space,
    rule: StepRule,
    field: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    min_transmittance: float = MIN_TRANSMITTANCE,
    wave: int = 8,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """March, evaluate the field and composite with early termination of opaque rays. Inference only.

    Args:
        origins, directions, near, far, bits, resolution, space, rule: as in `march`.
        field: positions in the unit cube [N, 3], directions [N, 3] -> sigma [N], rgb [N, 3].
        min_transmittance: a ray ends after the sample that takes its transmittance below this value.
        wave: samples of each active ray evaluated between two checks of the transmittance. It does not change the
            image, since samples after the end of a ray are always left out.

    Returns:
        rgb [R, 3] without a background, alpha [R], depth [R] as `composite`, and evaluated samples [R].
    """
    with torch.no_grad():
        samples = march(origins, directions, near, far, bits, resolution, space, rule)
        counts = samples.counts()
        total = torch.zeros(samples.num_rays, 5, dtype=origins.dtype, device=origins.device)
        transmittance = torch.ones_like(near)
        evaluated = torch.zeros_like(counts)
        alive = counts.nonzero()[:, 0]
        position = 0
        while alive.numel() > 0:
            number = position + torch.arange(wave, device=origins.device)
            valid = number < counts[alive, None]  # [A, wave]
            index = (samples.ray_offsets[alive, None] + number)[valid]
            rays = alive[:, None].expand(-1, wave)[valid]
            t_starts, t_ends = samples.t_starts[index], samples.t_ends[index]
            middle = 0.5 * (t_starts + t_ends)
            positions = origins[rays] + directions[rays] * middle[:, None]
            sigma, rgb = field(space.to_unit(positions), directions[rays])

            optical = torch.zeros(valid.shape, dtype=origins.dtype, device=origins.device)
            optical[valid] = sigma * (t_ends - t_starts)
            after = transmittance[alive, None] * torch.exp(-optical.cumsum(1))
            before = torch.cat([transmittance[alive, None], after[:, :-1]], dim=1)
            used = valid & (before >= min_transmittance)
            weights = (before * -torch.expm1(-optical) * used)[valid]
            channels = torch.cat([rgb, torch.ones_like(rgb[:, :1]), middle[:, None]], dim=-1)
            total.index_add_(0, rays, weights[:, None] * channels)
            evaluated[alive] += used.sum(1)
            transmittance[alive] = after[:, -1]
            position += wave
            alive = alive[(after[:, -1] >= min_transmittance) & (counts[alive] > position)]
        return total[:, :3], total[:, 3], total[:, 4], evaluated

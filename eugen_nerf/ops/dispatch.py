"""The public ops, which dispatch to the fastest runner that can do the work.

The signatures are those of `eugen_nerf.ops.reference`, plus ``backend``: "auto" uses the native runner of the tensors'
device if there is one, "reference" the eager definition, "cpu" or "cuda" that native runner or raises an error. The
environment variable EUGEN_BACKEND takes the same values and overrides the argument, unless it is empty.

Every op raises `UserError` if the backend is unknown, or if a native runner that was requested by name cannot do the
work. Native runners check their arguments and raise TypeError for a wrong dtype or device and ValueError for a wrong
shape or inconsistent arguments. Native gradients are of first order only: differentiating them again raises
NotImplementedError.
"""

from __future__ import annotations

import functools
import importlib
import os
import warnings
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from eugen_nerf.errors import UserError
from eugen_nerf.layers.factor_products import Product
from eugen_nerf.layers.merge import MergedChain
from eugen_nerf.ops import cuda, operators, reference
from eugen_nerf.ops.build import BuildError, cpu_library
from eugen_nerf.ops.checks import why_not_grid
from eugen_nerf.ops.cuda_driver import CudaError, gpu, gpu_number
from eugen_nerf.ops.layout import HashGridLayout, PackedSamples, Space, StepRule
from eugen_nerf.ops.operators import grid_arguments, rule_argument, space_arguments
from eugen_nerf.ops.packing import pack_chain, why_not_native
from eugen_nerf.ops.products import describe
from eugen_nerf.ops.tiles import OLDEST_ARCHITECTURE, plan, why_not_cuda

Backend = Literal["auto", "reference", "cpu", "cuda"]
BACKENDS = ("auto", "reference", "cpu", "cuda")


def requested_backend(backend: Backend) -> Backend:
    """Return EUGEN_BACKEND if it is set, otherwise the given backend.

    Raises:
        UserError: the name is unknown.
    """
    named = os.environ.get("EUGEN_BACKEND")
    name = named or backend
    if name not in BACKENDS:
        what = "EUGEN_BACKEND" if named else "The argument backend"
        raise UserError(f"{what} is {name!r}, but the backends are {', '.join(BACKENDS)}.")
    return name  # type: ignore[return-value]


@functools.cache
def _native_cpu_problem() -> str | None:
    """Say why the native CPU runners are unavailable, with one warning; None if they are available."""
    try:
        cpu_library()
    except BuildError as error:
        warnings.warn(
            f"eugen-nerf runs on eager PyTorch, several times slower than its native code: {error}.",
            RuntimeWarning,
            stacklevel=2,
        )
        return str(error)
    return None


@functools.cache
def _native_cuda_problem(index: int) -> str | None:
    """Say why native runners are unavailable on the GPU with this index, with one warning; None if available."""
    try:
        device = gpu(index)
        if device.architecture < OLDEST_ARCHITECTURE:
            raise BuildError(
                f"compute capability {device.architecture / 10} is below {OLDEST_ARCHITECTURE / 10}, the minimum"
            )
        device.resident_blocks("rays.cu", (), "march_count", 128, 0)  # compiles and loads the smallest program
        if os.environ.get("EUGEN_CUDA_CHECK", "1") != "0":
            problem = importlib.import_module("eugen_nerf.ops.self_check").verdict(index).problem()
            if problem:
                raise BuildError(
                    f"{problem}. Please report this with the name of the GPU; EUGEN_CUDA_CHECK=0 uses them anyway"
                )
    except (BuildError, CudaError) as error:
        warnings.warn(
            f"eugen-nerf runs on eager PyTorch on the GPU, without its own kernels: {error}.",
            RuntimeWarning,
            stacklevel=2,
        )
        return str(error)
    return None


@torch.compiler.assume_constant_result  # evaluated while torch.compile traces, not traced itself
def native_problem(device: torch.device) -> str | None:
    """Say why there are no native runners for tensors on a CPU or GPU; None if there are."""
    return _native_cpu_problem() if device.type == "cpu" else _native_cuda_problem(gpu_number(device))


@functools.cache
def _warn_of_eager(reason: str) -> None:
    warnings.warn(f"Using eager PyTorch, which is slower than native code: {reason}.", RuntimeWarning, stacklevel=4)


@torch.compiler.assume_constant_result
def _tell(reason: str) -> None:
    _warn_of_eager(reason)


def uses_native(
    backend: Backend, *tensors: Tensor, table: Tensor | None = None, unsupported: str | None = None
) -> bool:
    """Whether to use the native runner of the tensors' device.

    Args:
        backend: the requested backend; EUGEN_BACKEND overrides it.
        tensors: the op's floating-point arguments.
        table: the table of a hash grid, which may be fp16 on a GPU if no gradients are required.
        unsupported: why native code does not support the operation, or None. If native code would otherwise have been
            used, a warning gives the reason once.

    Raises:
        UserError: the native runner was requested by name but cannot do the work, or the backend is unknown.
    """
    backend = requested_backend(backend)
    if backend == "reference":
        return False
    device = tensors[0].device
    if table is not None:
        differentiable = torch.is_grad_enabled() and any(t.requires_grad for t in (*tensors, table))
        if differentiable or not operators.is_half_table(table) or table.device != device:
            tensors = (*tensors, table)
    same = all(t.device == device and t.dtype == torch.float32 for t in tensors)
    if not same or device.type not in ("cpu", "cuda") or backend not in ("auto", device.type):
        if backend == "cpu":
            raise UserError("Backend cpu takes float32 tensors on the CPU. Use backend auto or reference.")
        if backend == "cuda":
            raise UserError("Backend cuda takes float32 tensors on one NVIDIA GPU. Use backend auto or reference.")
        return False
    problem = native_problem(device)
    if problem and backend != "auto":
        raise UserError(f"Backend {backend} was asked for, but {problem}.")
    if problem is None and unsupported is not None:
        if backend != "auto":
            raise UserError(f"Backend {backend} was asked for, but {unsupported}.")
        _tell(unsupported)
    return problem is None and unsupported is None


@functools.cache
def _cuda_network_problem(spec: tuple[int, ...], index: int, precision: str, padded: bool) -> str | None:
    """Say why a GPU has no kernels for a packed chain, with one warning; None if it has.

    The kernels are loaded here, so that a compiler error leads to a fallback instead of ending the training.
    """
    problem = why_not_cuda(spec)
    if problem is None and precision == "bf16" and gpu(index).architecture < 80:
        problem = "EUGEN_PRECISION=bf16 needs compute capability 8.0"
    if problem is None and plan(spec, gpu(index).shared_memory) is None:
        problem = "it does not fit into the GPU's shared memory"
    if problem is None:
        try:
            cuda.load_network(gpu(index), spec, padded)
        except (BuildError, CudaError) as error:
            problem = str(error)
    if problem:
        warnings.warn(
            f"A network {spec} is evaluated by eager PyTorch, not by CUDA kernels: {problem}.",
            RuntimeWarning,
            stacklevel=2,
        )
    return problem


@torch.compiler.assume_constant_result
def _network_problem(spec: tuple[int, ...], index: int, padded: bool) -> str | None:
    return _cuda_network_problem(spec, index, cuda.precision(), padded)


def runs_network(spec: tuple[int, ...], device: torch.device, backend: Backend, padded: bool = False) -> bool:
    """Whether the device's native runner, which `uses_native` has selected, has code for a packed chain.

    Args:
        padded: whether the chain's inputs will be in padded rows, see `cuda.padded_rows`.

    Raises:
        UserError: the native runner was requested by name but has no code for the chain.
    """
    if device.type != "cuda":
        return True
    problem = _network_problem(spec, gpu_number(device), padded)
    if problem and requested_backend(backend) == "cuda":
        raise UserError(f"Backend cuda was asked for, but there are no kernels for this network: {problem}.")
    return problem is None


def _why_not_differentiable(*rays: Tensor) -> str | None:
    """Say that native code has no gradient for origins or directions; None if no gradient is required."""
    return "native code has no gradient of rays" if any(t.requires_grad for t in rays) else None


def hash_encode(x: Tensor, table: Tensor, layout: HashGridLayout, *, backend: Backend = "auto") -> Tensor:
    """Multiresolution hash encoding with trilinear interpolation (Müller et al. 2022, "Instant NGP", section 3).

    Args:
        x: [N, 3] positions in the unit cube; positions outside are clamped onto it, NaN counts as 0.
        table: [layout.num_entries, F] features of the grid's vertices.
        layout: resolutions and row ranges of the levels.
        backend: see the module.

    Returns:
        [N, L * F] interpolated features, level after level. Differentiable in ``table`` and ``x``.

    Raises:
        UserError, TypeError, ValueError, NotImplementedError: see the module.
    """
    if uses_native(backend, x, table=table, unsupported=why_not_grid(layout, x.device)):
        return operators.hash_encode(x, table, *grid_arguments(layout))
    return reference.hash_encode(x, table, layout)


def spherical_harmonics(directions: Tensor, *, backend: Backend = "auto") -> Tensor:
    """Real spherical harmonics up to degree 3 (16 values), the encoding of the viewing direction.

    The encoding is that of Müller et al. 2022 ("Instant NGP").

    Args:
        directions: [N, 3] unit vectors.
        backend: see the module. Native code has no gradient of directions.

    Returns:
        [N, 16], orthonormal over the sphere.

    Raises:
        UserError, TypeError, ValueError: see the module.
    """
    if uses_native(backend, directions, unsupported=_why_not_differentiable(directions)):
        return operators.spherical_harmonics(directions)
    return reference.spherical_harmonics(directions)


def network(x: Tensor, chain: MergedChain, *, backend: Backend = "auto") -> Tensor:
    """Evaluate a merged chain of EUGen and dense layers (EUGens, arXiv 2601.22563, appendix B.1).

    Args:
        x: [..., D] inputs.
        chain: the merged chain, see `eugen_nerf.layers.merge_chain`.
        backend: see the module.

    Returns:
        [..., D_out]. Differentiable in ``x`` and in every parameter of the chain.

    Raises:
        TypeError: ``chain`` is not a `MergedChain`.
        UserError, TypeError, ValueError, NotImplementedError: see the module.
    """
    if not isinstance(chain, MergedChain):
        raise TypeError(f"network takes a MergedChain, not {type(chain).__name__}; layers.merge_chain creates one")
    if uses_native(backend, x, chain.weight, unsupported=why_not_native(chain)):
        packed = pack_chain(chain)
        if runs_network(packed.spec, x.device, backend):
            y = operators.network(x.reshape(-1, x.shape[-1]), packed.parameters, packed.spec, packed.eps)
            return y.reshape(*x.shape[:-1], y.shape[-1])
    return reference.network(x, chain)


def factor_products(products: Sequence[Product], *, backend: Backend = "auto") -> Tensor:
    """Multiply the factors of a chain's matrices, which merges its layers (EUGens, arXiv 2601.22563, appendix B.1).

    Args:
        products: matrices and vectors, see `eugen_nerf.layers.merge.FactoredChain`.
        backend: see the module.

    Returns:
        All values, one product behind the other and row by row: [K]. Differentiable in every factor.

    Raises:
        UserError, TypeError, ValueError, NotImplementedError: see the module.
    """
    factors, places = describe(products)
    if uses_native(backend, *factors):
        return operators.factor_products(factors, places)
    return reference.factor_products(products)


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
    *,
    backend: Backend = "auto",
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
        bits: occupancy bitfield over the unit cube, [resolution**3 / 8] uint8; see `occupied`.
        resolution: cells along an axis.
        space: map from the world to the unit cube.
        rule: step sizes, in world units.
        jitter: [R] in [0, 1), or None for 0.5.
        backend: see the module.

    Returns:
        The packed samples; not differentiable.

    Raises:
        UserError, TypeError, ValueError: see the module.
    """
    if uses_native(backend, origins, directions, near, far):
        shift = torch.full_like(near, 0.5) if jitter is None else jitter
        # Samples have no gradient. Detached, because an operator without a gradient formula fails if one is required.
        rays = (tensor.detach() for tensor in (origins, directions, near, far, shift))
        where = (*space_arguments(space), rule_argument(rule))
        return PackedSamples(*operators.march(*rays, bits, resolution, *where))
    return reference.march(origins, directions, near, far, bits, resolution, space, rule, jitter)


def sample_points(
    origins: Tensor, directions: Tensor, samples: PackedSamples, space: Space, *, backend: Backend = "auto"
) -> tuple[Tensor, Tensor]:
    """Positions and directions at which the field is evaluated.

    Args:
        origins: [R, 3] world units.
        directions: [R, 3] of unit length.
        samples: the packed samples of the R rays.
        space: map from the world to the unit cube.
        backend: see the module. Native code has no gradient of rays.

    Returns:
        positions in the unit cube [N, 3], directions [N, 3].

    Raises:
        UserError, TypeError, ValueError: see the module.
    """
    unsupported = _why_not_differentiable(origins, directions)
    if uses_native(backend, origins, directions, samples.t_starts, unsupported=unsupported):
        ends = samples.t_starts, samples.t_ends
        return operators.sample_points(origins, directions, samples.ray_offsets, *ends, *space_arguments(space))
    return reference.sample_points(origins, directions, samples, space)


def select_visible(
    sigma: Tensor,
    samples: PackedSamples,
    rows: Sequence[Tensor],
    min_transmittance: float = reference.MIN_TRANSMITTANCE,
    *,
    backend: Backend = "auto",
) -> tuple[PackedSamples, list[Tensor]]:
    """Leave out occluded samples, those with a smaller `transmittance`.

    Args:
        sigma: [N] densities, per world unit, not negative.
        samples: the packed samples.
        rows: tensors [N, ...] with a row for each sample.
        min_transmittance: above 0 and at most 1.
        backend: see the module. Native code has no gradient of rows.

    Returns:
        The M visible samples, and their rows [M, ...].

    Raises:
        UserError, TypeError, ValueError: see the module.
    """
    differentiable = torch.is_grad_enabled() and any(each.requires_grad for each in rows)
    unsupported = "native code has no gradient of selected rows" if differentiable else None
    if uses_native(backend, sigma, samples.t_starts, *rows, unsupported=unsupported):
        ends = samples.t_starts.detach(), samples.t_ends.detach()
        rows = [each.detach() for each in rows]
        found = operators.select_visible(sigma.detach(), *ends, samples.ray_offsets, rows, min_transmittance)
        return PackedSamples(*found[:3]), found[3:]
    return reference.select_visible(sigma, samples, rows, min_transmittance)


def composite(
    sigma: Tensor, rgb: Tensor, samples: PackedSamples, *, backend: Backend = "auto"
) -> tuple[Tensor, Tensor, Tensor]:
    """Emission-absorption volume rendering (Max 1995; Mildenhall et al. 2020, "NeRF", eq. 3).

    Args:
        sigma: [N] densities, per world unit.
        rgb: [N, 3] colors.
        samples: the packed samples of R rays.
        backend: see the module.

    Returns:
        rgb [R, 3] without a background, alpha [R], depth [R] in world units: the sum of weight times distance, not
        divided by alpha. Differentiable in ``sigma`` and ``rgb``. A ray without samples gives zeros.

    Raises:
        UserError, TypeError, ValueError, NotImplementedError: see the module.
    """
    if uses_native(backend, sigma, rgb, samples.t_starts):
        out = operators.composite(sigma, rgb, samples.t_starts, samples.t_ends, samples.ray_offsets)
        return out[:, :3], out[:, 3], out[:, 4]
    return reference.composite(sigma, rgb, samples)


def masked_adam(
    parameter: Tensor,
    grad: Tensor,
    first: Tensor,
    second: Tensor,
    betas: tuple[float, float],
    eps: float,
    step_size: float,
    second_scale: float,
    *,
    backend: Backend = "auto",
) -> None:
    """One step of Adam (Kingma and Ba 2015), in place, on the values whose gradient is not zero.

    Args:
        parameter, grad, first, second: of one shape; `first` and `second` are the moments.
        betas, eps: as in `torch.optim.Adam`.
        step_size: learning rate divided by the first moment's bias correction.
        second_scale: 1 divided by the second moment's bias correction.
        backend: see the module.

    Raises:
        UserError: see the module; likewise TypeError and ValueError.
    """
    changed = parameter, first, second
    reason = None if all(tensor.is_contiguous() for tensor in changed) else "only contiguous tensors change in place"
    if uses_native(backend, *changed, grad, unsupported=reason):
        operators.masked_adam(parameter, grad, first, second, betas, eps, step_size, second_scale)
    else:
        reference.masked_adam(parameter, grad, first, second, betas, eps, step_size, second_scale)

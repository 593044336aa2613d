"""The ops as the rest of the package calls them: the fastest runner that can do the work.

The signatures are those of `eugen_nerf.ops.reference`, plus ``backend``: "auto" takes the native runner of the
tensors' device where there is one, "reference" the eager definition, "cpu" or "cuda" that native runner or an error.
The environment variable EUGEN_BACKEND, with the same values, goes before the argument; empty, it is as if not set.
"""

from __future__ import annotations

import functools
import importlib
import os
import warnings
from typing import Literal

import torch
from torch import Tensor

from eugen_nerf.errors import UserError
from eugen_nerf.layers.merge import MergedChain
from eugen_nerf.ops import cuda, operators, reference
from eugen_nerf.ops.build import BuildError, cpu_library
from eugen_nerf.ops.checks import why_not_grid
from eugen_nerf.ops.cuda_driver import CudaError, gpu, gpu_number
from eugen_nerf.ops.layout import HashGridLayout, PackedSamples, Space, StepRule
from eugen_nerf.ops.operators import grid_arguments, rule_argument, space_arguments
from eugen_nerf.ops.packing import PackedChain, pack_chain, why_not_native
from eugen_nerf.ops.tiles import OLDEST_ARCHITECTURE, plan, why_not_cuda

Backend = Literal["auto", "reference", "cpu", "cuda"]
BACKENDS = ("auto", "reference", "cpu", "cuda")


def requested_backend(backend: Backend) -> Backend:
    """The backend after a look at EUGEN_BACKEND.

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
    """Why there are no native CPU runners; warns once."""
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
    """Why there are no native runners on the GPU of this number; warns once."""
    try:
        device = gpu(index)
        if device.architecture < OLDEST_ARCHITECTURE:
            raise BuildError(
                f"compute capability {device.architecture / 10} is below {OLDEST_ARCHITECTURE / 10}, which is needed"
            )
        device.resident_blocks("rays.cu", (), "march_count", 128, 0)  # compiles and loads the smallest program
        if os.environ.get("EUGEN_CUDA_CHECK", "1") != "0":
            problem = importlib.import_module("eugen_nerf.ops.self_check").verdict(index).problem()
            if problem:
                raise BuildError(
                    f"{problem}. Please report this with the name of the GPU; EUGEN_CUDA_CHECK=0 uses them all the same"
                )
    except (BuildError, CudaError) as error:
        warnings.warn(
            f"eugen-nerf runs on eager PyTorch on the GPU, without its own kernels: {error}.",
            RuntimeWarning,
            stacklevel=2,
        )
        return str(error)
    return None


@torch.compiler.assume_constant_result  # asked while torch.compile traces, not traced
def native_problem(device: torch.device) -> str | None:
    """Why there are no native runners for a CPU's or GPU's tensors; None if there are."""
    return _native_cpu_problem() if device.type == "cpu" else _native_cuda_problem(gpu_number(device))


@functools.cache
def _warn_of_eager(reason: str) -> None:
    warnings.warn(f"Eager PyTorch does what native code cannot, more slowly: {reason}.", RuntimeWarning, stacklevel=4)


@torch.compiler.assume_constant_result
def _tell(reason: str) -> None:
    _warn_of_eager(reason)


def uses_native(
    backend: Backend, *tensors: Tensor, table: Tensor | None = None, unsupported: str | None = None
) -> bool:
    """Whether the native runner of their device takes these tensors.

    Args:
        table: a hash grid's, which may be of fp16 on a GPU where nobody asks for gradients.
        unsupported: why it has no code for what is to be done. Where it would have been used, one warning says so.

    Raises:
        UserError: it was asked for by name, and cannot.
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
def _cuda_network_problem(spec: tuple[int, ...], index: int) -> str | None:
    """Why a GPU has no kernels for a packed chain; warns once. Loads them, so that a compiler's complaint is a reason
    too, and not the end of a training."""
    problem = why_not_cuda(spec)
    if problem is None and plan(spec, gpu(index).shared_memory) is None:
        problem = "it does not fit into the GPU's shared memory"
    if problem is None:
        try:
            cuda.load_network(gpu(index), spec)
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
def _network_problem(spec: tuple[int, ...], index: int) -> str | None:
    return _cuda_network_problem(spec, index)


def runs_network(packed: PackedChain, device: torch.device, backend: Backend) -> bool:
    """Whether the native runner of the device, which `uses_native` has found, has code for a chain.

    Raises:
        UserError: it was asked for by name, and has none.
    """
    if device.type != "cuda":
        return True
    problem = _network_problem(packed.spec, gpu_number(device))
    if problem and requested_backend(backend) == "cuda":
        raise UserError(f"Backend cuda was asked for, but for this network there are no kernels: {problem}.")
    return problem is None


def _why_not_differentiable(*rays: Tensor) -> str | None:
    """Why native code has no gradient for origins or directions; None if nobody wants one."""
    return "the gradient of rays is unknown to native code" if any(t.requires_grad for t in rays) else None


def hash_encode(x: Tensor, table: Tensor, layout: HashGridLayout, *, backend: Backend = "auto") -> Tensor:
    """See `reference.hash_encode`."""
    if uses_native(backend, x, table=table, unsupported=why_not_grid(layout, x.device)):
        return operators.hash_encode(x, table, *grid_arguments(layout))
    return reference.hash_encode(x, table, layout)


def spherical_harmonics(directions: Tensor, *, backend: Backend = "auto") -> Tensor:
    """See `reference.spherical_harmonics`."""
    if uses_native(backend, directions, unsupported=_why_not_differentiable(directions)):
        return operators.spherical_harmonics(directions)
    return reference.spherical_harmonics(directions)


def network(x: Tensor, chain: MergedChain, *, backend: Backend = "auto") -> Tensor:
    """See `reference.network`."""
    if not isinstance(chain, MergedChain):
        raise TypeError(f"network takes a MergedChain, not {type(chain).__name__}; layers.merge_chain makes one")
    if uses_native(backend, x, chain.weight, unsupported=why_not_native(chain)):
        packed = pack_chain(chain)
        if runs_network(packed, x.device, backend):
            y = operators.network(x.reshape(-1, x.shape[-1]), packed.parameters, packed.spec, packed.eps)
            return y.reshape(*x.shape[:-1], y.shape[-1])
    return reference.network(x, chain)


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
    """See `reference.march`."""
    if uses_native(backend, origins, directions, near, far):
        shift = torch.full_like(near, 0.5) if jitter is None else jitter
        # Samples have no gradient, whatever cameras want: an operator without a formula would be an error there.
        rays = (tensor.detach() for tensor in (origins, directions, near, far, shift))
        where = (*space_arguments(space), rule_argument(rule))
        return PackedSamples(*operators.march(*rays, bits, resolution, *where))
    return reference.march(origins, directions, near, far, bits, resolution, space, rule, jitter)


def sample_points(
    origins: Tensor, directions: Tensor, samples: PackedSamples, space: Space, *, backend: Backend = "auto"
) -> tuple[Tensor, Tensor]:
    """See `reference.sample_points`."""
    unsupported = _why_not_differentiable(origins, directions)
    if uses_native(backend, origins, directions, samples.t_starts, unsupported=unsupported):
        ends = samples.t_starts, samples.t_ends
        return operators.sample_points(origins, directions, samples.ray_offsets, *ends, *space_arguments(space))
    return reference.sample_points(origins, directions, samples, space)


def composite(
    sigma: Tensor, rgb: Tensor, samples: PackedSamples, *, backend: Backend = "auto"
) -> tuple[Tensor, Tensor, Tensor]:
    """See `reference.composite`."""
    if uses_native(backend, sigma, rgb, samples.t_starts):
        out = operators.composite(sigma, rgb, samples.t_starts, samples.t_ends, samples.ray_offsets)
        return out[:, :3], out[:, 3], out[:, 4]
    return reference.composite(sigma, rgb, samples)

"""A simulated GPU for tests on machines without one: tensors in main memory that report to be on cuda:0.

Values are computed on the CPU. Operations that PyTorch refuses on a machine with a GPU are refused here as well:
operations on tensors of two devices, and NumPy views of GPU tensors.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

GPU = torch.device("cuda", 0)

# Operations that take tensors of several devices.
BETWEEN_DEVICES = {"to", "copy_", "cpu", "cuda", "type_as", "__set__", "_has_compatible_shallow_copy_type"}
REAL_GENERATOR = torch.Generator
INDEXING = {"__getitem__", "__setitem__", "index_put_", "index_put"}
TO_NUMPY = {"numpy", "__array__"}

# Operations that synchronize with the GPU, and a record of those that were called.
WAITING = {"cpu", "item", "tolist", "nonzero", "masked_select", "unique", "__bool__", "__int__", "__float__"}
WAITS: list[str] = []


def _can_fake_a_gpu() -> bool:
    """Whether PyTorch computes with fake tensors on cuda:0. Version 2.6 needs a driver for this."""
    try:
        with FakeTensorMode():
            torch.empty(2, device=GPU).uniform_()
    except RuntimeError:
        return False
    return True


needs_fake_gpu = pytest.mark.skipif(not _can_fake_a_gpu(), reason="this PyTorch fakes no GPU without a driver")


class OnGpu(Tensor):
    """A tensor that reports to be on a GPU."""

    device = GPU  # type: ignore[assignment]
    is_cuda = True  # type: ignore[assignment]
    is_cpu = False  # type: ignore[assignment]

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        with torch._C.DisableTorchFunction():
            copy = self.detach().clone().as_subclass(OnGpu).requires_grad_(self.requires_grad)
        if isinstance(self, torch.nn.Parameter):
            copy = torch.nn.Parameter(copy, self.requires_grad)
        memo[id(self)] = copy
        return copy

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return call(func, args, kwargs or {})


class GpuGenerator(torch.Generator):
    """Replaces `torch.Generator("cuda")`."""


def generator(device: Any = "cpu") -> torch.Generator:
    return GpuGenerator() if torch.device(device).type == "cuda" else REAL_GENERATOR()


def call(func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
    """Call `func`, and put its result on the device that a real GPU would use.

    Raises:
        RuntimeError: the operation does not support tensors of two devices.
        TypeError: NumPy cannot see a GPU's tensor.
    """
    name = getattr(func, "__name__", "")
    if name == "__deepcopy__" and isinstance(args[0], OnGpu):
        return OnGpu.__deepcopy__(*args)
    wanted, args, kwargs = _requested(name, args, kwargs)
    tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)]
    pretend = any(isinstance(tensor, OnGpu) for tensor in tensors)
    if pretend and name in TO_NUMPY:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")
    if pretend and name in INDEXING:
        _check_indexing(name, *args)
    elif pretend and name not in BETWEEN_DEVICES and name != "__get__":
        # Zero-dimensional constants may be on the CPU.
        mixed = [tensor for tensor in tensors if not isinstance(tensor, OnGpu) and tensor.dim()]
        if mixed:
            raise RuntimeError(f"{name}: Expected all tensors to be on the same device, found cuda:0 and cpu")
    # Copies from main memory synchronize.
    copied = wanted and not pretend and name in ("to", "cuda", "tensor", "as_tensor")
    if copied or (pretend and (name in WAITING or (name in INDEXING and _has_mask(args[1])))):
        WAITS.append(name)
    source = kwargs.get("generator")
    if source is not None and isinstance(source, GpuGenerator) != (pretend if wanted is None else wanted):
        raise RuntimeError(f"{name}: the generator is on another device than the result")
    with torch._C.DisableTorchFunction():
        result = func(*args, **kwargs)
    if wanted is None:
        if name in ("to", "copy_", "type_as", "__set__"):
            like = args[1] if name in ("to", "type_as") and isinstance(args[1], Tensor) else args[0]
            wanted = isinstance(like, OnGpu)
        elif name in INDEXING:
            wanted = isinstance(args[0], OnGpu)
        else:
            wanted = pretend and name != "cpu"
    return tree_map(lambda value: _place(value, wanted), result)


def _has_mask(index: Any) -> bool:
    """Whether the shape of the result depends on values, so that the operation synchronizes."""
    return any(isinstance(part, Tensor) and part.dtype == torch.bool for part in tree_flatten(index)[0])


def _check_indexing(name: str, indexed: Tensor, index: Any, value: Any = None, *_: Any) -> None:
    """Indices of a tensor may be on the CPU; values only if they are copied into slices."""
    indices = [part for part in tree_flatten(index)[0] if isinstance(part, Tensor)]
    if not isinstance(indexed, OnGpu) and any(isinstance(part, OnGpu) for part in indices):
        raise RuntimeError(f"{name}: indices on cuda:0 of a tensor on the CPU")
    if indices and isinstance(value, Tensor) and value.dim() and isinstance(value, OnGpu) != isinstance(indexed, OnGpu):
        raise RuntimeError(f"{name}: Expected all tensors to be on the same device, found cuda:0 and cpu")


def _place(value: Any, pretend: bool) -> Any:
    if not isinstance(value, Tensor) or isinstance(value, OnGpu) == pretend:
        return value
    with torch._C.DisableTorchFunction():
        return value.as_subclass(OnGpu if pretend else Tensor)


def _requested(name: str, args: Any, kwargs: dict[str, Any]) -> tuple[bool | None, Any, dict[str, Any]]:
    """Whether the call requests a result on the GPU, and its arguments changed to request the CPU."""
    found: list[bool] = []

    def replaced(value: Any) -> Any:
        device = value if isinstance(value, torch.device) else None
        if isinstance(value, str) and (value == "cpu" or value.split(":")[0] == "cuda"):
            device = torch.device(value)
        if device is None:
            return value
        found.append(device.type == "cuda")
        return torch.device("cpu")

    if "device" in kwargs and kwargs["device"] is not None:
        kwargs = {**kwargs, "device": replaced(kwargs["device"])}
    if name == "to":
        args = (args[0], *(replaced(value) for value in args[1:]))
    if name == "cuda":
        found.append(True)
        args = args[:1]
    return (found[0] if found else None), args, kwargs


class Pretending(TorchFunctionMode):
    """Lets tensors be created on the simulated GPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return call(func, args, kwargs or {})


@contextlib.contextmanager
def pretended_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """Make "cuda" available inside the context; ops run on eager PyTorch."""
    monkeypatch.setenv("EUGEN_BACKEND", "reference")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (1 << 30, 1 << 31))
    # Files record the tensors' device, not that it was simulated.
    save = torch.save
    monkeypatch.setattr(
        torch, "save", lambda value, *rest, **named: save(tree_map(lambda v: _place(v, False), value), *rest, **named)
    )
    # Optimizers check whether a graph is being captured.
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda *_, **__: None)
    monkeypatch.setattr(torch, "Generator", generator)
    # Modules replace their parameters by new ones, since existing ones cannot change their class.
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with Pretending():
            yield GPU
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)

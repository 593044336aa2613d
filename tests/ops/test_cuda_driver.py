"""Loading and launching through the CUDA driver's interface, with a fake driver that records its calls."""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from eugen_nerf.ops import cuda_driver
from eugen_nerf.ops.build import BuildError
from eugen_nerf.ops.cuda_driver import CudaError, Gpu, gpu
from eugen_nerf.ops.nvrtc import Compiled

ATTRIBUTES = {97: 101376, 16: 84, 75: 8, 76: 6}
STREAM = 0x5EED


class FakeDriver:
    """Writes plausible answers, records the names of calls, and fails where told to."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.fails = ""
        self.status = 700
        self.blocks = 3
        self.launches: list[tuple[Any, ...]] = []
        self.images: list[bytes] = []
        self.capturing = False
        self.frees = False  # whether a call that fails for want of memory succeeds after the cache was emptied

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> int:
            self.calls.append(name)
            if name == self.fails and not (self.frees and "empty_cache" in self.calls):
                return self.status
            if name == "cuDeviceGetAttribute":
                arguments[0]._obj.value = ATTRIBUTES[arguments[1]]
            elif name == "cuOccupancyMaxActiveBlocksPerMultiprocessor":
                arguments[0]._obj.value = self.blocks
            elif name == "cuModuleLoadData":
                self.images.append(arguments[1])
            elif name == "cuFuncGetAttribute":
                arguments[0]._obj.value = 1024
            elif name == "cuFuncSetAttribute":
                assert arguments[1:] == (8, 101376 - 1024)
            elif name == "cuModuleGetFunction":
                arguments[0]._obj.value = 0xF00D
                assert arguments[2] == b"kernel"
            elif name == "cuGetErrorString":
                arguments[1]._obj.value = b"an illegal memory access was encountered"
            elif name == "cuLaunchKernel":
                function, *sizes, stream, pointers, extra = arguments
                assert extra is None
                count = ctypes.cast(pointers[0], ctypes.POINTER(ctypes.c_int64))[0]
                array = ctypes.cast(pointers[1], ctypes.POINTER(ctypes.c_void_p))[0]
                nothing = ctypes.cast(pointers[2], ctypes.POINTER(ctypes.c_void_p))[0]
                self.launches.append((function.value, sizes, stream.value, count, array, nothing))
            return 0

        return call


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDriver]:
    class Stream:
        cuda_stream = STREAM

    class Compiler:
        def target(self, architecture: int) -> tuple[int, bool]:
            return architecture, False

    fake = FakeDriver()
    programs: list[tuple[str, int, tuple[str, ...]]] = []

    def compile_cached(source: str, architecture: int, constants: tuple[str, ...], portable: bool) -> Compiled:
        programs.append((source, architecture, constants))
        time.sleep(0.01)  # lets other threads run
        return Compiled(b"PTX" if portable else b"cubin", "")

    fake.programs = programs  # type: ignore[attr-defined]
    monkeypatch.setattr(cuda_driver, "_driver", lambda: fake)
    monkeypatch.setattr(cuda_driver, "compile_cached", compile_cached)
    monkeypatch.setattr(cuda_driver, "find_nvrtc", Compiler)
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "device", lambda index: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: fake.capturing)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: fake.calls.append("empty_cache"))
    gpu.cache_clear()
    yield fake
    gpu.cache_clear()


def launch(device: Gpu, numbers: torch.Tensor, constants: tuple[str, ...] = ("A=1",)) -> None:
    arguments = (ctypes.c_int64(7), numbers, None)
    device.launch("program.cu", constants, "kernel", (5, 2), 128, 4096, arguments)


def test_a_gpu_says_what_it_is(driver: FakeDriver) -> None:
    device = gpu(0)
    assert (device.architecture, device.shared_memory, device.multiprocessors) == (86, 101376, 84)
    assert gpu(0) is device
    assert gpu(1) is not device


def test_launch(driver: FakeDriver) -> None:
    device, numbers = gpu(0), torch.zeros(4)
    launch(device, numbers)
    launch(device, numbers)
    assert driver.launches == [(0xF00D, [5, 2, 1, 128, 1, 1, 4096], STREAM, 7, numbers.data_ptr(), None)] * 2
    assert driver.calls.count("cuModuleLoadData") == driver.calls.count("cuModuleGetFunction") == 1
    assert driver.calls.count("cuCtxSetCurrent") == 2
    assert not any("Synchronize" in call or "Alloc" in call for call in driver.calls)
    launch(device, numbers, ("A=2",))
    launch(gpu(1), numbers)  # a module for each GPU
    assert driver.programs == [  # type: ignore[attr-defined]
        ("program.cu", 86, ("A=1",)),
        ("program.cu", 86, ("A=2",)),
        ("program.cu", 86, ("A=1",)),
    ]


def test_threads_load_a_program_once(driver: FakeDriver) -> None:
    """nerfstudio's viewer renders during training."""
    device = gpu(0)
    threads = [threading.Thread(target=launch, args=(device, torch.zeros(4))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(driver.launches) == 8
    assert driver.calls.count("cuCtxSetCurrent") == 8  # each thread has its own current context
    assert driver.calls.count("cuModuleLoadData") == len(driver.programs) == 1  # type: ignore[attr-defined]


def test_a_gpu_that_is_newer_than_the_compiler_is_given_ptx(
    driver: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Old:
        def target(self, architecture: int) -> tuple[int, bool]:
            return 80, True

    monkeypatch.setattr(cuda_driver, "find_nvrtc", Old)
    launch(gpu(0), torch.zeros(4))
    assert driver.images == [b"PTX"]


def test_resident_blocks(driver: FakeDriver) -> None:
    device = gpu(0)
    assert [device.resident_blocks("program.cu", (), "kernel", 128, 4096) for _ in range(2)] == [3 * 84] * 2
    assert driver.calls.count("cuOccupancyMaxActiveBlocksPerMultiprocessor") == 1
    driver.blocks = 0
    with pytest.raises(CudaError, match="kernel with 128 threads and 9999 bytes a block does not fit"):
        device.resident_blocks("program.cu", (), "kernel", 128, 9999)


@pytest.mark.parametrize(
    ("call", "what"),
    [
        ("cuModuleLoadData", "loading compiled kernels"),
        ("cuFuncSetAttribute", "reserving shared memory for kernel"),
        ("cuModuleGetFunction", "finding the kernel kernel"),
        ("cuLaunchKernel", "launching kernel"),
    ],
)
def test_errors_of_the_driver(call: str, what: str, driver: FakeDriver) -> None:
    device = gpu(0)
    driver.fails = call
    with pytest.raises(CudaError, match=rf"{what} failed: an illegal memory access .* \(CUDA error 700\)"):
        launch(device, torch.zeros(4))


def test_a_full_gpu_is_no_reason_to_do_without_kernels_for_good(driver: FakeDriver) -> None:
    device = gpu(0)
    driver.fails, driver.status = "cuModuleLoadData", 2
    with pytest.raises(torch.OutOfMemoryError, match="loading compiled kernels"):
        launch(device, torch.zeros(4))
    driver.fails = ""
    launch(device, torch.zeros(4))


@pytest.mark.parametrize("call", ["cuModuleLoadData", "cuModuleGetFunction", "cuLaunchKernel"])
def test_memory_that_pytorch_only_caches_is_released(call: str, driver: FakeDriver) -> None:
    device = gpu(0)
    driver.fails, driver.status, driver.frees = call, 2, True
    launch(device, torch.zeros(4))
    assert driver.calls.count("empty_cache") == 1
    assert driver.calls.count(call) == 2
    assert len(driver.launches) == 1


def test_no_memory_is_released_while_a_graph_is_captured(driver: FakeDriver) -> None:
    device = gpu(0)
    launch(device, torch.zeros(4))
    driver.fails, driver.status, driver.capturing = "cuLaunchKernel", 2, True
    with pytest.raises(torch.OutOfMemoryError, match="launching kernel"):
        launch(device, torch.zeros(4))
    assert "empty_cache" not in driver.calls


def test_a_forked_process_starts_anew(driver: FakeDriver) -> None:
    gpu(0)
    assert gpu.cache_info().currsize == 1
    child = os.fork()
    if child == 0:
        os._exit(gpu.cache_info().currsize)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert gpu.cache_info().currsize == 1


def test_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(cuda_driver.ctypes, "CDLL", fail)
    cuda_driver._driver.cache_clear()
    with pytest.raises(BuildError, match=r"driver does not load \(libcuda.so.1: cannot open"):
        cuda_driver._driver()
    cuda_driver._driver.cache_clear()

"""Time work on a GPU, and compare implementations of the same work."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from gpu_processes import Gpu, Row
from torch import Tensor

ROUNDS, WARM_UP = 50, 10
DEVICE = "cuda"
FLUSHED_BYTES = 256 << 20  # more than any L2 cache holds

# Clock cycles that the GPU waits while the CPU queues a run: 1.5 times the queuing time at 2 GHz, within these limits
# (about 2 and 30 ms).
AHEAD, MOST_AHEAD = 4_000_000, 60_000_000
CYCLES = 1.5 * 2e9
CPU_BOUND = "CPU-bound"


class TimeUp(Exception):
    """The time limit of the command is reached."""


def failure(error: BaseException) -> str:
    """An exception as one line."""
    return f"failed: {type(error).__name__}: {' '.join(str(error).replace('|', '/').split())[:200]}"


@dataclass(frozen=True)
class Time:
    """Median time of the runs of a function."""

    ms: float
    cpu_bound: bool = False  # the CPU had not finished queuing most runs when the GPU reached them


def times(
    *functions: Callable[[], object], rounds: int = ROUNDS, warm_up: int = WARM_UP, alone: bool = True
) -> list[Time]:
    """Time from the first to the last of a function's work on the device, with interleaved functions.

    Args:
        alone: measure the device's own time, with cold caches, of the runs that were queued while the GPU was kept
            waiting, or of all runs if most were not. Otherwise include the gaps in which the GPU waits for the CPU.
    """
    waits = []
    for function in functions:
        for _ in range(warm_up - 1):
            function()
        torch.cuda.synchronize()
        begun = time.perf_counter()
        function()
        waits.append(min(max(int(CYCLES * (time.perf_counter() - begun)), AHEAD), MOST_AHEAD))
    flushed = torch.zeros(FLUSHED_BYTES // 4, device=DEVICE)
    runs: list[list[tuple[Any, Any, bool]]] = [[] for _ in functions]
    for _ in range(rounds):
        for function, wait, kept in zip(functions, waits, runs, strict=True):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            if alone:
                flushed.sum()  # a read, since written data would have to leave the cache during the measurement
                torch.cuda._sleep(wait)
            start.record()
            function()
            end.record()
            kept.append((start, end, alone and start.query()))
    torch.cuda.synchronize()
    return [_median([(start.elapsed_time(end), late) for start, end, late in kept]) for kept in runs]


def _median(runs: list[tuple[float, bool]]) -> Time:
    in_time = [ms for ms, late in runs if not late]
    if 2 * len(in_time) >= len(runs):
        return Time(statistics.median(in_time))
    return Time(statistics.median(ms for ms, _ in runs), True)


def measure_gpu() -> Gpu:
    """Measure the speed of matrix products and copies on the GPU."""
    a = torch.randn(8192, 8192, device=DEVICE, dtype=torch.float16)
    numbers = torch.randn(256 << 20, device=DEVICE)
    target = torch.empty_like(numbers)
    product, copied = (each.ms for each in times(lambda: a @ a, lambda: target.copy_(numbers)))
    tflops, tbytes = 2 * 8192**3 / product / 1e9, 2 * numbers.numel() * 4 / copied / 1e9
    return Gpu(torch.cuda.get_device_name(), torch.__version__, tflops, tbytes)


@dataclass(frozen=True)
class Contender:
    """An implementation of the work."""

    name: str
    run: Callable[[Tensor], Tensor]
    x: Tensor
    grad: Tensor  # of the result
    parameters: tuple[Tensor, ...]
    remark: Callable[[], str] = str  # on its times, called after they have been measured

    def forward(self) -> None:
        with torch.no_grad():
            self.run(self.x)

    def forward_backward(self) -> Callable[[], None]:
        """A pass with gradients of x and all parameters."""
        x = self.x.detach().requires_grad_()

        def run() -> None:
            for tensor in (x, *self.parameters):
                tensor.grad = None  # do not accumulate
            self.run(x).backward(self.grad)

        return run

    def backward(self) -> Callable[[], None]:
        """The backward pass to all parameters."""
        out = self.run(self.x)

        def run() -> None:
            for tensor in self.parameters:
                tensor.grad = None
            out.backward(self.grad, retain_graph=True)

        return run


def race(
    what: str,
    contenders: Sequence[tuple[str, Callable[[], Callable[[], object]]]],
    note: Callable[[str, float], str],
    factors: dict[str, float] | None = None,
    beside: dict[str, str] | None = None,
    ways: Sequence[str] = (),
    alone: bool = True,
) -> Iterator[Row]:
    """Time contenders against each other and yield a row for each. One that fails in its first run has the error there.

    Args:
        contenders: name, and a function that prepares what is timed. The others are compared with the first.
        note: remark for a name and its milliseconds.
        factors: by name, what the time is multiplied by.
        beside: by name, another contender to compare with.
        ways: variants of one contender; only the fastest is compared with others.
        alone: as for `times`.

    Raises:
        RuntimeError: after a kernel's crash the GPU cannot be used any more.
    """
    able: dict[str, Callable[[], object]] = {}
    for name, prepare in contenders:
        try:
            function = prepare()
            function()
            torch.cuda.synchronize()  # attribute a kernel's crash to its contender
            able[name] = function
        except Exception as error:
            yield what, name, "", "", failure(error)
            torch.cuda.synchronize()
    found = dict(zip(able, times(*able.values(), alone=alone), strict=True))
    took = {name: each.ms * (factors or {}).get(name, 1) for name, each in found.items()}
    fastest = min((name for name in ways if name in took), key=lambda name: took[name], default=None)
    ours = took.get(contenders[0][0])
    for name, ms in took.items():
        slower = name in ways and name != fastest
        ratios = [f"{ms / ours:.2f}x"] if ours and not slower else []
        other = (beside or {}).get(name, "")
        if other in took and not slower:
            ratios.append(f"{ms / took[other]:.2f}x of {other}")
        remarks = [note(name, ms), CPU_BOUND * found[name].cpu_bound, f"slower than {fastest}" * slower]
        yield what, name, f"{ms:.3f}", "; ".join(ratios), "; ".join(filter(None, remarks))

"""Check of the CUDA kernels on this GPU against eager PyTorch, made once before the kernels are first used.

The check runs in a separate process, `python -m eugen_nerf.ops.self_check DEVICE`, because an invalid memory access in
a kernel would make the GPU unusable for the calling process. The result is cached on disk for as long as kernels,
compiler, driver, PyTorch and GPU stay the same. If the separate process cannot run the kernels (the GPU is in exclusive
mode, or its memory is full), the check runs in the calling process and its result is not cached.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from eugen_nerf.files import replace_file
from eugen_nerf.layers import EUGen, build_network, merge_chain
from eugen_nerf.layers.factor_products import Product
from eugen_nerf.layers.merge import MergedChain
from eugen_nerf.ops import dispatch
from eugen_nerf.ops.build import cache_folder
from eugen_nerf.ops.differentiable import differentiable_render
from eugen_nerf.ops.dispatch import Backend
from eugen_nerf.ops.layout import HashGridLayout, Space, StepRule
from eugen_nerf.ops.nvrtc import OPTIONS, find_nvrtc, sources
from eugen_nerf.ops.packing import pack_chain
from eugen_nerf.ops.radiance_field import RadianceField
from eugen_nerf.ops.render import render

QUIET = "--quiet"  # argument of this module as a program
SWITCH = "EUGEN_CUDA_CHECK"  # environment variable; 0 uses the kernels without the check
SECONDS = 300  # time limit of the check, which compiles each program once
ARRIVED = "the GPU is ours"  # printed by the separate process before it runs the first kernel

# Tolerated relative differences to eager PyTorch in float32. The tolerance of networks is coarse because they compute
# in half precision, where a unit near zero may pass a ReLU in only one of the two.
TOLERANCE, NETWORK_TOLERANCE = 1e-3, 0.1

RAYS = 500


@dataclass(frozen=True)
class Verdict:
    """The result of a check."""

    failed: tuple[str, ...] = ()  # ops that disagree with eager PyTorch
    crash: str = ""  # the last message of a process that did not finish
    lasts: bool = True  # False if a later check may have another result
    kept_in: str = ""  # the file that caches the result

    def problem(self) -> str | None:
        """Say why the kernels should not be used; None if they can be."""
        again = f" (delete {self.kept_in} to have them checked again)" if self.kept_in else ""
        if self.crash:
            return f"checking them ended in an error ({self.crash}){again}"
        if self.failed:
            return f"on this GPU they disagree with PyTorch in {', '.join(self.failed)}{again}"
        return None


class DeviceLost(Exception):
    """After a kernel's error the device cannot be used in this process any more.

    Attributes:
        unchecked: the names of the trials that were to follow.
    """

    def __init__(self, unchecked: Sequence[str]) -> None:
        super().__init__(f"the device can no longer be used; not checked: {', '.join(unchecked) or 'nothing else'}")
        self.unchecked = tuple(unchecked)


def check_ops(
    device: torch.device,
    backend: Backend,
    told: Callable[[str], None] | None = None,
    only: Collection[str] = (),
) -> list[str]:
    """List the ops whose native runner on a device disagrees with eager PyTorch there.

    Args:
        device: the device to check.
        backend: the native backend.
        told: called with one line for each op, which lists the relative differences of its outputs and gradients. An op
            that raises an exception then counts as one that disagrees.
        only: names of the trials to run, as `told` gives them; all if there are none.

    Raises:
        DeviceLost: with `told`, the device cannot be used after an op's exception.
        Exception: without `told`, whatever the first failing op raised.
    """
    failed = []
    choices: tuple[Backend, Backend] = (backend, "reference")
    # The caller may have gradients disabled, for example during an evaluation.
    modes = torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False)
    with contextlib.ExitStack() as stack:
        for mode in (*modes, _usual_defaults()):
            stack.enter_context(mode)
        trials = [trial for trial in _trials(device, told) if not only or trial.name in only]
        for place, (name, tolerance, run, _) in enumerate(trials):
            try:
                pairs = list(zip(*(run(which) for which in choices), strict=True))
                differences = [_difference(mine, theirs) for mine, theirs in pairs]
            except Exception as error:
                if told is None:
                    raise
                told(f"{name}: {type(error).__name__}: {' '.join(str(error).split())[:500]}")
                failed.append(name)
                if not _is_usable(device):
                    raise DeviceLost([trial.name for trial in trials[place + 1 :]]) from error
                continue
            if told:
                told(f"{name}: {', '.join(f'{d:.1e}' for d in differences)}, tolerance {tolerance:.0e}")
            if not all(difference <= tolerance for difference in differences):
                failed.append(name)
    return failed


def _is_usable(device: torch.device) -> bool:
    try:
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # after an illegal access, it raises the same error again
    except RuntimeError:
        return False
    return True


@contextlib.contextmanager
def _usual_defaults() -> Iterator[None]:
    """PyTorch's own default dtype and device, and no errors where an algorithm is not deterministic."""
    dtype, deterministic = torch.get_default_dtype(), torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.set_default_dtype(torch.float32)
    torch.use_deterministic_algorithms(deterministic, warn_only=True)  # a double cumsum has no such algorithm
    try:
        with torch.device("cpu"):
            yield
    finally:
        torch.set_default_dtype(dtype)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)


def _difference(mine: Tensor, theirs: Tensor) -> float:
    if mine.shape != theirs.shape or not mine.isfinite().all():
        return float("inf")
    return float((mine.double() - theirs.double()).norm() / theirs.double().norm().clamp_min(1e-12))


class Trial(NamedTuple):
    """An op, or one kind of its inputs."""

    name: str
    tolerance: float
    run: Callable[[Backend], list[Tensor]]
    """Run it, including gradients."""
    chains: tuple[MergedChain, ...] = ()
    """Networks that it evaluates."""


class _Numbers:
    """Random numbers in [0, 1) on a device, the same in every check."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._generator = torch.Generator().manual_seed(0)

    def __call__(self, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self._generator).to(self.device)


def _trials(device: torch.device, told: Callable[[str], None] | None) -> Iterator[Trial]:
    """Yield a trial of each op. Networks without kernels are left out, and told."""
    numbers = _Numbers(device)
    several = *_grid_trials(numbers), *_network_trials(numbers), *_ray_trials(numbers)
    for trial in (*several, _merging_trial(numbers), _adam_trial(numbers)):
        # PyTorch evaluates networks without kernels, which is no reason to reject the other ops.
        if all(dispatch.runs_network(pack_chain(chain).spec, device, "auto") for chain in trial.chains):
            yield trial
        elif told:
            told(f"{trial.name}: no kernels, PyTorch evaluates it")


def _with_gradients(outputs: list[Tensor], inputs: list[Tensor]) -> list[Tensor]:
    loss = torch.stack([output.square().sum() for output in outputs]).sum()
    return [output.detach() for output in outputs] + list(torch.autograd.grad(loss, inputs))


def _grid(numbers: _Numbers) -> tuple[HashGridLayout, Tensor]:
    layout = HashGridLayout.build(8, 2, 12, 4, 128)
    return layout, numbers(layout.num_entries, 2) - 0.5


def _grid_trials(numbers: _Numbers) -> Iterator[Trial]:
    layout, table = _grid(numbers)
    table.requires_grad_()
    positions = numbers(1000, 3)

    def encode(backend: Backend) -> list[Tensor]:
        x = positions.clone().requires_grad_()
        return _with_gradients([dispatch.hash_encode(x, table, layout, backend=backend)], [x, table])

    yield Trial("hash_encode", TOLERANCE, encode)


def _network_trials(numbers: _Numbers) -> Iterator[Trial]:
    rows = numbers(1000, 16) - 0.5
    with _seeded_layers():
        networks = {
            "dense": build_network("mlp", 16, 64, 2, 5, 0),
            # Too wide for all weights and sums to stay on the multiprocessor.
            "wide": build_network("mlp", 16, 256, 2, 5, 0),
            "order 1": build_network("eugen", 16, 64, 2, 5, 24, norm_first=True),
            "order 2": nn.Sequential(EUGen(16, 32, 16, order=2), nn.Linear(32, 5)),
            "norm inside": nn.Sequential(EUGen(16, 32, 16), EUGen(32, 24, 16), nn.Linear(24, 5)),
        }

    def evaluate(layers: nn.Module, backend: Backend) -> list[Tensor]:
        x = rows.clone().requires_grad_()
        y = dispatch.network(x, merge_chain(layers), backend=backend)
        return _with_gradients([y], [x, *layers.parameters()])

    for name, layers in networks.items():
        layers.to(numbers.device)
        run = functools.partial(evaluate, layers)
        yield Trial(f"network ({name})", NETWORK_TOLERANCE, run, (merge_chain(layers),))


@contextlib.contextmanager
def _seeded_layers() -> Iterator[None]:
    """Initialize layers in the same way in every check."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(1)  # only the CPU's generator
        yield


def _ray_trials(numbers: _Numbers) -> Iterator[Trial]:
    device = numbers.device
    directions = nn.functional.normalize(numbers(RAYS, 3) - 0.5, dim=-1)
    origins = 0.5 - 2 * directions + 0.3 * (numbers(RAYS, 3) - 0.5)
    near, far = torch.zeros(RAYS, device=device), torch.full((RAYS,), 5.0, device=device)
    resolution = 16
    bits = (numbers(resolution**3 // 8) * 255).to(torch.uint8)
    space, rule = Space(((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))), StepRule(0.02)
    march = (origins, directions, near, far, bits, resolution, space, rule)
    samples = dispatch.march(*march, backend="reference")
    sigma, rgb = 5 * numbers(samples.num_samples), numbers(samples.num_samples, 3)
    layout, table = _grid(numbers)
    with _seeded_layers():
        density, color = build_network("eugen", 16, 32, 1, 16, 32), build_network("eugen", 31, 32, 2, 3, 32)
    with torch.no_grad():
        chains = merge_chain(density.to(device)), merge_chain(color.to(device))

    def harmonics(backend: Backend) -> list[Tensor]:
        return [dispatch.spherical_harmonics(directions, backend=backend)]

    def marched(backend: Backend) -> list[Tensor]:
        found = dispatch.march(*march, backend=backend)
        # Round-off may move a sample across a cell's face, so only sums over all rays are compared.
        return [found.counts().sum().float()[None], found.t_mids.sum()[None], found.t_ends.sum()[None]]

    def points(backend: Backend) -> list[Tensor]:
        return list(dispatch.sample_points(origins, directions, samples, space, backend=backend))

    def visible(backend: Backend) -> list[Tensor]:
        # Thin or opaque: no sample is so close to the limit that round-off decides.
        found, rows = dispatch.select_visible(sigma + 1e5 * (sigma > 4.5), samples, [sigma, rgb], backend=backend)
        return [found.ray_offsets.float(), found.t_starts, found.t_ends, *rows]

    def composited(backend: Backend) -> list[Tensor]:
        densities, colors = sigma.clone().requires_grad_(), rgb.clone().requires_grad_()
        outputs = dispatch.composite(densities, colors, samples, backend=backend)
        return _with_gradients(list(outputs), [densities, colors])

    def rendered(backend: Backend) -> list[Tensor]:
        with torch.no_grad():
            image, alpha, depth, count = render(*march, RadianceField(table, layout, *chains, backend))
        return [image, alpha, depth, count.float()]

    def trained(backend: Backend) -> list[Tensor]:
        mine = table.clone().requires_grad_()
        parameters = [mine, *density.parameters(), *color.parameters()]
        field = RadianceField(mine, layout, merge_chain(density), merge_chain(color), backend)
        return _with_gradients(list(differentiable_render(*march, field, skip_occluded=True)[:3]), parameters)

    yield Trial("spherical_harmonics", TOLERANCE, harmonics)
    yield Trial("march", TOLERANCE, marched)
    yield Trial("sample_points", TOLERANCE, points)
    yield Trial("select_visible", TOLERANCE, visible)
    yield Trial("composite", TOLERANCE, composited)
    yield Trial("render", NETWORK_TOLERANCE, rendered, chains)
    yield Trial("training", NETWORK_TOLERANCE, trained, chains)


def _merging_trial(numbers: _Numbers) -> Trial:
    """A matrix, products of matrices, and one of a vector with a constant."""
    left, right, vector, constant = (numbers(*shape) - 0.5 for shape in ((24, 40), (40, 32), (40,), (24,)))

    def multiply(backend: Backend) -> list[Tensor]:
        factors = [factor.clone().requires_grad_() for factor in (left, right, vector, constant)]
        a, b, v, c = factors
        values = dispatch.factor_products([Product(a), Product(b, a), Product(v, a, c)], backend=backend)
        return _with_gradients([values], factors)

    return Trial("factor_products", TOLERANCE, multiply)


def _adam_trial(numbers: _Numbers) -> Trial:
    """One step, starting from nonzero moments, with 70 % of the gradients zero."""
    parameter, grad = numbers(1000, 2), (numbers(1000, 2) - 0.5) * (numbers(1000, 2) < 0.3)

    def step(backend: Backend) -> list[Tensor]:
        changed = parameter.clone(), 0.5 * grad + 0.1, grad * grad + 0.1
        dispatch.masked_adam(changed[0], grad, *changed[1:], (0.9, 0.99), 1e-8, 0.1, 2.0, backend=backend)
        return list(changed)

    return Trial("masked_adam", TOLERANCE, step)


class NotChecked(Exception):
    """The separate process did not run the kernels; the message gives the reason."""


def verdict(index: int, run: Callable[[int], Verdict] | None = None) -> Verdict:
    """Return the result of checking GPU ``index``, from the cache if possible.

    Args:
        index: PyTorch's index of the GPU.
        run: performs the check; `in_another_process` by default.
    """
    path = cache_folder() / f"cuda-check-{_circumstances(index)}.json"
    try:
        kept = json.loads(path.read_text())
        return Verdict(tuple(kept["failed"]), kept["crash"], kept_in=str(path))
    except (OSError, ValueError, KeyError):
        pass
    try:
        found = (run or in_another_process)(index)
    except NotChecked:
        with _kernels_unchecked():
            return Verdict(tuple(check_ops(torch.device("cuda", index), "cuda")))
    if not found.lasts:
        return found
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, json.dumps({"failed": found.failed, "crash": found.crash}).encode())
    except OSError:
        return found  # not cached: checked again next time
    return replace(found, kept_in=str(path))


def _circumstances(index: int) -> str:
    """A hash of everything that the result depends on."""
    digest = hashlib.sha256()
    code = {file.name: file.read_bytes() for file in Path(__file__).parent.glob("*.py")}
    for name, content in sorted({**sources(), **code}.items()):
        digest.update(name.encode() + b"\0" + content + b"\0")
    gpu = torch.cuda.get_device_name(index), torch.cuda.get_device_capability(index), torch.__version__
    precision = os.environ.get("EUGEN_PRECISION", "")
    digest.update(repr((OPTIONS, find_nvrtc().version, gpu, _driver_version(), precision)).encode())
    return digest.hexdigest()[:24]


def _driver_version() -> str:
    try:
        return Path("/proc/driver/nvidia/version").read_text()
    except OSError:
        return ""


@contextlib.contextmanager
def _kernels_unchecked() -> Iterator[None]:
    """Let ops use the kernels without checking them first."""
    before = {name: os.environ.pop(name, None) for name in (SWITCH, "EUGEN_BACKEND")}
    os.environ[SWITCH] = "0"
    try:
        yield
    finally:
        del os.environ[SWITCH]
        os.environ.update({name: value for name, value in before.items() if value is not None})


def in_another_process(index: int) -> Verdict:
    """Run the check of GPU ``index`` in a new interpreter.

    Raises:
        NotChecked: the process could not be started, or had no access to the GPU or not enough of its memory.
    """
    print(
        "eugen-nerf compiles its kernels for this GPU and checks them, once; that may take a minute.", file=sys.stderr
    )
    package = str(Path(__file__).parents[2])
    settings = {**os.environ, "PYTHONPATH": os.pathsep.join([package, *filter(None, sys.path)])}
    # Quiet, so that after a crash the last line of stderr is the reason.
    command = [sys.executable, "-m", "eugen_nerf.ops.self_check", f"cuda:{index}", QUIET]
    try:
        result = subprocess.run(command, env=settings, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        # Either a kernel that never ends, or a machine so busy that compiling took too long.
        return Verdict(crash=f"no answer after {SECONDS} seconds", lasts=False)
    except OSError as error:
        raise NotChecked(str(error)) from error
    said = _last_error(result.stderr) or f"exit status {result.returncode}"
    if ARRIVED not in result.stdout or "out of memory" in said.lower():
        raise NotChecked(said)
    if result.returncode in (-signal.SIGTERM, -signal.SIGKILL):
        return Verdict(crash=said, lasts=False)  # stopped from outside, or killed for lack of memory
    try:
        return Verdict(tuple(json.loads(result.stdout.splitlines()[-1])))
    except ValueError:
        return Verdict(crash=said)


def _last_error(stderr: str) -> str:
    """Return the first line of the last exception (PyTorch's continue with advice), or else the last line."""
    lines = [line for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"[\w.]+(Error|Exception|Interrupt)\b", line)]
    return next(iter([*errors[-1:], *lines[-1:]]), "")[:200]


def main(device: str, quiet: bool = False, only: Sequence[str] = ()) -> None:
    """Print the names of the ops that disagree as a JSON list, and each op's differences to stderr.

    Args:
        device: the device to check.
        quiet: print only the list.
        only: names of the ops to check; all if there are none. After an error that ends the use of the device, another
            process checks the remaining ones.

    Raises:
        SystemExit: with status 1 if some op disagrees, with status 2 if there is no such device.
    """
    place = torch.device(device)
    try:
        torch.zeros(1, device=place)
    except (RuntimeError, AssertionError) as error:  # PyTorch without CUDA raises AssertionError
        print(f"PyTorch cannot use {device}: {str(error).splitlines()[0]}", file=sys.stderr)
        raise SystemExit(2) from None
    print(ARRIVED, flush=True)
    with _kernels_unchecked():  # this is the check
        told = None if quiet else functools.partial(print, file=sys.stderr, flush=True)
        try:
            failed = check_ops(place, "cuda" if place.type == "cuda" else "cpu", told, only)
        except DeviceLost as lost:
            print(lost, file=sys.stderr, flush=True)
            if lost.unchecked:
                command = [sys.executable, "-m", "eugen_nerf.ops.self_check", device, "--only", *lost.unchecked]
                subprocess.run(command, check=False)
            raise SystemExit(1) from None
    if place.type == "cuda":
        torch.cuda.synchronize(place)
    print(json.dumps(failed))
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description="Compare each native op with eager PyTorch. Exit status: 1 if an op differs, 2 without the device."
    )
    parser.add_argument("device", help="cuda:0, another GPU, or cpu")
    parser.add_argument(QUIET, action="store_true", help="print only the names of the ops that differ")
    parser.add_argument("--only", nargs="+", default=(), metavar="OP", help="check these alone, by the printed names")
    arguments = parser.parse_args()
    main(arguments.device, arguments.quiet, arguments.only)

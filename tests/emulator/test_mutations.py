"""Planted bugs: checks that pass on the sources have to fail on at least 90 % of `MUTATIONS`.

One third of the mutations is tried; which third changes with the sources. EUGEN_ALL_MUTATIONS=1 (`make mutation`) tries
all of them.

The emulator stops most accesses that a bug directs elsewhere, but not all: some overwrite other memory of the process.
So each bug is tried in a process of its own, and is noticed, too, if this process crashes or comes to no end.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import multiprocessing
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
import torch

from eugen_nerf.ops import HashGridLayout, PackedSamples, cuda, reference
from eugen_nerf.ops.build import SOURCE
from eugen_nerf.ops.nvrtc import sources
from eugen_nerf.ops.tiles import Shape, Tiles, plan
from tests.emulator.device import ORDERS, EmulatedDevice, EmulationError, SimulatedDevice, library
from tests.emulator.mutations import MUTATIONS, Mutation
from tests.emulator.test_grid import positions
from tests.emulator.test_products import both
from tests.emulator.test_rays import (
    RESOLUTION,
    exact_composite,
    field,
    places_of_missing_samples,
    random_bits,
    random_rays,
    render,
    select_visible,
)
from tests.ops.comparisons import BOUNDED, TOLERANCE, check_visible, network_case, network_errors, relative_error

PARTS = 3  # of all mutations, one of which is tried
LONGEST = 300  # seconds after which a check that takes two is thought to never end


def close(got: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> bool:
    return relative_error(got, expected) <= tolerance


def check_network(device: SimulatedDevice, name: str) -> bool:
    errors = network_errors(device, network_case(name, 300, torch.float16, grad_size=1e-4))
    return all(error <= TOLERANCE[torch.float16] for error in errors)


def network(device: SimulatedDevice) -> bool:
    return check_network(device, "offsets-and-norm")


def even(device: SimulatedDevice) -> bool:
    return check_network(device, "order-2-even")


def pairs(device: SimulatedDevice) -> bool:
    return check_network(device, "rank-3")


def blocks(device: SimulatedDevice) -> bool:
    """Weight gradients of which a warp has 2 x 2 tiles."""
    return check_network(device, "mlp")


def padded(device: SimulatedDevice, rows: torch.dtype = torch.float32) -> bool:
    errors = [
        network_errors(device, network_case(name, 300, torch.float16), rows, padded=True) for name in ("norm", "rank-3")
    ]
    return all(error <= TOLERANCE[torch.float16] for several in errors for error in several)


def padded_halves(device: SimulatedDevice) -> bool:
    return padded(device, torch.float16)


def smooth(device: SimulatedDevice) -> bool:
    return check_network(device, "gelu")


def inner_norm(device: SimulatedDevice) -> bool:
    return check_network(device, "inner-norm")


def streamed(device: SimulatedDevice, name: str = "order-2-even") -> bool:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda, "network_tiles", streamed_tiles)
        return check_network(device, name)


def inner_norm_streamed(device: SimulatedDevice) -> bool:
    return streamed(device, "inner-norm")


def streamed_tiles(device: SimulatedDevice, spec: tuple[int, ...]) -> Tiles:
    """Treat a small network like a wide one, with streamed weights."""
    tiles, shape = plan(tuple(spec), device.shared_memory), Shape(spec)
    assert tiles is not None
    return dataclasses.replace(
        tiles,
        streamed=True,
        back_streamed=True,
        keep_sums=False,
        shared_bytes=shape.weights_in_shared(True),
        back_shared_bytes=shape.backward_bytes(tiles.back_warps, tiles.back_tiles, True),
    )


def grid(device: SimulatedDevice) -> bool:
    layout = HashGridLayout.build(6, 2, 10, 4, 40)
    x = positions(300)
    table = torch.randn(layout.num_entries, 2, generator=torch.Generator().manual_seed(0))
    weight = torch.randn(300, layout.out_features, generator=torch.Generator().manual_seed(1))
    x64, table64 = x.double().requires_grad_(), table.double().requires_grad_()
    expected = reference.hash_encode(x64, table64, layout)
    (expected * weight).sum().backward()
    got = cuda.hash_encode_forward(device, x, table, layout)
    grad_table, grad_x = cuda.hash_encode_backward(device, x, table, weight, layout, True, True)
    assert table64.grad is not None
    assert x64.grad is not None
    return close(got, expected) and close(grad_table, table64.grad) and close(grad_x, x64.grad)


def products(device: SimulatedDevice) -> bool:
    return all(close(*pair) for pair in both(device, "wide", [True, True, True, False, True]))


def rays(device: SimulatedDevice) -> bool:
    # Few occupied cells, so that a nonempty block has only one; many; so many that rays have more than 64 samples.
    for share in (0.02, 0.6, 0.95):
        some, bits, (space, rule) = random_rays(150), random_bits(share), BOUNDED
        got = PackedSamples(*cuda.march(device, *some, bits, RESOLUTION, space, rule))
        expected = reference.march(*some[:4], bits, RESOLUTION, space, rule, some[4])
        if not torch.equal(got.ray_offsets, expected.ray_offsets) or not close(got.t_starts, expected.t_starts):
            return False
        points = cuda.sample_points(device, some[0], some[1], *dataclasses.astuple(got), space)
        exact = reference.sample_points(some[0], some[1], got, space)
        if not all(close(mine, theirs) for mine, theirs in zip(points, exact, strict=True)):
            return False
    if not torch.equal(*places_of_missing_samples(device, random_rays(60), random_bits(0.3))):
        return False
    n = got.num_samples
    sigma, rgb = torch.rand(n, generator=torch.Generator().manual_seed(0)), torch.rand(n, 3)
    weight = torch.randn(150, 5, generator=torch.Generator().manual_seed(1))
    arrays = (sigma, rgb, got.t_starts, got.t_ends, got.ray_offsets)
    out = [cuda.composite_forward(device, *arrays), *cuda.composite_backward(device, *arrays, weight)]
    if not all(close(mine, theirs) for mine, theirs in zip(out, exact_composite(*arrays, weight), strict=True)):
        return False
    try:
        check_visible(functools.partial(select_visible, device), [0, 31, 33, 100, 300], 3.0)
    except AssertionError:
        return False
    ones = torch.ones(4)
    cuda.composite_forward(device, ones, torch.ones(4, 3), ones, ones, torch.tensor([0, 2, 9]))
    return True


def rendering(device: SimulatedDevice) -> bool:
    some, bits = list(random_rays(300)[:4]), random_bits(0.4)
    of = field("eugen", features=4, geometry=7)
    assert of.density.bias is not None
    of.density.bias[0] += 4  # so dense that rays end early
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EUGEN_BACKEND", "reference")
        expected = reference.render(*some, bits, RESOLUTION, *BOUNDED, of)
    assert expected[1].max() > 0.9999  # some ray ends early
    got = render(device, of, some, bits, *BOUNDED)
    return torch.equal(got[3], expected[3]) and all(
        close(mine, theirs, 5e-3) for mine, theirs in zip(got[:3], expected[:3], strict=True)
    )


CASES = {
    "network": network,
    "even": even,
    "pairs": pairs,
    "blocks": blocks,
    "padded": padded,
    "padded_halves": padded_halves,
    "smooth": smooth,
    "inner_norm": inner_norm,
    "streamed": streamed,
    "inner_norm_streamed": inner_norm_streamed,
    "grid": grid,
    "products": products,
    "rays": rays,
    "render": rendering,
}


def fails(cases: Sequence[str], folder: Path) -> bool:
    """Whether one of the checks fails on the mutated sources in one of the orders.

    Raises:
        EmulationError: the sources do not compile, which would be no detection.
    """
    for case in cases:
        for order in ORDERS:
            try:
                if not CASES[case](EmulatedDevice(80, order, sources=folder)):
                    return True
            except EmulationError as error:
                if "does not compile" in str(error):
                    raise
                return True
    return False


def report(connection: Connection, cases: Sequence[str], folder: Path) -> None:
    """Send whether one of the checks fails."""
    connection.send(fails(cases, folder))


def forkserver() -> ForkServerContext:
    """Processes that have no threads of this one and need not import anything."""
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload([__name__])
    return processes


def notices(mutation: Mutation, folder: Path) -> bool:
    """Whether a check fails in another process on the mutated sources, or ends this process, or does not end."""
    processes = forkserver()
    ours, theirs = processes.Pipe(duplex=False)
    process = processes.Process(target=report, args=(theirs, mutation.cases, folder), daemon=True)
    process.start()
    theirs.close()
    process.join(LONGEST)
    if process.exitcode is None:
        process.kill()
        process.join()
    if process.exitcode < 0:  # by a signal
        return True
    assert process.exitcode == 0, f"{mutation.name}: the process that tried it failed, see its output"
    return ours.recv()


def plant(mutation: Mutation, folder: Path) -> Path:
    """Make a copy of the sources that contains the bug."""
    shutil.copytree(SOURCE, folder)
    file = folder / mutation.file
    file.write_text(mutation.plant(file.read_text()))
    return folder


def chosen() -> list[Mutation]:
    if os.environ.get("EUGEN_ALL_MUTATIONS"):
        return MUTATIONS
    digest = hashlib.sha256(b"".join(content for _, content in sorted(sources().items()))).digest()
    return MUTATIONS[digest[0] % PARTS :: PARTS]


class RecordingDevice(EmulatedDevice):
    """Records the programs that it runs."""

    def __init__(self) -> None:
        super().__init__(80)
        self.programs: set[tuple[str, tuple[str, ...]]] = set()

    def launch(self, source: str, constants: tuple[str, ...], *rest: Any) -> None:
        self.programs.add((source, constants))
        super().launch(source, constants, *rest)


def compile_all(mutations: list[Mutation], folders: list[Path]) -> None:
    """Compile every mutation's programs, two at a time."""
    programs = {}
    for case in {case for mutation in mutations for case in mutation.cases}:
        device = RecordingDevice()
        CASES[case](device)
        programs[case] = device.programs
    jobs = dict.fromkeys(
        (source, constants, folder)
        for mutation, folder in zip(mutations, folders, strict=True)
        for case in mutation.cases
        for source, constants in sorted(programs[case])
    )
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda job: library(job[0], job[1], 80, job[2]), jobs))


def test_there_are_enough() -> None:
    assert len(MUTATIONS) >= 25
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS)
    for mutation in MUTATIONS:
        assert mutation.right in (SOURCE / mutation.file).read_text(), f"{mutation.name}: not in the source any longer"


@pytest.mark.parametrize("case", CASES)
def test_checks_pass_on_the_sources(case: str) -> None:
    for order in ORDERS:
        assert CASES[case](EmulatedDevice(80, order))


def test_planted_bugs_are_noticed(tmp_path: Path) -> None:
    mutations = chosen()
    folders = [plant(mutation, tmp_path / str(number)) for number, mutation in enumerate(mutations)]
    compile_all(mutations, folders)
    survivors = [
        mutation.name for mutation, folder in zip(mutations, folders, strict=True) if not notices(mutation, folder)
    ]
    print(f"{len(mutations) - len(survivors)} of {len(mutations)} planted bugs noticed; not noticed: {survivors}")
    assert len(survivors) <= 0.1 * len(mutations), survivors


@pytest.mark.parametrize("wrong", ["__builtin_trap();", "for (volatile int forever = 1; forever;) {}"])
def test_bugs_that_the_emulator_does_not_survive(wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.emulator.test_mutations.LONGEST", 10)
    mutation = Mutation("products.cu", "if (i >= n) return;", wrong, ("products",))
    assert notices(mutation, plant(mutation, tmp_path / "sources"))


def test_what_is_no_bug_is_not_noticed(tmp_path: Path) -> None:
    mutation = Mutation("products.cu", "if (i >= n) return;", "if (n <= i) return;", ("products",))
    assert not notices(mutation, plant(mutation, tmp_path / "sources"))

"""Registers and spills of every CUDA kernel of the default methods, for each GPU architecture. Needs no GPU.

    python benchmarks/kernel_resources.py [--markdown FILE]

NVRTC compiles each program. A spilled register did not fit and goes through memory.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from printing import print_table

from eugen_nerf.field import ORDER_2_LAYERS, ChainNetwork, EugenField, FieldConfig
from eugen_nerf.ops import cuda
from eugen_nerf.ops.nvrtc import Compiled, compile_cached, find_nvrtc
from eugen_nerf.ops.packing import pack_chain
from eugen_nerf.ops.tiles import SHARED_MEMORY, plan, render_shared_bytes

KINDS = {
    "eugen": FieldConfig(network="eugen"),
    "eugen, 64 candidates": FieldConfig(network="eugen", candidate_features=64),
    "eugen, order 2": FieldConfig(network="eugen", **{**ORDER_2_LAYERS, "candidate_features": 0}),
    "eugen, order 2, 32 candidates": FieldConfig(network="eugen", **ORDER_2_LAYERS),
    "mlp": FieldConfig(network="mlp"),
    "low-rank": FieldConfig(network="low-rank"),
    "snnk": FieldConfig(network="snnk"),
}


@dataclass(frozen=True)
class Program:
    """One program for one architecture, with the shared memory of its kernels where it is not zero."""

    label: str
    source: str
    constants: tuple[str, ...]
    architecture: int
    shared: tuple[tuple[str, int], ...] = ()

    def compile(self) -> Compiled:
        return compile_cached(self.source, self.architecture, self.constants)


def default_specs(kind: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Specs of a method's density and color network with its GPU defaults; EUGen before and after the selection."""
    field = EugenField(dataclasses.replace(KINDS[kind], log2_hashmap_size=4))
    assert isinstance(field.density_network, ChainNetwork)
    assert isinstance(field.color_network, ChainNetwork)
    with torch.no_grad():
        return pack_chain(field.density_network.merged()).spec, pack_chain(field.color_network.merged()).spec


def default_programs(architecture: int) -> Iterator[Program]:
    """Programs for training and rendering. Kinds of networks that merge to the same chain are listed once."""
    yield Program("rays", "rays.cu", (), architecture)
    yield Program("optimizer", "adam.cu", (), architecture)
    yield Program("merging", "products.cu", (), architecture)
    yield Program("hash grid", "grid.cu", cuda.grid_constants(2, False), architecture)
    seen: dict[tuple[int, ...] | tuple[tuple[int, ...], tuple[int, ...]], None] = {}
    for kind in KINDS:
        specs = default_specs(kind)
        for part, spec in zip(("density", "color"), specs, strict=True):
            if spec in seen:
                continue
            seen[spec] = None
            tiles = plan(spec, SHARED_MEMORY[architecture])
            assert tiles is not None
            shared = (("network_forward", tiles.shared_bytes), ("network_backward", tiles.back_shared_bytes))
            constants = cuda.network_constants(spec, tiles, False, part == "color")  # see cuda.color_inputs
            yield Program(f"{kind}, {part}", "network.cu", constants, architecture, shared)
        if specs not in seen:
            seen[specs] = None
            constants = cuda.render_constants(*specs, 2, half_table=True)
            shared = (("render", render_shared_bytes(*specs)),)
            yield Program(f"{kind}, render", "render.cu", constants, architecture, shared)


def compile_programs(programs: list[Program], processes: int = 2) -> list[Compiled]:
    """Compile all programs in threads; NVRTC releases Python's lock."""
    find_nvrtc()
    with ThreadPoolExecutor(processes) as pool:
        return list(pool.map(Program.compile, programs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--markdown", type=Path, help="write the table to this file too")
    arguments = parser.parse_args()
    programs = [program for architecture in SHARED_MEMORY for program in default_programs(architecture)]
    cells: dict[tuple[str, str], dict[int, str]] = {}
    for program, compiled in zip(programs, compile_programs(programs), strict=True):
        shared = dict(program.shared)
        for kernel, (registers, spilled) in sorted(compiled.resources().items()):
            text = str(registers) + (f", {spilled} B spilled" if spilled else "")
            text += f" ({shared[kernel] / 1024:.0f} KB)" if kernel in shared else ""
            if not program.label.endswith(("density", "color")) or kernel in shared:
                cells.setdefault((program.label, kernel), {})[program.architecture] = text
    heads = ["program", "kernel", *(f"sm_{architecture}" for architecture in SHARED_MEMORY)]
    rows = [[*key, *(by.get(architecture, "") for architecture in SHARED_MEMORY)] for key, by in cells.items()]
    version = ".".join(map(str, find_nvrtc().version))
    title = f"Registers per thread (shared memory per block), NVRTC {version}, {datetime.date.today()}"
    print_table(title, heads, rows, arguments.markdown)


if __name__ == "__main__":
    main()

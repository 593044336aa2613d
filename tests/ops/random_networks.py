"""Networks of random layers, widths and options: combinations that no one has thought of."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from eugen_nerf.layers import SNNK, Dense, EUGen, LowRank, merge_chain
from eugen_nerf.layers.merge import MergedChain
from eugen_nerf.ops.cuda_driver import Device
from eugen_nerf.ops.packing import PHI_NUMBERS, pack_chain
from eugen_nerf.ops.tiles import choices, plan, why_not_cuda
from tests.ops.comparisons import TOLERANCE, network_case, network_errors

# Mostly around the multiples of 16, which are the sizes of tiles.
WIDTHS = (1, 2, 3, 4, 5, 7, 8, 9, 12, 15, 16, 17, 20, 24, 31, 32, 33, 40, 47, 48, 49, 63, 64, 65)
WIDE = (80, 95, 96, 112, 127, 128, 129, 160, 192, 240, 255, 256)


def check_random_network(seed: int, device: Device, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare a network's result and gradients with float64; its rows and the kernels' tiles are random too.

    Every fourth network is computed in bfloat16 if the device has it.

    Args:
        place: the PyTorch device of the tensors.
    """
    half = torch.bfloat16 if seed % 4 == 3 and device.architecture >= 80 else torch.float16
    monkeypatch.setenv("EUGEN_PRECISION", "bf16" if half == torch.bfloat16 else "fp16")
    draw = random.Random(seed)
    torch.manual_seed(seed)
    while True:
        chain = _with_norm_offsets(merge_chain(_random_layers(draw)).detach())
        spec = pack_chain(chain).spec
        if not why_not_cuda(spec) and plan(spec, device.shared_memory):
            break
    case = network_case(chain, draw.choice((1, 5, 31, 33, 64, 65, 127, 200)), half).on(place)
    rows, padded = draw.choice((torch.float32, torch.float32, half)), draw.random() < 0.4
    tiles = draw.choice([tiles for kernel in choices(spec, device.shared_memory) for tiles in kernel])
    errors = network_errors(device, case, rows, tiles, padded)
    assert max(errors) <= TOLERANCE[half], errors


def _random_layers(draw: random.Random) -> nn.Sequential:
    """Up to six layers and a linear one; at most one of them squares or multiplies, or halves would not suffice."""
    wide, multiplies = draw.random() < 0.15, False

    def width() -> int:
        return draw.choice(WIDE if wide and draw.random() < 0.4 else WIDTHS)

    def layers(inputs: int) -> Iterator[nn.Module]:
        nonlocal multiplies
        for _ in range(draw.choice((0, 1, 1, 2, 2, 3, 4, 6))):
            outputs, bias = width(), draw.random() < 0.7
            phi, order = draw.choice([*PHI_NUMBERS, "relu"]), draw.choice((1, 1, 2))
            kind = draw.choice(("eugen", "eugen", "eugen", "dense", "low-rank", "snnk"))
            if kind == "eugen":
                if multiplies:
                    phi, order = "relu" if phi == "squared_relu" else phi, 1
                multiplies |= phi == "squared_relu" or order == 2
                yield EUGen(
                    inputs,
                    outputs,
                    width(),
                    order=order,
                    phi="relu" if order == 2 and phi == "squared_relu" else phi,
                    shared=order == 2 and draw.random() < 0.5,
                    norm=draw.random() < 0.6,
                    bias=bias,
                    feature_bias=draw.random() < 0.4,
                )
            elif kind == "dense":
                yield Dense(inputs, outputs, draw.choice(("relu", "gelu", "sin", "softplus")), bias=bias)
            elif kind == "low-rank":
                yield LowRank(inputs, outputs, draw.choice((1, 2, 3, 8, 16, 17)), "relu", bias=bias)
            else:
                yield SNNK(inputs, outputs, draw.choice(WIDTHS), "relu", bias=bias)
            inputs = outputs
        yield nn.Linear(inputs, width(), bias=draw.random() < 0.7)

    made = nn.Sequential(*layers(width()))
    with torch.no_grad():
        for tensor in made.state_dict().values():
            # Biases too: a row of zeros has a norm of 1e-6, of which halves leave little.
            tensor.copy_(torch.randn(tensor.shape) / (math.sqrt(tensor.shape[-1]) if tensor.ndim > 1 else 1.0))
    return made


def _with_norm_offsets(chain: MergedChain) -> MergedChain:
    """The same function, with explicit zeros where a packed chain has them, so that their gradient is known."""
    stages = []
    for stage in chain.stages:
        if stage.norm_factor is not None and stage.norm_offset is None:
            stage = dataclasses.replace(stage, norm_offset=torch.zeros(stage.norm_factor.shape[0]))
        stages.append(stage)
    return dataclasses.replace(chain, stages=tuple(stages))

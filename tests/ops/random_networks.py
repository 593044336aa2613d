"""Networks of random layers, widths and options: combinations that no one has thought of."""

from __future__ import annotations

import math
import random

import pytest
import torch
from torch import nn

from eugen_nerf.layers import SNNK, Dense, EUGen, LowRank, merge_chain
from eugen_nerf.ops.cuda_driver import Device
from eugen_nerf.ops.packing import pack_chain
from eugen_nerf.ops.tiles import choices, plan, why_not_cuda
from tests.ops.comparisons import TOLERANCE, network_case, network_errors

# Mostly around the multiples of 16, which are the sizes of tiles.
WIDTHS = (1, 2, 3, 4, 5, 7, 8, 9, 12, 15, 16, 17, 20, 24, 31, 32, 33, 40, 47, 48, 49, 63, 64, 65)
WIDE = (80, 95, 96, 112, 127, 128, 129, 160, 192, 240, 255, 256)
PHI = ("relu", "relu", "identity", "softplus", "gelu", "sin")


def check_random_network(seed: int, device: Device, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare a network's result and gradients with float64; its rows and the kernels' tiles are random too.

    Every fourth network is computed in bfloat16 if the device has it.

    Args:
        place: the PyTorch device of the tensors.
    """
    half = torch.bfloat16 if seed % 4 == 3 and device.architecture >= 80 else torch.float16
    monkeypatch.setenv("EUGEN_PRECISION", "bf16" if half == torch.bfloat16 else "fp16")
    draw = random.Random(seed)
    while True:
        # Biases too: a row of zeros has a norm of 1e-6, of which halves leave little.
        chain = merge_chain(randomized(_random_layers(draw), seed)).detach()
        spec = pack_chain(chain).spec
        if not why_not_cuda(spec) and plan(spec, device.shared_memory):
            break
    case = network_case(chain, draw.choice((1, 5, 31, 33, 64, 65, 127, 200)), half).on(place)
    rows, padded = draw.choice((torch.float32, torch.float32, half)), draw.random() < 0.4
    tiles = draw.choice([tiles for kernel in choices(spec, device.shared_memory) for tiles in kernel])
    for error in network_errors(device, case, rows, tiles, padded):
        assert error <= TOLERANCE[half]


def randomized(modules: nn.Sequential, seed: int = 0) -> nn.Sequential:
    """Draw normal entries with the standard deviation of a unit-gain linear layer, also for biases."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in modules.state_dict().values():
            drawn = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
            tensor.copy_(drawn / math.sqrt(tensor.shape[-1]) if tensor.ndim > 1 else drawn)
    return modules


def _random_layers(draw: random.Random) -> nn.Sequential:
    """Up to six layers and a linear one; at most one of them squares or multiplies, or halves would not suffice."""
    wide = draw.random() < 0.15

    def width() -> int:
        return draw.choice(WIDE if wide and draw.random() < 0.4 else WIDTHS)

    layers: list[nn.Module] = []
    inputs, multiplies = width(), False
    for _ in range(draw.choice((0, 1, 1, 2, 2, 3, 4, 6))):
        outputs, bias = width(), draw.random() < 0.7
        kind = draw.choice(("eugen", "eugen", "eugen", "dense", "low-rank", "snnk"))
        if kind == "eugen":
            order = 1 if multiplies else draw.choice((1, 1, 2))
            phi = draw.choice(PHI if multiplies or order == 2 else (*PHI, "squared_relu"))
            multiplies |= order == 2 or phi == "squared_relu"
            options = {name: draw.random() < 0.5 for name in ("norm", "feature_bias")}
            shared = order == 2 and draw.random() < 0.5
            layers.append(EUGen(inputs, outputs, width(), order=order, phi=phi, shared=shared, bias=bias, **options))
        elif kind == "dense":
            layers.append(Dense(inputs, outputs, draw.choice(("relu", "gelu", "sin", "softplus")), bias=bias))
        elif kind == "low-rank":
            layers.append(LowRank(inputs, outputs, draw.choice((1, 2, 3, 8, 16, 17)), "relu", bias=bias))
        else:
            layers.append(SNNK(inputs, outputs, draw.choice(WIDTHS), "relu", bias=bias))
        inputs = outputs
    return nn.Sequential(*layers, nn.Linear(inputs, width(), bias=draw.random() < 0.7))

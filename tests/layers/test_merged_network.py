"""A merged chain as a module."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eugen_nerf import ops
from eugen_nerf.layers import Dense, EUGen, LowRank, MergedNetwork, convert, merge_chain
from eugen_nerf.layers.conversion import ConversionPlan

F64 = torch.float64


def chains() -> dict[str, nn.Sequential]:
    torch.manual_seed(0)
    return {
        "norms": nn.Sequential(EUGen(6, 9, 3), EUGen(9, 9, 4, order=2, phi="gelu", feature_bias=True), nn.Linear(9, 2)),
        "no bias": nn.Sequential(EUGen(6, 9, 3, norm=False), nn.Linear(9, 2, bias=False)),
        "dense": nn.Sequential(Dense(6, 7), LowRank(7, 5, 3), nn.Linear(5, 2)),
        "activation last": nn.Sequential(nn.Linear(6, 4), nn.ReLU()),
        "linear": nn.Sequential(nn.Linear(6, 4)),
    }


@pytest.mark.parametrize("name", chains())
@pytest.mark.parametrize("gradients", [True, False])  # without gradients a norm inside the chain is stored differently
def test_it_computes_what_the_layers_do(name: str, gradients: bool) -> None:
    layers = chains()[name].double()
    with torch.set_grad_enabled(gradients):
        chain = merge_chain(layers)
    merged = MergedNetwork(chain)
    x = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(1), dtype=F64)
    torch.testing.assert_close(merged(x), layers(x), rtol=1e-10, atol=1e-10)
    assert not list(merged.parameters())
    assert (merged.chain.multiply_adds, merged.chain.num_parameters) == (chain.multiply_adds, chain.num_parameters)


def test_it_is_saved_moved_and_copied_as_any_module() -> None:
    layers = chains()["norms"]
    merged = MergedNetwork(merge_chain(layers))
    x = torch.randn(4, 6)
    expected = merged(x)
    file = io.BytesIO()
    torch.save(merged, file)
    file.seek(0)
    for other in (torch.load(file, weights_only=False), copy.deepcopy(merged)):
        assert torch.equal(other(x), expected)
    empty = MergedNetwork(merge_chain(copy.deepcopy(layers).apply(_reset)))
    assert not torch.equal(empty(x), expected)
    empty.load_state_dict(merged.state_dict())
    assert torch.equal(empty(x), expected)
    assert merged.double()(x.double()).dtype == F64


def _reset(module: Any) -> None:
    if hasattr(module, "reset_parameters"):
        module.reset_parameters()


def test_it_does_not_follow_the_layers() -> None:
    layers = chains()["norms"]
    merged = MergedNetwork(merge_chain(layers))
    x = torch.randn(4, 6)
    expected = merged(x).clone()
    layers.apply(_reset)
    assert torch.equal(merged(x), expected)


def test_native_code_evaluates_it() -> None:
    merged = MergedNetwork(merge_chain(chains()["norms"]))
    x = torch.randn(2, 3, 6)
    expected = merged(x)
    merged.network = ops.network
    torch.testing.assert_close(merged(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("norm_first", [True, False])
def test_in_the_place_of_a_pair_of_a_transformer(norm_first: bool) -> None:
    torch.manual_seed(0)
    layer: Any = nn.TransformerEncoderLayer(8, 2, 32, dropout=0.0, norm_first=norm_first, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    convert(encoder, ConversionPlan(8))
    encoder.eval()
    x = torch.randn(3, 5, 8)

    def outputs() -> tuple[Tensor, Tensor]:
        with torch.no_grad():  # PyTorch uses its fused path in evaluation mode without gradients
            fused = encoder(x)
        return fused, encoder(x)

    before = outputs()
    for block in encoder.layers:
        chain: list[nn.Module] = [block.linear1, block.linear2]  # type: ignore[list-item]
        block.linear1, block.linear2 = MergedNetwork(merge_chain(chain)), nn.Identity()  # type: ignore[assignment]
    for got, expected in zip(outputs(), before, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_large_biases_in_half_precision() -> None:
    """The length of the constant before the norm fits into half precision, its square does not."""
    layers = nn.Sequential(EUGen(3, 64, 2), EUGen(64, 2, 4))
    with torch.no_grad():
        layers[0].bias.fill_(50.0)
        merged = MergedNetwork(merge_chain(layers))
    x = torch.randn(5, 3)
    expected = layers(x)
    torch.testing.assert_close(
        merged.half()(x.half()).float(), expected, rtol=0.02, atol=0.02 * expected.abs().max().item()
    )

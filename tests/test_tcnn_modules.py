"""The adapters to tiny-cuda-nn, with a fake module that records its calls."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eugen_nerf import tcnn_modules
from eugen_nerf.errors import UserError
from eugen_nerf.field import EugenField, FieldConfig
from eugen_nerf.ops import HashGridLayout

LAYOUT = HashGridLayout.build(4, 2, 10, 8, 64)


class FakeEncoding(nn.Module):
    """Answers in half precision, as tiny-cuda-nn does."""

    def __init__(self, n_input_dims: int, encoding_config: dict[str, Any]) -> None:
        super().__init__()
        self.asked = {"n_input_dims": n_input_dims, **encoding_config}
        features = encoding_config["n_levels"] * encoding_config["n_features_per_level"]
        self.params = nn.Parameter(torch.linspace(-1, 1, 3 * features))
        self.shape = (3, features)

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.params.view(self.shape)).half()


class FakeNetwork(nn.Module):
    def __init__(self, n_input_dims: int, n_output_dims: int, network_config: dict[str, Any]) -> None:
        super().__init__()
        self.asked = {"n_input_dims": n_input_dims, "n_output_dims": n_output_dims, **network_config}
        self.params = nn.Parameter(torch.linspace(-0.5, 0.5, n_input_dims * n_output_dims))
        self.shape = (n_input_dims, n_output_dims)

    def forward(self, x: Tensor) -> Tensor:
        return (x.float() @ self.params.view(self.shape)).half()


@pytest.fixture
def tcnn(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = ModuleType("tinycudann")
    module.Encoding = FakeEncoding  # type: ignore[attr-defined]
    module.Network = FakeNetwork  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tinycudann", module)
    return module


@pytest.mark.parametrize("error", [ImportError("No module named 'tinycudann'"), OSError("libcuda.so.1: not found")])
def test_without_tiny_cuda_nn_the_message_names_the_way_out(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(name: str) -> ModuleType:
        assert name == "tinycudann"
        raise error

    monkeypatch.setattr(tcnn_modules.importlib, "import_module", fail)
    with pytest.raises(UserError) as caught:
        EugenField(FieldConfig(network="mlp", implementation="tcnn"))
    message = str(caught.value)
    assert str(error) in message
    assert "https://github.com/NVlabs/tiny-cuda-nn" in message
    assert "use implementation native" in message


def test_hash_grid_hands_the_layout_on(tcnn: ModuleType) -> None:
    assert tcnn_modules.hash_grid(LAYOUT).asked == {
        "n_input_dims": 3,
        "otype": "HashGrid",
        "n_levels": 4,
        "n_features_per_level": 2,
        "log2_hashmap_size": 10,
        "base_resolution": 8,
        "per_level_scale": pytest.approx(2.0),
    }
    assert tcnn_modules.hash_grid(HashGridLayout.build(1, 2, 10, 8, 64)).asked["per_level_scale"] == 1


@pytest.mark.parametrize(("width", "otype"), [(64, "FullyFusedMLP"), (128, "FullyFusedMLP"), (48, "CutlassMLP")])
def test_mlp_is_fused_where_its_width_allows(tcnn: ModuleType, width: int, otype: str) -> None:
    assert tcnn_modules.mlp(8, 16, width, 2).asked == {
        "n_input_dims": 8,
        "n_output_dims": 16,
        "otype": otype,
        "activation": "ReLU",
        "output_activation": "None",
        "n_neurons": width,
        "n_hidden_layers": 2,
    }


@pytest.mark.parametrize("supported", [True, False])
def test_jit_fusion_is_switched_on_where_there_is_one(
    tcnn: ModuleType, supported: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for make in (lambda: tcnn_modules.mlp(8, 16, 64, 1), lambda: tcnn_modules.hash_grid(LAYOUT)):
        monkeypatch.delattr(tcnn, "supports_jit_fusion", raising=False)
        assert not hasattr(make(), "jit_fusion")  # a version without this attribute
        monkeypatch.setattr(tcnn, "supports_jit_fusion", lambda: supported, raising=False)
        assert make().jit_fusion is supported


def test_field_on_tiny_cuda_nn(tcnn: ModuleType) -> None:
    field = EugenField(FieldConfig(network="mlp", implementation="tcnn", num_levels=4, hidden_features=32))
    assert isinstance(field.encoding, FakeEncoding)
    for network, inputs, outputs, layers in ((field.density_network, 8, 16, 1), (field.color_network, 31, 3, 2)):
        assert isinstance(network, FakeNetwork)
        assert network.asked["n_input_dims"] == inputs
        assert network.asked["n_output_dims"] == outputs
        assert network.asked["n_hidden_layers"] == layers
        assert network.asked["n_neurons"] == 32

    x = torch.rand(30, 3, generator=torch.Generator().manual_seed(0))
    directions = torch.nn.functional.normalize(x - 0.5, dim=-1)
    sigma, rgb = field(x, directions)
    assert sigma.dtype == rgb.dtype == torch.float32
    assert sigma.shape == (30,)
    assert ((rgb > 0) & (rgb < 1)).all()
    for got, expected in zip(field.evaluator()(x, directions), (sigma, rgb), strict=True):
        assert torch.equal(got, expected)
    (sigma.sum() + rgb.sum()).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in field.parameters())
    field.set_initial_density(0.1)  # no effect, because these networks have no bias
    assert torch.equal(field(x, directions)[0], sigma)
    # Each module's parameters are one opaque vector, which is stored but neither merged nor counted.
    assert field.num_parameters() == sum(p.numel() for p in field.parameters())
    with pytest.raises(UserError, match="cannot be merged or counted"):
        field.multiply_adds()
    with pytest.raises(UserError, match="cannot be merged or counted"):
        field.network_parameters()

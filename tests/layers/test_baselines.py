"""Dense, low-rank and SNNK layers, and the networks built from them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eugen_nerf.layers import SNNK, Dense, EUGen, LowRank, build_network, merge_chain
from eugen_nerf.layers.baselines import NETWORK_KINDS
from eugen_nerf.ops.reference import network

F64 = torch.float64

LAYERS = {
    "dense": lambda **options: Dense(5, 4, **options),
    "low-rank": lambda **options: LowRank(5, 4, 2, **options),
    "snnk-relu": lambda **options: SNNK(5, 4, 6, "relu", **options),
    "snnk-sin": lambda **options: SNNK(5, 4, 6, "sin", **options),
    "snnk-gaussian": lambda **options: SNNK(5, 4, 6, "gaussian", **options),
}


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


@pytest.mark.parametrize("kind", LAYERS)
class TestEveryLayer:
    def test_shapes_and_dtype(self, kind: str) -> None:
        for dtype in (torch.bfloat16, torch.float32, F64):
            y = LAYERS[kind](dtype=dtype)(torch.randn(3, 0, 2, 5, dtype=dtype))
            assert (y.shape, y.dtype) == ((3, 0, 2, 4), dtype)

    def test_state_dict_round_trip(self, kind: str) -> None:
        source, target = LAYERS[kind](), LAYERS[kind]()
        x = torch.randn(3, 5)
        assert not torch.equal(source(x), target(x))
        target.load_state_dict(source.state_dict())
        assert torch.equal(source(x), target(x))
        assert torch.equal(copy.deepcopy(source)(x), source(x))

    def test_reset_draws_anew(self, kind: str) -> None:
        layer = LAYERS[kind]()
        x = torch.randn(3, 5)
        before = layer(x)
        nn.init.normal_(layer.bias)
        layer.reset_parameters()
        assert not torch.equal(layer(x), before)
        assert torch.equal(layer.bias, torch.zeros(4))

    def test_gradients_agree_with_finite_differences(self, kind: str) -> None:
        layer = LAYERS[kind](dtype=F64)
        parameters = dict(layer.named_parameters())

        def evaluate(x: Tensor, *values: Tensor) -> Tensor:
            return torch.func.functional_call(layer, dict(zip(parameters, values, strict=True)), (x,))

        x = normal(3, 5, seed=0).requires_grad_()
        assert torch.autograd.gradcheck(evaluate, (x, *parameters.values()))

    def test_without_bias(self, kind: str) -> None:
        layer = LAYERS[kind](bias=False)
        assert "bias" not in layer.state_dict()
        assert "bias=False" in repr(layer)

    def test_compiles_without_graph_breaks(self, kind: str) -> None:
        torch.compiler.reset()
        layer = LAYERS[kind]()
        x = torch.randn(3, 5)
        torch.testing.assert_close(torch.compile(layer, backend="aot_eager", fullgraph=True)(x), layer(x))

    def test_a_size_of_zero_is_refused(self, kind: str) -> None:
        cls = type(LAYERS[kind]())
        with pytest.raises(ValueError, match=f"{cls.__name__}: out_features must be at least 1"):
            cls(5, 0) if cls is Dense else cls(5, 0, 2)


def test_dense_is_linear_and_activation() -> None:
    layer = Dense(5, 4, "gelu", dtype=F64)
    nn.init.normal_(layer.bias)
    x = normal(3, 5, seed=0)
    torch.testing.assert_close(layer(x), F.gelu(x @ layer.weight.T + layer.bias))


def test_low_rank_is_a_dense_layer_of_that_rank() -> None:
    layer = LowRank(7, 6, 2, "softplus", dtype=F64)
    nn.init.normal_(layer.bias)
    product = layer.weight @ layer.projections
    assert torch.linalg.matrix_rank(product) == 2
    x = normal(3, 7, seed=0)
    torch.testing.assert_close(layer(x), F.softplus(x @ product.T + layer.bias))


@pytest.mark.parametrize(
    "make",
    [lambda: Dense(64, 2000), lambda: LowRank(64, 2000, 512), lambda: SNNK(64, 2000, 512)],
    ids=["dense", "low-rank", "snnk"],
)
def test_relu_layers_keep_the_mean_square_of_their_input(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    layer = make()
    with torch.no_grad():
        assert layer(torch.randn(200, 64)).square().mean().item() == pytest.approx(1.0, rel=0.2)


class TestSNNK:
    @staticmethod
    def from_dense(activation: str, m: int, bias: Tensor | None = None, projection: str = "gaussian") -> SNNK:
        weight = normal(3, 4, seed=1) / 3
        generator = torch.Generator().manual_seed(2)
        return SNNK.from_dense(weight, bias, m, activation, projection=projection, generator=generator)

    @pytest.mark.parametrize("projection", ["gaussian", "orthogonal"])
    @pytest.mark.parametrize("with_bias", [False, True], ids=["plain", "bias"])
    @pytest.mark.parametrize(
        ("activation", "function"),
        [("sin", torch.sin), ("cos", torch.cos), ("gaussian", lambda z: (-(z**2) / 2).exp())],
        ids=["sin", "cos", "gaussian"],
    )
    def test_fourier_features_are_unbiased(
        self, activation: str, function: Callable[[Tensor], Tensor], with_bias: bool, projection: str
    ) -> None:
        draws = 100_000
        weight, x = normal(3, 4, seed=1) / 3, normal(5, 4, seed=3) / 2
        bias = normal(3, seed=4) if with_bias else None
        layer = self.from_dense(activation, 2 * draws, bias, projection)
        # The four orthogonal rows of a block are dependent, but the means of different blocks are independent samples.
        terms = (layer.features(x)[:, None, :] * layer.weight).detach()
        samples = terms.unflatten(-1, (2, draws // 4, 4)).sum(dim=-3).mean(dim=-1) * draws
        standard_error = samples.std(dim=-1) / math.sqrt(draws / 4)
        expected = function(F.linear(x, weight, bias))
        assert ((layer(x) - expected).abs() < 5 * standard_error).all()
        assert standard_error.max() < 0.02

    def test_relu_features_have_the_arc_cosine_kernel_as_expectation(self) -> None:
        m = 200_000
        weight, x, bias = normal(3, 4, seed=1) / 3, normal(5, 4, seed=3), normal(3, seed=4)
        layer = self.from_dense("relu", m, bias)
        samples = (layer.features(x)[:, None, :] * layer.weight).detach() * m
        standard_error = samples.std(dim=-1) / math.sqrt(m)
        lengths = x.norm(dim=1)[:, None] * weight.norm(dim=1)
        angle = torch.acos(x @ weight.T / lengths)
        kernel = lengths / (2 * math.pi) * (angle.sin() + (math.pi - angle) * angle.cos())
        assert ((layer(x) - (kernel + bias)).abs() < 5 * standard_error).all()
        assert standard_error.max() < 0.02
        # It differs from ReLU(w.x + b): the estimator's bias is far larger than the statistical error.
        assert ((layer(x) - F.relu(x @ weight.T + bias)).abs() > 0.1).any()

    @pytest.mark.parametrize("activation", ["sin", "gaussian"])
    def test_scaled_features_stand_for_the_same_family_of_functions(self, activation: str) -> None:
        # A new layer scales its input by 1 / sqrt(d), so with the same draws its features at 2 x are from_dense's at x.
        torch.manual_seed(0)
        fresh = SNNK(4, 3, 8, activation, dtype=F64)
        torch.manual_seed(0)
        dense = SNNK.from_dense(torch.zeros(3, 4, dtype=F64), None, 8, activation)
        x = normal(5, 4, seed=3)
        torch.testing.assert_close(fresh.features(2 * x), dense.features(x))

    def test_projections_are_frozen_unless_asked_otherwise(self) -> None:
        assert set(dict(SNNK(4, 3, 8).named_parameters())) == {"weight", "bias"}
        trained = SNNK(4, 3, 8, trainable_projections=True)
        assert set(dict(trained.named_parameters())) == {"weight", "bias", "projections"}

    def test_a_generator_makes_from_dense_reproducible(self) -> None:
        for activation in ("relu", "gaussian"):
            first, again = self.from_dense(activation, 8), self.from_dense(activation, 8)
            assert torch.equal(first.projections, again.projections)
            assert torch.equal(first.weight, again.weight)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"activation": "gelu"}, "no features for 'gelu'; known: relu, sin, cos, gaussian"),
            ({"projection": "rademacher"}, "needs Gaussian rows"),
            ({"activation": "sin", "num_features": 7}, "come in pairs, num_features=7 is odd"),
        ],
        ids=["activation", "projection", "odd"],
    )
    def test_impossible_arguments_are_refused(self, arguments: dict[str, object], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            SNNK(**{"in_features": 4, "out_features": 3, "num_features": 8, **arguments})


class TestBuildNetwork:
    LAYER_CLASS = {"eugen": EUGen, "mlp": Dense, "low-rank": LowRank, "snnk": SNNK}  # noqa: RUF012

    @pytest.mark.parametrize("num_hidden_layers", [0, 1, 3])
    @pytest.mark.parametrize("kind", NETWORK_KINDS)
    def test_structure_and_merging(self, kind: str, num_hidden_layers: int) -> None:
        modules = build_network(kind, 5, 16, num_hidden_layers, 2, 6).to(F64)
        assert [type(m) for m in modules] == [self.LAYER_CLASS[kind]] * num_hidden_layers + [nn.Linear]
        x = normal(7, 5, seed=0)
        merged = network(x, merge_chain(modules))
        assert merged.shape == (7, 2)
        torch.testing.assert_close(merged, modules(x), rtol=1e-10, atol=1e-10)

    def test_only_the_first_eugen_layer_has_the_norm(self) -> None:
        assert [m.norm for m in build_network("eugen", 5, 16, 3, 2, 6)[:-1]] == [True, False, False]
        assert not build_network("eugen", 5, 16, 3, 2, 6, norm_first=False)[0].norm

    def test_options_reach_the_layers(self) -> None:
        options = {"order": 2, "phi": "sin", "trainable_projections": False, "projection": "rademacher"}
        for layer in build_network("eugen", 5, 16, 2, 2, 6, **options)[:-1]:
            assert (layer.order, layer.phi, layer.projection, layer.num_features) == (
                2,
                "sin",
                "rademacher",
                6,
            )
            assert not isinstance(layer.projections, nn.Parameter)
        assert build_network("mlp", 5, 16, 1, 2, 6, activation="gelu")[0].activation == "gelu"
        assert build_network("low-rank", 5, 16, 1, 2, 6, activation="gelu")[0].activation == "gelu"
        for kind in ("low-rank", "snnk"):
            for projection in ("gaussian", "orthogonal"):
                layer = build_network(kind, 5, 16, 1, 2, 6, projection=projection)[0]
                assert (layer.num_features, layer.projection) == (6, projection)

    def test_merged_cost_of_an_eugen_network_does_not_depend_on_the_nominal_width(self) -> None:
        narrow, wide = (merge_chain(build_network("eugen", 5, hidden, 3, 2, 6)) for hidden in (8, 256))
        assert narrow.multiply_adds == wide.multiply_adds
        mlp = merge_chain(build_network("mlp", 5, 6, 3, 2, 6))
        # Without the norm the cost is that of an MLP whose width is the number of features.
        plain = merge_chain(build_network("eugen", 5, 256, 3, 2, 6, norm_first=False))
        assert plain.multiply_adds == mlp.multiply_adds

    def test_impossible_arguments_are_refused(self) -> None:
        with pytest.raises(ValueError, match="unknown network kind 'siren'; known: eugen, mlp, low-rank, snnk"):
            build_network("siren", 5, 16, 1, 2, 6)
        with pytest.raises(ValueError, match="mergeable SNNK network has ReLU features; got activation 'sin'"):
            build_network("snnk", 5, 16, 1, 2, 6, activation="sin")

"""The EUGen layer: definition, special cases, gradients and behavior as a torch.nn.Module."""

from __future__ import annotations

import copy
import itertools
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from eugen_nerf.layers import ACTIVATIONS, SNNK, EUGen, resolve_activation

F64 = torch.float64


def randomized(layer: EUGen, seed: int = 0) -> EUGen:
    """Make every entry normal, so that no term vanishes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in layer.state_dict().values():
            tensor.copy_(torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype))
    return layer


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def products_by_definition(layer: EUGen, extended: Tensor) -> Tensor:
    """concat_{i=1..k} prod_{j=1..i} G_ij v for one vector v, feature by feature (arXiv 2601.22563, eq. 1)."""
    values = []
    for i in range(1, layer.order + 1):
        for feature in range(layer.num_features):
            product = torch.ones((), dtype=extended.dtype)
            for j in range(1, i + 1):
                matrix = j - 1 if layer.shared else sum(range(1, i)) + j - 1
                product = product * torch.dot(layer.projections[matrix, feature], extended)
            values.append(product)
    return torch.stack(values)


def extend(vector: Tensor, last: Tensor, norm: bool) -> Tensor:
    return torch.cat([vector, last.reshape(1)]) if norm else vector


@pytest.mark.parametrize(("order", "shared", "norm"), list(itertools.product((1, 2, 3), (False, True), (False, True))))
def test_practical_form_follows_the_definition(order: int, shared: bool, norm: bool) -> None:
    layer = randomized(EUGen(4, 3, 5, order=order, shared=shared, norm=norm, phi="gelu", dtype=F64))
    x = normal(6, 4, seed=1)
    expected = []
    for row in x:
        features = F.gelu(products_by_definition(layer, extend(row, row.norm(), norm)))
        expected.append(layer.weight @ features + layer.bias)
    torch.testing.assert_close(layer(x), torch.stack(expected), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("order", "shared", "norm"), list(itertools.product((0, 1, 3), (False, True), (False, True))))
def test_kernel_form_follows_the_definition(order: int, shared: bool, norm: bool) -> None:
    layer = randomized(EUGen(4, 3, 5, order=order, shared=shared, norm=norm, phi="softplus", psi="sin", dtype=F64))
    x = normal(6, 4, seed=1)
    one = torch.ones((), dtype=F64)
    expected = torch.zeros(6, 3, dtype=F64)
    for n, o in itertools.product(range(6), range(3)):
        total = layer.bias[o] + F.softplus(one) * one.sin()  # the constant feature of order 0
        if order > 0:
            features = F.softplus(products_by_definition(layer, extend(x[n], x[n].norm(), norm)))
            total = total + features @ products_by_definition(layer, extend(layer.weight[o], one, norm)).sin()
        expected[n, o] = total
    torch.testing.assert_close(layer(x), expected, rtol=1e-10, atol=1e-10)
    weight, bias = layer.effective_weight(), layer.effective_bias()
    assert weight.shape == (3, order * 5)
    torch.testing.assert_close(F.linear(layer.features(x), weight, bias), expected, rtol=1e-10, atol=1e-10)


def test_kernel_form_without_bias_still_has_the_constant_of_order_zero() -> None:
    layer = EUGen(3, 2, 4, phi="squared_relu", psi="softplus", bias=False, dtype=F64)
    expected = F.softplus(torch.ones(2, dtype=F64))
    torch.testing.assert_close(layer.effective_bias(), expected)


@given(
    sizes=st.tuples(*[st.integers(1, 6)] * 3),
    order=st.integers(0, 3),
    batch=st.lists(st.integers(0, 3), max_size=3),
    norm=st.booleans(),
    shared=st.booleans(),
    psi=st.sampled_from([None, "identity", "relu"]),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_shapes(
    sizes: tuple[int, int, int], order: int, batch: list[int], norm: bool, shared: bool, psi: str | None
) -> None:
    in_features, out_features, m = sizes
    layer = EUGen(in_features, out_features, m, order=order, norm=norm, shared=shared, psi=psi)
    x = torch.ones(*batch, in_features)
    assert layer.projections.shape == (
        order if shared else order * (order + 1) // 2,
        m,
        in_features + int(norm),
    )
    assert layer.features(x).shape == (*batch, order * m)
    assert layer.effective_weight().shape == (out_features, order * m)
    assert layer(x).shape == (*batch, out_features)


def test_order_zero_is_the_constant_given_by_the_bias() -> None:
    layer = randomized(EUGen(3, 4, 5, order=0))
    assert torch.equal(layer(torch.randn(6, 3)), layer.bias.expand(6, 4))


class TestSpecialCases:
    """Layers of the literature that EUGen contains (arXiv 2601.22563, appendix B.3)."""

    def test_low_rank(self) -> None:
        layer = randomized(EUGen(7, 4, 3, phi="identity", norm=False, dtype=F64))
        x = normal(5, 7, seed=1)
        torch.testing.assert_close(layer(x), x @ (layer.weight @ layer.projections[0]).T + layer.bias)

    def test_two_layer_network(self) -> None:
        layer = randomized(EUGen(7, 4, 3, phi="relu", norm=False, dtype=F64))
        hidden, out = nn.Linear(7, 3, bias=False, dtype=F64), nn.Linear(3, 4, dtype=F64)
        with torch.no_grad():
            hidden.weight.copy_(layer.projections[0])
            out.weight.copy_(layer.weight)
            out.bias.copy_(layer.bias)
        x = normal(5, 7, seed=1)
        torch.testing.assert_close(layer(x), out(hidden(x).relu()))

    def test_random_feature_layer_of_any_function(self) -> None:
        layer = randomized(EUGen(7, 4, 3, phi=torch.cos, norm=True, bias=False, dtype=F64))
        x = normal(5, 7, seed=1)
        lifted = torch.cat([x, x.norm(dim=1, keepdim=True)], dim=1)
        torch.testing.assert_close(layer(x), torch.cos(lifted @ layer.projections[0].T) @ layer.weight.T)

    def test_neural_network_kernel_with_the_same_features_on_both_sides(self) -> None:
        weight, x = normal(4, 7), normal(5, 7, seed=1)
        kernel = SNNK.from_dense(weight, None, 16, "relu", generator=torch.Generator().manual_seed(2))
        layer = EUGen(7, 4, 16, norm=False, phi="relu", psi="relu", projection=kernel.projections, dtype=F64)
        with torch.no_grad():
            layer.weight.copy_(weight)
        # The initial bias cancels the constant of order 0, which the kernel estimate does not have.
        torch.testing.assert_close(layer(x), 16 * kernel(x))


class TestGradients:
    @pytest.mark.parametrize("at_zero", [False, True], ids=["generic", "zero"])
    @pytest.mark.parametrize("psi", [None, "sin"])
    @pytest.mark.parametrize(("order", "shared"), [(1, False), (2, False), (3, True)])
    def test_agree_with_finite_differences(self, order: int, shared: bool, psi: str | None, at_zero: bool) -> None:
        # A large eps limits the norm's curvature at zero, so that finite differences are accurate.
        layer = randomized(EUGen(3, 2, 4, order=order, shared=shared, phi="softplus", psi=psi, eps=1e-2, dtype=F64))
        x = torch.zeros(2, 3, dtype=F64) if at_zero else normal(2, 3, seed=1)
        parameters = dict(layer.named_parameters())

        def evaluate(x: Tensor, *values: Tensor) -> Tensor:
            return torch.func.functional_call(layer, dict(zip(parameters, values, strict=True)), (x,))

        assert torch.autograd.gradcheck(evaluate, (x.requires_grad_(), *parameters.values()))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, F64], ids=str)
    def test_the_norm_is_differentiable_at_zero(self, dtype: torch.dtype) -> None:
        layer = EUGen(3, 2, 4, dtype=dtype)
        x = torch.zeros(2, 3, dtype=dtype, requires_grad=True)
        layer(x).sum().backward()
        assert x.grad is not None
        assert x.grad.isfinite().all()

    def test_frozen_projections_are_no_parameter_and_get_no_gradient(self) -> None:
        layer = EUGen(3, 2, 4, trainable_projections=False)
        assert set(dict(layer.named_parameters())) == {"weight", "bias"}
        assert set(layer.state_dict()) == {"projections", "weight", "bias"}
        layer(torch.randn(5, 3)).sum().backward()
        assert layer.projections.grad is None

    def test_trained_projections_get_a_gradient(self) -> None:
        layer = EUGen(3, 2, 4)
        layer(torch.randn(5, 3, generator=torch.Generator().manual_seed(0))).square().sum().backward()
        assert layer.projections.grad is not None
        assert (layer.projections.grad[..., -1] != 0).any()


class TestInitialization:
    @pytest.mark.parametrize("projection", ["gaussian", "orthogonal", "rademacher"])
    @pytest.mark.parametrize("norm", [False, True], ids=["plain", "norm"])
    def test_keeps_the_mean_square_of_its_input(self, norm: bool, projection: str) -> None:
        torch.manual_seed(0)
        layer = EUGen(48, 2000, 1024, norm=norm, projection=projection)
        identity = EUGen(48, 1, 1024, norm=norm, phi="identity", projection=projection)
        x = torch.randn(200, 48)
        with torch.no_grad():
            assert identity.features(x).square().mean().item() == pytest.approx(1.0, rel=0.1)
            assert layer(x).square().mean().item() == pytest.approx(1.0, rel=0.15)

    @pytest.mark.parametrize("shared", [False, True])
    def test_products_of_every_order_have_unit_variance(self, shared: bool) -> None:
        torch.manual_seed(0)
        layer = EUGen(64, 1, 4096, order=3, shared=shared, phi="identity")
        with torch.no_grad():
            blocks = layer.features(torch.randn(100, 64)).split(4096, dim=-1)
        for block in blocks:
            assert block.square().mean().item() == pytest.approx(1.0, rel=0.2)

    def test_total_constant_starts_at_zero(self) -> None:
        for psi in (None, "softplus"):
            assert torch.equal(EUGen(3, 4, 5, psi=psi).effective_bias(), torch.zeros(4))

    def test_projection_matrices_are_drawn_independently(self) -> None:
        layer = EUGen(3, 4, 5, order=2)
        for a, b in itertools.combinations(layer.projections, 2):
            assert not torch.equal(a, b)

    def test_reset_draws_anew(self) -> None:
        layer = EUGen(3, 4, 5)
        before = copy.deepcopy(layer.state_dict())
        layer.reset_parameters()
        assert not torch.equal(layer.projections, before["projections"])
        assert not torch.equal(layer.weight, before["weight"])


class TestGivenRows:
    def test_one_matrix_serves_every_position_and_its_norm_column_starts_at_zero(self) -> None:
        rows = torch.randn(5, 3)
        layer = EUGen(3, 2, 5, order=2, projection=rows)
        assert torch.equal(layer.projections[..., :3], rows.expand(3, 5, 3))
        assert torch.equal(layer.projections[..., 3], torch.zeros(3, 5))

    def test_a_full_stack_is_taken_as_it_is_and_kept_by_reset(self) -> None:
        rows = torch.randn(3, 5, 4)
        layer = EUGen(3, 2, 5, order=2, projection=rows)
        layer.reset_parameters()
        assert torch.equal(layer.projections, rows)

    def test_the_layer_owns_a_copy_apart_from_the_rows_graph(self) -> None:
        rows = torch.zeros(5, 3)
        layer = EUGen(3, 2, 5, norm=False, trainable_projections=False, projection=rows.clone().requires_grad_())
        assert not layer.projections.requires_grad
        layer = EUGen(3, 2, 5, norm=False, projection=rows)
        rows.fill_(1)
        assert torch.equal(layer.projections, torch.zeros(1, 5, 3))

    @pytest.mark.parametrize("shape", [(3,), (5, 2), (4, 3), (2, 5, 3), (3, 5, 5), (1, 3, 5, 3)], ids=str)
    def test_other_shapes_are_refused(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match=r"rows must be \[5, d\] or \[3, 5, d\] with d = 3 or 4"):
            EUGen(3, 2, 5, order=2, projection=torch.zeros(shape))


class TestModule:
    @pytest.mark.parametrize("trainable", [False, True], ids=["frozen", "trainable"])
    def test_state_dict_round_trip(self, trainable: bool) -> None:
        options = {"order": 2, "psi": "sin", "trainable_projections": trainable}
        source, target = EUGen(3, 2, 5, **options), EUGen(3, 2, 5, **options)
        x = torch.randn(4, 3)
        assert not torch.equal(source(x), target(x))
        target.load_state_dict(source.state_dict())
        assert torch.equal(source(x), target(x))

    def test_copies_are_independent(self) -> None:
        layer = EUGen(3, 2, 5, order=2)
        x = torch.randn(4, 3)
        for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            assert torch.equal(twin(x), layer(x))
            with torch.no_grad():
                twin.projections.add_(1)
            assert not torch.equal(twin(x), layer(x))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, F64], ids=str)
    def test_dtype(self, dtype: torch.dtype) -> None:
        layer = EUGen(3, 2, 5, order=2, dtype=dtype)
        assert {tensor.dtype for tensor in layer.state_dict().values()} == {dtype}
        x = torch.randn(4, 3, dtype=dtype)
        y = layer(x)
        assert y.dtype == dtype
        reference = copy.deepcopy(layer).to(torch.float32)(x.float())
        torch.testing.assert_close(y.float(), reference, rtol=0.05, atol=0.05)

    def test_half_precision_norms_do_not_overflow(self) -> None:
        # ||x||^2 = 1.2e6 overflows float16; the norm itself, about 1100, does not.
        layer = EUGen(3, 1, 1, phi="identity", projection=torch.tensor([[0.0, 0.0, 0.0, 1.0]]), dtype=torch.float16)
        features = layer.features(torch.full((1, 3), 640.0, dtype=torch.float16))
        assert features.item() == pytest.approx(640 * 3**0.5, rel=2e-3)

    def test_autocast(self) -> None:
        layer = EUGen(8, 4, 16, order=2)
        x = torch.randn(32, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = layer(x)
        assert y.dtype == torch.bfloat16
        torch.testing.assert_close(y.float(), layer(x), rtol=0.05, atol=0.1)
        y.float().square().sum().backward()
        assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in layer.parameters())

    @pytest.mark.parametrize("psi", [None, "relu"])
    def test_compiles_without_graph_breaks(self, psi: str | None) -> None:
        torch.compiler.reset()
        layer = randomized(EUGen(3, 2, 5, order=2, psi=psi))
        compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
        x = torch.randn(4, 3)
        torch.testing.assert_close(compiled(x), layer(x))

    def test_can_be_made_on_the_meta_device(self) -> None:
        layer = EUGen(3, 2, 5, order=2, psi="relu", device="meta")
        assert {tensor.device.type for tensor in layer.state_dict().values()} == {"meta"}
        layer = layer.to_empty(device="cpu")
        layer.reset_parameters()
        assert layer(torch.randn(4, 3)).isfinite().all()

    def test_a_module_as_phi_belongs_to_the_layer(self) -> None:
        layer = EUGen(3, 2, 5, phi=nn.PReLU())
        assert "phi.weight" in layer.state_dict()
        layer(-torch.ones(1, 3)).sum().backward()
        assert layer.get_parameter("phi.weight").grad is not None

    def test_repr_names_the_arguments(self) -> None:
        text = repr(EUGen(3, 2, 5, order=2, phi=torch.cos, psi="sin", bias=False, trainable_projections=False))
        for part in (
            "in_features=3, out_features=2, num_features=5, order=2, norm=True",
            "phi=cos, psi=sin, bias=False, shared=False, trainable_projections=False",
            "feature_bias=False, projection=orthogonal",
        ):
            assert part in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"in_features": 0}, "in_features must be at least 1"),
        ({"out_features": 0}, "out_features must be at least 1"),
        ({"num_features": 0}, "num_features must be at least 1"),
        ({"order": -1}, "order must not be negative"),
        ({"order": 0, "bias": False}, "needs bias=True"),
        ({"eps": 0.0}, "eps must be positive"),
        ({"phi": "swish"}, "unknown activation 'swish'"),
        ({"psi": "swish"}, "unknown activation 'swish'"),
        ({"projection": "fourier"}, "unknown projection 'fourier'"),
    ],
    ids=str,
)
def test_impossible_arguments_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EUGen(**{"in_features": 3, "out_features": 2, "num_features": 5, **arguments})


def test_an_input_of_the_wrong_width_is_refused() -> None:
    with pytest.raises(ValueError, match=r"EUGen takes \[\.\.\., 3\], got \[5, 4\]"):
        EUGen(3, 2, 4)(torch.zeros(5, 4))


def test_nested_tensors_are_refused() -> None:
    nested = torch.nested.nested_tensor([torch.zeros(2, 3), torch.zeros(4, 3)])
    with pytest.raises(ValueError, match=r"support nested tensors.*use_nested_tensor = False"):
        EUGen(3, 2, 4)(nested)


def test_activations_by_name_are_the_functions_they_are_called() -> None:
    x = torch.linspace(-3, 3, 13, dtype=F64)
    expected = {
        "identity": x,
        "relu": x.clamp(min=0),
        "squared_relu": x.clamp(min=0) ** 2,
        "softplus": (1 + x.exp()).log(),
        "gelu": x * 0.5 * (1 + torch.erf(x / 2**0.5)),
        "sin": x.sin(),
    }
    assert set(expected) == set(ACTIVATIONS)
    for name, values in expected.items():
        torch.testing.assert_close(resolve_activation(name)(x), values)
    assert resolve_activation(torch.tanh) is torch.tanh
    with pytest.raises(TypeError, match="a name or a callable, not int"):
        resolve_activation(3)  # type: ignore[arg-type]


class TestFeatureBias:
    @pytest.mark.parametrize("order", [1, 2])
    @pytest.mark.parametrize("norm", [False, True])
    def test_it_is_a_constant_input(self, order: int, norm: bool) -> None:
        layer = randomized(EUGen(4, 3, 5, order=order, norm=norm, feature_bias=True, phi="gelu", dtype=F64))
        plain = EUGen(5, 3, 5, order=order, norm=False, phi="gelu", dtype=F64)
        if norm:
            plain = EUGen(6, 3, 5, order=order, norm=False, phi="gelu", dtype=F64)
        with torch.no_grad():
            plain.projections.copy_(torch.cat([layer.projections, layer.offsets.unsqueeze(-1)], dim=-1))
            plain.weight.copy_(layer.weight)
            plain.bias.copy_(layer.bias)
        x = normal(6, 4, seed=1)
        ones = torch.ones(6, 1, dtype=F64)
        extended = torch.cat([x, x.norm(dim=1, keepdim=True), ones] if norm else [x, ones], dim=1)
        torch.testing.assert_close(layer(x), plain(extended), rtol=1e-10, atol=1e-10)

    def test_it_starts_at_zero_and_is_trained(self) -> None:
        layer = EUGen(4, 3, 5, feature_bias=True)
        assert not layer.offsets.any()
        layer(torch.randn(6, 4)).square().sum().backward()
        assert layer.offsets.grad.any()
        assert EUGen(4, 3, 5).offsets is None

    def test_the_kernel_form_has_none(self) -> None:
        with pytest.raises(ValueError, match="cannot be combined with psi"):
            EUGen(4, 3, 5, psi="relu", feature_bias=True)


@pytest.mark.parametrize(
    ("weight", "bias", "message"),
    [
        (torch.ones(1, 5), torch.zeros(4), r"the weight must be \[4, 5\], got \[1, 5\]"),
        (torch.ones(4, 5), torch.zeros(1), r"the bias must be \[4\], got \[1\]"),
        (torch.ones(4, 5), None, r"the bias must be \[4\], got None"),
    ],
)
def test_outputs_of_another_shape_are_refused(weight: Tensor, bias: Tensor | None, message: str) -> None:
    layer = EUGen(6, 4, 5)
    before = layer.weight.clone()
    with pytest.raises(ValueError, match=message):
        layer.set_output(weight, bias)
    assert torch.equal(layer.weight, before)


def test_outputs_are_set_only_where_they_are_learned() -> None:
    with pytest.raises(ValueError, match="psi=None"):
        EUGen(6, 4, 6, psi="relu").set_output(torch.ones(4, 6), torch.zeros(4))
    layer = EUGen(6, 4, 5, bias=False)
    layer.set_output(torch.ones(4, 5))
    assert torch.equal(layer.weight, torch.ones(4, 5))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bool])
def test_features_are_kept_by_integers(dtype: torch.dtype) -> None:
    layer = EUGen(6, 4, 5)
    with pytest.raises(ValueError, match="one or more distinct positions from 0 to 4"):
        layer.keep(torch.tensor([0, 1], dtype=dtype))
    layer.keep(torch.tensor([0, 1], dtype=torch.int32))
    assert layer.num_features == 2

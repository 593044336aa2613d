"""Merging is exact: values, gradients, counts and refusals."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from eugen_nerf.layers import SNNK, Dense, EUGen, LowRank, MergedChain, merge_chain
from eugen_nerf.ops.reference import network
from tests.ops.random_networks import randomized

F64 = torch.float64
PHI = ("identity", "relu", "squared_relu", "softplus", "gelu", "sin")


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def assert_equal_to_round_off(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10 * (1 + expected.abs().max().item()))


def gradients(output: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    """Gradients of a loss that weights every output entry differently."""
    loss = (output.square() * normal(*output.shape, seed=9)).sum()
    return list(torch.autograd.grad(loss, inputs, materialize_grads=True))


Maker = Callable[[int, int], list[nn.Module]]


def eugen(**options: object) -> Maker:
    if options.get("psi") is not None:
        options["feature_bias"] = False  # the kernel form has none
    return lambda d, out: [EUGen(d, out, dtype=F64, **options)]  # type: ignore[arg-type]


eugens = st.builds(
    eugen,
    num_features=st.integers(1, 5),
    order=st.integers(1, 3),
    norm=st.booleans(),
    phi=st.sampled_from(PHI),
    psi=st.sampled_from([None, None, "sin", "softplus"]),
    bias=st.booleans(),
    shared=st.booleans(),
    trainable_projections=st.booleans(),
    feature_bias=st.booleans(),
)
others: st.SearchStrategy[Maker] = st.sampled_from(
    [
        lambda d, out: [nn.Linear(d, out, dtype=F64)],
        lambda d, out: [nn.Linear(d, out, bias=False, dtype=F64)],
        lambda d, out: [nn.Linear(d, out, dtype=F64), nn.GELU()],
        lambda d, out: [nn.Sequential(nn.Identity(), nn.Linear(d, out, bias=False, dtype=F64), nn.ReLU())],
        lambda d, out: [nn.Linear(d, out, dtype=F64), nn.Softplus()],
        lambda d, out: [Dense(d, out, "gelu", dtype=F64)],
        lambda d, out: [Dense(d, out, "sin", bias=False, dtype=F64)],
        lambda d, out: [LowRank(d, out, 2, "softplus", dtype=F64)],
        lambda d, out: [SNNK(d, out, 3, "relu", dtype=F64)],
        lambda d, out: [SNNK(d, out, 3, "relu", bias=False, trainable_projections=True, dtype=F64)],
    ]
)


@st.composite
def chains(draw: st.DrawFn) -> nn.Sequential:
    """One to four layers with widths that give every shape of W: wide, tall, square and single rows."""
    width = draw(st.integers(1, 9))
    modules: list[nn.Module] = []
    for _ in range(draw(st.integers(1, 4))):
        out = draw(st.integers(1, 9))
        modules += draw(st.one_of(eugens, others))(width, out)
        width = out
    return randomized(nn.Sequential(*modules), seed=draw(st.integers(0, 100)))


def in_features(modules: nn.Sequential) -> int:
    first = modules[0]
    return first[1].in_features if isinstance(first, nn.Sequential) else first.in_features


@given(chains())
@settings(max_examples=150, deadline=None, derandomize=True)
def test_merged_chain_equals_the_factored_one_in_values_and_gradients(modules: nn.Sequential) -> None:
    x = normal(6, in_features(modules)).requires_grad_()
    chain = merge_chain(modules)
    factored, merged = modules(x), network(x, chain)
    assert_equal_to_round_off(merged, factored)
    assert (chain.in_features, chain.out_features) == (x.shape[1], factored.shape[1])

    inputs = [x, *modules.parameters()]
    for from_merged, from_factored in zip(gradients(merged, inputs), gradients(factored, inputs), strict=True):
        assert_equal_to_round_off(from_merged, from_factored)

    with torch.no_grad():
        assert_equal_to_round_off(network(x, merge_chain(modules)), factored)


def tall_chain(out: int = 20, m: int = 4, bias: bool = True, order: int = 1) -> nn.Sequential:
    """Two EUGen layers with a norm inside the chain: W is [20, 4] and has to be reduced to about 4 rows."""
    return randomized(
        nn.Sequential(
            EUGen(3, out, m, order=order, bias=bias, dtype=F64),
            EUGen(out, 5, 6, dtype=F64),
            nn.Linear(5, 2, dtype=F64),
        )
    )


class TestNormInsideAChain:
    @pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
    def test_the_quadratic_form_has_as_many_rows_as_there_are_features(self, bias: bool) -> None:
        modules = tall_chain(bias=bias)
        trained = merge_chain(modules).stages[1]
        with torch.no_grad():
            fixed = merge_chain(modules).stages[1]
        assert trained.norm_factor is not None
        assert fixed.norm_factor is not None
        assert trained.norm_factor.shape == ((5, 4) if bias else (4, 4))
        assert fixed.norm_factor.shape == (4, 4)
        assert (fixed.norm_constant is not None) == bias

    def test_the_quadratic_form_is_exact(self) -> None:
        modules = tall_chain()
        first = modules[0]
        features = normal(7, 4, seed=2)
        expected = (features @ first.weight.T + first.bias).square().sum(dim=1)
        with torch.no_grad():
            fixed = merge_chain(modules).stages[1]
        for stage in (merge_chain(modules).stages[1], fixed):
            assert stage.norm_factor is not None
            reduced = (features @ stage.norm_factor.T + stage.norm_offset).square().sum(dim=1)
            constant = 0.0 if stage.norm_constant is None else stage.norm_constant
            torch.testing.assert_close(reduced + constant, expected, rtol=1e-12, atol=0)

    @pytest.mark.parametrize("rank", [0, 1, 2])
    @pytest.mark.parametrize("bias_inside", [False, True], ids=["bias outside", "bias in the column space"])
    def test_singular_weights_merge_exactly_with_exact_gradients(self, rank: int, bias_inside: bool) -> None:
        modules = tall_chain()
        first = modules[0]
        with torch.no_grad():
            first.weight.copy_(normal(20, rank, seed=3) @ normal(rank, 4, seed=4))
            if bias_inside:
                first.bias.copy_(first.weight @ normal(4, seed=5))
        x = normal(6, 3).requires_grad_()
        factored, merged = modules(x), network(x, merge_chain(modules))
        assert_equal_to_round_off(merged, factored)
        inputs = [x, *modules.parameters()]
        for from_merged, from_factored in zip(gradients(merged, inputs), gradients(factored, inputs), strict=True):
            assert_equal_to_round_off(from_merged, from_factored)
        with torch.no_grad():
            assert_equal_to_round_off(network(x, merge_chain(modules)), factored)

    def test_a_leading_linear_layer_takes_the_norm_of_its_output(self) -> None:
        modules = randomized(nn.Sequential(nn.Linear(3, 8, dtype=F64), EUGen(8, 2, 4, dtype=F64)))
        x = normal(6, 3)
        assert_equal_to_round_off(network(x, merge_chain(modules)), modules(x))

    def test_half_precision_weights_can_be_reduced(self) -> None:
        modules = tall_chain().to(torch.bfloat16)
        x = normal(6, 3)
        chain = merge_chain(modules)
        assert chain.weight.dtype == torch.bfloat16
        merged = network(x.bfloat16(), chain).double()
        torch.testing.assert_close(merged, modules.double()(x), rtol=0.1, atol=0.1)

    def test_nor_does_their_constant_part(self) -> None:
        """Of biases beside which nothing else matters, without gradients."""
        layers = nn.Sequential(EUGen(16, 1024, 8, norm=False), EUGen(1024, 8, 8), nn.Linear(8, 3)).half()
        with torch.no_grad():
            layers[0].bias.fill_(10)
            merged = merge_chain(layers).evaluate(torch.randn(4, 16).half())
            assert merged.isfinite().all()

    def test_half_precision_norms_do_not_overflow(self) -> None:
        modules = tall_chain().half()
        with torch.no_grad():
            x = normal(6, 3)
            modules[0].weight.mul_(600 / modules[0].double()(x).norm(dim=-1).max())
            merged = network(x.half(), merge_chain(modules.half())).double()
        torch.testing.assert_close(merged, modules.double()(x), rtol=0.02, atol=0.02 * float(merged.abs().max()))


@pytest.mark.parametrize("norm", [False, True])
def test_an_output_with_several_consumers_is_merged_into_each(norm: bool) -> None:
    """A trunk with three heads: a linear one, an EUGen one, and one that also receives other inputs."""
    trunk = randomized(nn.Sequential(EUGen(5, 20, 6, dtype=F64), EUGen(20, 30, 4, norm=False, dtype=F64)))
    linear = randomized(nn.Sequential(nn.Linear(30, 2, dtype=F64)), seed=3)
    eugen_head = randomized(nn.Sequential(EUGen(30, 9, 7, norm=norm, order=2, dtype=F64)), seed=4)
    beside = randomized(nn.Sequential(EUGen(33, 9, 7, norm=norm, dtype=F64), nn.Linear(9, 2, dtype=F64)), seed=5)
    x, views = normal(8, 5), normal(8, 3, seed=2)
    chain = merge_chain(trunk)
    features = x
    for stage in chain.stages:
        features = stage.features(features)
    assert features.shape == (8, 4)

    for head in (linear, eugen_head):
        merged = merge_chain(head, after=(chain.weight, chain.bias))
        assert merged.in_features == 4
        assert_equal_to_round_off(network(features, merged), head(trunk(x)))
    eye, zeros = torch.eye(3, dtype=F64), torch.zeros(3, dtype=F64)
    merged = merge_chain(beside, after=(torch.block_diag(eye, chain.weight), torch.cat([zeros, chain.bias])))
    assert merged.in_features == 7
    result = network(torch.cat([views, features], dim=1), merged)
    assert_equal_to_round_off(result, beside(torch.cat([views, trunk(x)], dim=1)))


def test_training_through_the_merged_chain_follows_the_factored_one() -> None:
    factored, merged = tall_chain(order=2), tall_chain(order=2)
    x, target = normal(32, 3), normal(32, 2, seed=3)
    optimizers = [torch.optim.SGD(modules.parameters(), lr=1e-3) for modules in (factored, merged)]
    for _ in range(5):
        for modules, optimizer in zip((factored, merged), optimizers, strict=True):
            output = modules(x) if modules is factored else network(x, merge_chain(modules))
            optimizer.zero_grad()
            (output - target).square().mean().backward()
            optimizer.step()
    start = tall_chain(order=2)
    for a, b, c in zip(factored.parameters(), merged.parameters(), start.parameters(), strict=True):
        assert_equal_to_round_off(b, a)
        assert not torch.equal(a, c)


class TestCounts:
    """Sizes of the merged network, counted by hand."""

    @staticmethod
    def counts(*modules: nn.Module) -> tuple[int, int]:
        with torch.no_grad():
            chain = merge_chain(list(modules))
        return chain.num_parameters, chain.multiply_adds

    def test_narrow_network(self) -> None:
        # EUGen without a norm is a two-layer network of m units, whatever its nominal width.
        for width in (10, 1000):
            assert self.counts(EUGen(3, width, 4, norm=False), nn.Linear(width, 2)) == (
                4 * 3 + 2 * 4 + 2,
                4 * 3 + 2 * 4,
            )

    def test_norm_of_the_input(self) -> None:
        # One column more, and d multiply-adds for the squares.
        assert self.counts(EUGen(3, 10, 4), nn.Linear(10, 2)) == (4 * 4 + 2 * 4 + 2, 4 * 4 + 3 + 2 * 4)

    def test_products(self) -> None:
        # Order 3: six projections and three products per feature; shared, three projections and two products.
        assert self.counts(EUGen(3, 2, 4, order=3, norm=False)) == (
            6 * 12 + 2 * 12 + 2,
            6 * 12 + 3 * 4 + 2 * 12,
        )
        assert self.counts(EUGen(3, 2, 4, order=3, norm=False, shared=True)) == (
            3 * 12 + 2 * 12 + 2,
            3 * 12 + 2 * 4 + 2 * 12,
        )

    def test_norm_inside(self) -> None:
        # Second stage: A [6, 4], c [6], norm column [6], R [4, 4], its offset [4], a constant; four squares.
        parameters, multiply_adds = self.counts(EUGen(3, 20, 4, norm=False), EUGen(20, 5, 6))
        assert parameters == 12 + (24 + 6 + 6 + 16 + 4 + 1) + (5 * 6 + 5)
        assert multiply_adds == 12 + (24 + 6 + 16 + 4) + 5 * 6

    def test_dense_and_low_rank(self) -> None:
        assert self.counts(Dense(3, 8), nn.Linear(8, 2)) == (3 * 8 + 8 + 8 * 2 + 2, 3 * 8 + 8 * 2)
        assert self.counts(LowRank(6, 8, 2), nn.Linear(8, 2)) == (6 * 2 + 2 * 8 + 8 + 8 * 2 + 2, 12 + 16 + 16)

    def test_a_linear_chain_is_one_matrix(self) -> None:
        chain = merge_chain([nn.Linear(3, 50), nn.Linear(50, 2, bias=False)])
        assert chain.stages == ()
        assert (chain.num_parameters, chain.multiply_adds) == (3 * 2 + 2, 3 * 2)


def test_stages_are_contiguous_matrices() -> None:
    chain = merge_chain([EUGen(3, 10, 4, order=2), EUGen(10, 5, 6, norm=False), nn.Linear(5, 2)])
    assert all(s.projections.is_contiguous() for s in chain.stages)
    assert chain.stages[0].norm_column is not None
    assert chain.stages[0].norm_column.is_contiguous()
    assert chain.weight.is_contiguous()


def test_parameters_are_merged_in_their_own_precision_under_autocast() -> None:
    modules = [EUGen(3, 20, 4), EUGen(20, 5, 6), nn.Linear(5, 2)]
    expected = merge_chain(modules)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = merge_chain(modules)
    assert torch.equal(actual.weight, expected.weight)
    for a, b in zip(actual.stages, expected.stages, strict=True):
        assert torch.equal(a.projections, b.projections)


def test_merging_compiles_without_graph_breaks() -> None:
    torch.compiler.reset()
    modules = tall_chain(order=2)

    def forward(x: Tensor) -> Tensor:
        return network(x, merge_chain(modules))

    x = normal(6, 3)
    compiled = torch.compile(forward, backend="aot_eager", fullgraph=True)
    assert_equal_to_round_off(compiled(x), modules(x))


class TestRefusals:
    @pytest.mark.parametrize("layer", [EUGen(3, 4, 5), SNNK(3, 4, 5)], ids=["EUGen", "SNNK"])
    def test_an_activation_after_a_layer_that_replaces_one(self, layer: nn.Module) -> None:
        name = type(layer).__name__
        with pytest.raises(ValueError, match=rf"layer 1 \(ReLU\) follows {name}: .* forbids merging"):
            merge_chain([layer, nn.ReLU()])

    def test_an_activation_after_eugen_and_linear_is_the_linear_layers(self) -> None:
        modules = randomized(nn.Sequential(EUGen(3, 9, 5, dtype=F64), nn.Linear(9, 4, dtype=F64), nn.ReLU()))
        x = normal(6, 3)
        assert_equal_to_round_off(network(x, merge_chain(modules)), modules(x))

    @pytest.mark.parametrize(
        ("modules", "message"),
        [
            ([], "the chain is empty"),
            ([nn.Identity()], "the chain is empty"),
            ([nn.ReLU(), nn.Linear(3, 4)], r"layer 0 \(ReLU\).*must follow a torch.nn.Linear"),
            ([Dense(3, 4), nn.ReLU()], r"layer 1 \(ReLU\).*must follow a torch.nn.Linear"),
            ([nn.Linear(3, 4), nn.ReLU(), nn.ReLU()], r"layer 2 \(ReLU\).*must follow a torch.nn.Linear"),
            ([EUGen(3, 4, 5), EUGen(3, 4, 5)], r"layer 1 \(EUGen\) takes 3 inputs but receives 4"),
            (
                [nn.Linear(3, 4), nn.ReLU(), nn.Linear(5, 2)],
                r"layer 2 \(Linear\) takes 5 inputs but receives 4",
            ),
            (
                [EUGen(3, 4, 5, phi=torch.tanh)],
                r"layer 0 \(EUGen\) uses the callable tanh; only activations given by",
            ),
            ([Dense(3, 4, torch.tanh)], r"layer 0 \(Dense\) uses the callable tanh"),
            ([EUGen(3, 4, 5, order=0)], "order 0, a constant with no features"),
            ([SNNK(3, 4, 6, "cos")], r"has cos features, which contain \|\|x\|\|\^2"),
            ([nn.Linear(3, 4), nn.Tanh()], r"layer 1 \(Tanh\) cannot be merged"),
            ([nn.Linear(3, 4), nn.GELU("tanh")], r"cannot be merged: GELU\(approximate='tanh'\)"),
            ([nn.Linear(3, 4), nn.Softplus(beta=2)], "cannot be merged: Softplus"),
            ([nn.Conv1d(3, 4, 1)], r"layer 0 \(Conv1d\) cannot be merged"),
        ],
        ids=lambda value: value if isinstance(value, str) else None,
    )
    def test_other_chains(self, modules: list[nn.Module], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            merge_chain(modules)


class Residual(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


class Scaled(EUGen):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Capped(nn.ReLU):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).clamp(max=1)


class Shifted(nn.Identity):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1


class Doubled(EUGen):
    def features(self, x: Tensor) -> Tensor:
        return 2 * super().features(x)


class Negated(nn.Linear):
    def __call__(self, x: Tensor) -> Tensor:
        return -super().__call__(x)  # type: ignore[no-any-return]


def patched(layer: nn.Module) -> nn.Module:
    forward = layer.forward
    layer.forward = lambda x: 2 * forward(x)  # type: ignore[method-assign]
    return layer


def hooked(layer: nn.Module, kind: str = "forward") -> nn.Module:
    getattr(layer, f"register_{kind}_hook")(lambda *_: None)
    return layer


class TestWhatIsDoneBesideTheParameters:
    """Merging only uses parameters, so anything else would be lost silently."""

    @pytest.mark.parametrize(
        ("modules", "message"),
        [
            ([EUGen(6, 6, 3), Residual(nn.Linear(6, 6)), nn.Linear(6, 2)], "Residual has its own forward"),
            ([Scaled(6, 6, 3)], "Scaled has its own forward"),
            ([Doubled(6, 6, 3)], "Doubled has its own features"),
            ([Negated(6, 6)], "Negated has its own __call__"),
            ([nn.Linear(6, 6), Capped(), nn.Linear(6, 2)], "Capped has its own forward"),
            ([nn.Linear(6, 6), Shifted(), nn.Linear(6, 2)], "Shifted has its own forward"),
            ([patched(nn.Linear(6, 6))], "Linear has its own forward"),
            ([patched(EUGen(6, 6, 3))], "EUGen has its own forward"),
            *(
                ([hooked(EUGen(6, 6, 3), kind)], "EUGen has hooks")
                for kind in ("forward", "forward_pre", "full_backward", "full_backward_pre")
            ),
            ([hooked(nn.Sequential(nn.Linear(6, 6))), nn.Linear(6, 2)], "Sequential has hooks"),
            ([nn.utils.spectral_norm(nn.Linear(6, 6))], "Linear has hooks"),
            ([nn.utils.spectral_norm(EUGen(6, 6, 3))], "EUGen has hooks"),
        ],
    )
    def test_is_refused(self, modules: list[nn.Module], message: str) -> None:
        for chain in (modules, nn.Sequential(*modules)):
            with pytest.raises(ValueError, match=f"merge_chain: {message}, which merging would ignore"):
                merge_chain(chain)

    def test_of_the_outermost_sequential_too(self) -> None:
        with pytest.raises(ValueError, match="Residual has its own forward"):
            merge_chain(Residual(nn.Linear(6, 6)))

    def test_parametrizations_are_part_of_the_parameters(self) -> None:
        layers = nn.Sequential(EUGen(6, 5, 3, dtype=F64), nn.Linear(5, 2, dtype=F64))
        nn.utils.parametrizations.weight_norm(layers[0])
        nn.utils.parametrizations.spectral_norm(layers[1])
        layers.eval()
        assert_equal_to_round_off(merge_chain(layers).evaluate(normal(9, 6)), layers(normal(9, 6)))


def test_a_single_layer_is_a_chain() -> None:
    layer = randomized(nn.Sequential(EUGen(6, 5, 3, dtype=F64)))[0]
    assert_equal_to_round_off(merge_chain(layer).evaluate(normal(9, 6)), layer(normal(9, 6)))


def test_merged_chain_is_immutable() -> None:
    chain: MergedChain = merge_chain([nn.Linear(3, 4)])
    with pytest.raises(AttributeError):
        chain.bias = None  # type: ignore[misc]


@pytest.mark.parametrize("frozen", [True, False])
def test_forward_mode_derivatives_through_a_norm(frozen: bool) -> None:
    """Also of parameters that require no gradient, as `torch.func.functional_call` takes them."""
    layers = randomized(nn.Sequential(EUGen(3, 12, 4, dtype=F64), EUGen(12, 5, 3, dtype=F64)))
    parameters = {name: p.detach() if frozen else p for name, p in layers.named_parameters()}
    tangents = {name: normal(*p.shape, seed=i) for i, (name, p) in enumerate(parameters.items())}
    x = normal(7, 3)

    class Merged(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = layers

        def forward(self, x: Tensor) -> Tensor:
            return merge_chain(self.layers).evaluate(x)

    def merged(values: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(Merged(), {f"layers.{name}": v for name, v in values.items()}, (x,))

    def factored(values: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(layers, values, (x,))

    expected = torch.func.jvp(factored, (parameters,), (tangents,))
    for actual, wanted in zip(torch.func.jvp(merged, (parameters,), (tangents,)), expected, strict=True):
        assert_equal_to_round_off(actual, wanted)


def test_an_activation_at_the_end_costs_nothing() -> None:
    chain = merge_chain([nn.Linear(6, 40, dtype=F64), nn.ReLU()])
    assert (chain.multiply_adds, chain.num_parameters) == (240, 280)
    assert chain.evaluate(normal(3, 6)).shape == (3, 40)


def test_a_chain_in_factors_is_the_same_chain() -> None:
    """Also if it ends with an activation, whose identity matrix is not evaluated."""
    for modules in ([EUGen(3, 10, 4), nn.Linear(10, 2)], [nn.Linear(6, 40), nn.ReLU()]):
        chain = merge_chain(modules)
        again = chain.factored().merged()
        assert (again.ends, again.multiply_adds, again.num_parameters) == (
            chain.ends,
            chain.multiply_adds,
            chain.num_parameters,
        )
        x = torch.randn(5, chain.in_features)
        assert torch.equal(again.evaluate(x), chain.evaluate(x))


def test_layers_in_a_list_and_on_the_meta_device() -> None:
    layers = [EUGen(6, 9, 3, device="meta"), nn.Linear(9, 2, device="meta")]
    counts = {merge_chain(given).multiply_adds for given in (layers, nn.ModuleList(layers), nn.Sequential(*layers))}
    assert counts == {6 * 3 + 3 + 6 + 3 * 2}


def test_a_detached_chain_shares_values() -> None:
    layers = nn.Sequential(EUGen(6, 9, 3, feature_bias=True), EUGen(9, 4, 2), nn.Linear(4, 2))
    chain = merge_chain(layers)
    detached = chain.detach()
    x = torch.randn(5, 6)
    assert torch.equal(detached.evaluate(x), chain.evaluate(x))
    assert not detached.evaluate(x).requires_grad
    assert detached.weight.data_ptr() == chain.weight.data_ptr()

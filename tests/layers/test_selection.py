"""Feature selection in trained networks: which features stay, the outputs, and training afterwards."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eugen_nerf.layers import EUGen, LowRank, build_network
from eugen_nerf.layers.selection import follow, select_features

F64 = torch.float64


def inputs(n: int = 500, d: int = 6, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=F64)


def network(num_features: int, hidden_layers: int = 2, **options: Any) -> nn.Sequential:
    torch.manual_seed(0)
    return build_network("eugen", 6, 12, hidden_layers, 3, num_features, **options).double()


def pairs(x: Tensor, parts: int = 3) -> list[tuple[Tensor, Tensor]]:
    return [(part, part) for part in x.chunk(parts)]


class TestKeep:
    @pytest.mark.parametrize("order", [1, 2])
    @pytest.mark.parametrize("shared", [False, True])
    def test_what_stays_does_what_it_did(self, order: int, shared: bool) -> None:
        torch.manual_seed(0)
        layer = EUGen(6, 4, 5, order=order, shared=shared, feature_bias=True, dtype=F64)
        nn.init.normal_(layer.offsets)  # type: ignore[arg-type]
        index = torch.tensor([0, 2, 3])
        columns = torch.cat([index + 5 * k for k in range(order)])
        wanted = layer.features(inputs())[:, columns] @ layer.weight[:, columns].T + layer.bias
        layer.keep(index)
        assert layer.num_features == 3
        torch.testing.assert_close(layer(inputs()), wanted)

    def test_by_number_and_frozen(self) -> None:
        layer = EUGen(6, 4, 5, trainable_projections=False)
        rows = layer.projections[:, :2].clone()
        layer.keep(2)
        assert torch.equal(layer.projections, rows)
        assert not isinstance(layer.projections, nn.Parameter)

    def test_gradients_fit_while_a_graph_of_before_is_alive(self) -> None:
        layer = EUGen(6, 4, 5)
        loss = layer(inputs().float()).square().mean()
        loss.backward()
        parameters = list(layer.parameters())
        layer.keep(3)
        assert all(parameter.grad is None for parameter in (layer.projections, layer.weight))
        layer(inputs().float()).square().mean().backward()
        assert all(a is b and a.grad is not None and a.grad.shape == a.shape
                   for a, b in zip(layer.parameters(), parameters, strict=True))  # fmt: skip
        assert loss.grad_fn is not None

    def test_kernel_form(self) -> None:
        with pytest.raises(ValueError, match=r"g\(W\) is a learned parameter"):
            EUGen(6, 4, 5, psi="identity").keep(3)

    @pytest.mark.parametrize(
        "features", [0, -1, 6, [1, 1], [0, 5], [], [[0, 1]], [True, False, True, False, False]], ids=str
    )
    def test_features_that_are_not_there(self, features: Any) -> None:
        layer = EUGen(6, 4, 5)
        with pytest.raises(ValueError, match="one or more distinct positions from 0 to 4"):
            layer.keep(torch.tensor(features) if isinstance(features, list) else features)
        assert layer.weight.shape == (4, 5)

    def test_parameters_that_are_computed_from_others(self) -> None:
        layer = nn.utils.parametrizations.weight_norm(EUGen(6, 4, 5))
        for edit in (lambda: layer.keep(3), lambda: layer.set_output(torch.zeros(4, 5), torch.zeros(4))):
            with pytest.raises(ValueError, match=r"computed by torch\.nn\.utils\.parametrize cannot be set or cut"):
                edit()

    def test_other_parameters_may_be_computed(self) -> None:
        layer = EUGen(6, 4, 5)
        nn.utils.parametrizations.orthogonal(layer, "projections")
        layer.set_output(torch.zeros(4, 5), torch.ones(4))
        assert torch.equal(layer(inputs().float()), torch.ones(len(inputs()), 4))
        with pytest.raises(ValueError, match="parametrize cannot be set or cut"):
            layer.keep(3)


@pytest.mark.parametrize(
    "options", [{"norm_first": False}, {}, {"order": 2}, {"order": 3, "shared": True, "phi": "identity"}], ids=str
)
def test_features_without_influence_are_the_ones_to_go(options: dict[str, Any]) -> None:
    net = network(10, hidden_layers=1, **options)
    used = [1, 4, 7, 8]
    layer = net[0]
    assert isinstance(layer, EUGen)
    with torch.no_grad():
        layer.weight[:, layer.columns(torch.tensor([i for i in range(10) if i not in used]))] = 0
    wanted = net(inputs())
    (kept,) = select_features(net, 4, pairs(inputs()))
    assert kept.layer is layer
    assert kept.features.tolist() == used
    assert kept.explained > 1 - 1e-9
    # The ridge penalty shrinks the weights slightly.
    torch.testing.assert_close(net(inputs()), wanted, rtol=1e-4, atol=1e-4)


def test_the_choice_is_about_the_best_there_is() -> None:
    """Compare with all choices of 3 out of 8 features of one layer, with output weights fitted to each choice."""
    net = network(8, hidden_layers=1)
    x = inputs()
    wanted = net(x).detach()

    def error(index: tuple[int, ...]) -> float:
        layer, last = net
        features = layer.features(x)[:, list(index)]  # type: ignore[operator]
        design = torch.cat([features, torch.ones_like(x[:, :1])], dim=1)
        outputs = layer(x) @ last.weight.T  # type: ignore[operator]
        solution = torch.linalg.lstsq(design, outputs).solution
        return (design @ solution - outputs).square().mean().item()

    with torch.no_grad():
        errors = sorted(error(index) for index in itertools.combinations(range(8), 3))
    select_features(net, 3, pairs(x))
    reached = (net(x) - wanted).square().mean().item()
    assert reached < 1.2 * errors[0]
    assert reached < 0.7 * errors[len(errors) // 2]


def test_later_layers_make_up_for_what_earlier_ones_lost() -> None:
    net = network(10)
    x = inputs()
    wanted = net(x).detach()
    alone = copy.deepcopy(net)
    # As if the second layer still received the first layer's former output.
    first = select_features(alone[:1], 4, pairs(x))  # type: ignore[arg-type]
    middle = [(net[0](x), net[0](x))]
    second = select_features(alone[1:], 4, middle)  # type: ignore[arg-type]
    assert (len(first), len(second)) == (1, 1)
    select_features(net, 4, pairs(x))
    assert (net(x) - wanted).square().mean() < (alone(x) - wanted).square().mean()


def test_a_later_layer_is_fitted_to_what_it_receives_now() -> None:
    net, x = network(10), inputs()
    with torch.no_grad():
        wanted = net[:2](x)
        select_features(net, 4, pairs(x))
        design = torch.cat([net[1].features(net[0](x)), torch.ones_like(x[:, :1])], dim=1)  # type: ignore[operator]
        best = torch.linalg.lstsq(design, wanted).solution
        least = (design @ best - wanted).square().sum()
        error = (net[:2](x) - wanted).square().sum()
    assert error <= least * (1 + 1e-4)


def test_features_of_outputs_that_the_next_layer_does_not_see_are_the_ones_to_go() -> None:
    net = network(8, norm_first=False)
    first, second = net[0], net[1]
    assert isinstance(first, EUGen)
    assert isinstance(second, EUGen)
    used = [1, 3, 5, 7]
    with torch.no_grad():
        second.projections[:, :, 6:] = 0
        first.weight[:6, [0, 2, 4, 6]] = 0
        first.weight[6:, [0, 2, 4, 6]] *= 10  # the outputs themselves depend most on these
    kept = select_features(net, 4, pairs(inputs()))
    assert kept[0].features.tolist() == used


def test_layers_with_few_features_stay_as_they_are() -> None:
    net = network(4)
    before = copy.deepcopy(net.state_dict())
    assert select_features(net, 4, pairs(inputs())) == []
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("order", [1, 2])
def test_adam_goes_on(order: int) -> None:
    net = network(10, feature_bias=True, order=order)
    x = inputs()
    target = x[:, :3].sin()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)

    def train(steps: int) -> float:
        for _ in range(steps):
            optimizer.zero_grad()
            loss = (net(x) - target).square().mean()
            loss.backward()
            optimizer.step()
        return loss.item()

    train(200)
    before = {name: optimizer.state[p]["exp_avg"].clone() for name, p in net.named_parameters()}
    kept = select_features(net, 5, pairs(x))
    follow(optimizer, kept)
    for name, parameter in net.named_parameters():
        state = optimizer.state[parameter]
        assert state["exp_avg"].shape == state["exp_avg_sq"].shape == parameter.shape
        layer, kind = name.split(".")
        if int(layer) < 2 and kind != "bias":
            one = kept[int(layer)]
            index = one.columns if kind == "weight" else one.features
            assert torch.equal(state["exp_avg"], before[name].index_select(1, index))
        else:
            assert torch.equal(state["exp_avg"], before[name])
        assert state["step"] == 200
    at_first = (net(x) - target).square().mean().item()
    assert train(100) < at_first


def test_adafactor_goes_on() -> None:
    """Adafactor keeps means over rows and over columns."""
    net = network(10)
    optimizer = torch.optim.Adafactor(net.parameters(), lr=1e-2)

    def step() -> None:
        optimizer.zero_grad()
        net(inputs()).square().mean().backward()
        optimizer.step()

    step()
    follow(optimizer, select_features(net, 5, pairs(inputs())))
    step()


@pytest.mark.parametrize(
    ("net", "number", "batches", "message"),
    [
        (lambda: network(4), 0, pairs(inputs()), "at least 1"),
        (lambda: network(4), 2, [], "no samples"),
        (lambda: network(4), 2, pairs(inputs(0), 1), "no samples"),
        (lambda: network(4, order=0), 2, pairs(inputs()), "order 1"),
        (lambda: nn.Sequential(LowRank(6, 4, 2)), 2, pairs(inputs()), "LowRank"),
        (lambda: network(4), 2, pairs(inputs() * torch.nan), "not finite"),
        (lambda: network(4, order=2), 2, pairs(inputs() * torch.nan), "not finite"),
    ],
)
def test_what_cannot_be(net: Any, number: int, batches: Any, message: str) -> None:
    given = net()
    before = copy.deepcopy(given.state_dict())
    with pytest.raises(ValueError, match=message):
        select_features(given, number, batches)
    after = given.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_parametrized_layers_are_refused_before_any_layer_is_cut() -> None:
    net = network(8)
    nn.utils.parametrizations.weight_norm(net[1])
    with pytest.raises(ValueError, match="parametrize cannot be cut"):
        select_features(net, 4, pairs(inputs()))
    assert [layer.num_features for layer in net[:2]] == [8, 8]  # type: ignore[union-attr]

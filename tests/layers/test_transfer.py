"""Transfer from dense layers to EUGen layers: exact where possible, front to back, and mergeable afterwards."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from nerfstudio.field_components.mlp import MLP
from torch import Tensor, nn

from eugen_nerf.layers import ConversionPlan, Dense, EUGen, LayerStack, LowRank, convert, merge_chain
from eugen_nerf.layers.transfer import LayerFit, TransferOptions, _consumer, fit_layer, transfer_network, units
from eugen_nerf.ops.reference import network as evaluate

F64 = torch.float64


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def teacher(*widths: int, seed: int = 0) -> nn.Sequential:
    """A random MLP whose units have different weights, like those of a trained one."""
    layers: list[nn.Module] = []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for d, out in itertools.pairwise(widths[:-1]):
            layer = Dense(d, out, dtype=F64)
            with torch.no_grad():
                layer.bias.normal_(std=0.3)
                layer.weight.mul_(torch.logspace(0, -1.5, out, dtype=F64)[:, None])
            layers.append(layer)
        layers.append(nn.Linear(widths[-2], widths[-1], dtype=F64))
    return nn.Sequential(*layers)


def student_of(network: nn.Module, m: int, **plan: object) -> nn.Module:
    options = {"norm": False, "feature_bias": True, **plan}
    return convert(copy.deepcopy(network), ConversionPlan(m, **options)).module  # type: ignore[arg-type]


def batches(x: Tensor, parts: int = 3) -> list[tuple[Tensor, Tensor]]:
    return [(part, part) for part in x.chunk(parts)]


def distance(network: nn.Module, student: nn.Module, x: Tensor) -> float:
    """Mean squared difference divided by the variance of the teacher's outputs."""
    with torch.no_grad():
        y = network(x)
        return ((student(x) - y).square().mean() / y.var()).item()


class TestExactness:
    @pytest.mark.parametrize("selection", ["contribution", "leverage", "random"])
    def test_all_of_a_teachers_units_are_the_teacher(self, selection: str) -> None:
        network = teacher(5, 12, 12, 3)
        student = student_of(network, 12)
        fits = transfer_network(
            network, student, batches(normal(400, 5)), TransferOptions(selection=selection, ridge=1e-13)
        )
        assert [fit.position for fit in fits] == [0, 1]
        assert all(fit.explained > 1 - 1e-9 and fit.samples == 400 for fit in fits)
        assert distance(network, student, normal(50, 5, seed=1)) < 1e-9

    def test_units_that_the_teacher_does_not_need_are_the_ones_left_out(self) -> None:
        network = teacher(5, 12, 12, 3)
        with torch.no_grad():
            network[0].weight[[1, 4, 7]] = 0  # these are constants
            network[1].weight[:, [2, 3]] = 0  # and the next layer ignores these
        student = student_of(network, 7, layers=("0",))
        transfer_network(network, student, batches(normal(400, 5)), TransferOptions(ridge=1e-13))
        assert distance(network, student, normal(50, 5, seed=1)) < 1e-9

    def test_it_survives_merging(self) -> None:
        network = teacher(5, 16, 16, 3)
        student = student_of(network, 8)
        transfer_network(network, student, batches(normal(400, 5)), TransferOptions())
        x = normal(50, 5, seed=1)
        chain = merge_chain(student)
        torch.testing.assert_close(evaluate(x, chain), student(x), rtol=1e-10, atol=1e-10)
        assert chain.multiply_adds == 5 * 8 + 8 * 8 + 8 * 3

    def test_skip_connections_of_nerfstudios_mlp(self) -> None:
        torch.manual_seed(0)
        network = MLP(4, 5, 12, 3, skip_connections=(2,), activation=nn.ReLU(), out_activation=nn.Sigmoid()).double()
        student = student_of(network, 12, layers=("layers.1", "layers.2"))
        assert isinstance(student, LayerStack)
        fits = transfer_network(network, student, batches(normal(400, 4)), TransferOptions(ridge=1e-13))
        assert [fit.position for fit in fits] == [1, 2]
        assert distance(network, student, normal(50, 4, seed=1)) < 1e-9


class TestFrontToBack:
    def test_later_layers_see_what_earlier_ones_became(self) -> None:
        """The second layer's solution is the least-squares one for inputs from the converted first layer."""
        network, x = teacher(5, 16, 16, 3), normal(600, 5)
        student = student_of(network, 6)
        (_, second) = transfer_network(network, student, batches(x), TransferOptions())
        with torch.no_grad():
            received, wanted = student[0](x), network[:2](x)
            features = student[1].features(received)
            ones = torch.ones(600, 1, dtype=F64)
            best = torch.linalg.lstsq(torch.cat([features, ones], dim=1), wanted).solution
            least = (torch.cat([features, ones], dim=1) @ best - wanted).square().sum()
            error = (student[1](received) - wanted).square().sum()
        assert error <= least * (1 + 1e-4)
        total = (wanted - wanted.mean(dim=0)).square().sum()
        assert second.explained == pytest.approx(1 - (error / total).item(), abs=1e-9)

    def test_inputs_of_teacher_and_student_may_differ(self) -> None:
        network, x = teacher(5, 16, 3), normal(600, 5)
        student = student_of(network, 16)
        moved = x + 0.5
        transfer_network(network, student, [(x, moved)], TransferOptions(rows="gaussian", ridge=1e-9))
        assert (student(moved) - network(x)).square().mean() < 0.5 * (student(x) - network(x)).square().mean()

    def test_fits_are_reported_as_they_come(self) -> None:
        network, told = teacher(5, 8, 8, 3), list[LayerFit]()
        student = student_of(network, 4)
        fits = transfer_network(network, student, batches(normal(100, 5)), TransferOptions(), told.append)
        assert told == fits


class TestOptions:
    def test_choosing_by_contribution_beats_chance(self) -> None:
        network, x, unseen = teacher(6, 64, 64, 3), normal(2000, 6), normal(500, 6, seed=1)

        def error(selection: str, seed: int) -> float:
            student = student_of(network, 16)
            options = TransferOptions(selection=selection, seed=seed)  # type: ignore[arg-type]
            transfer_network(network, student, batches(x), options)
            return distance(network, student, unseen)

        chance = sorted(error("random", seed) for seed in range(5))
        assert error("contribution", 0) < 0.5 * chance[0]

    @pytest.mark.parametrize("rows", ["teacher", "gaussian", "orthogonal"])
    @pytest.mark.parametrize("norm", [False, True])
    @pytest.mark.parametrize("order", [1, 2])
    def test_every_kind_of_rows_imitates(self, rows: str, norm: bool, order: int) -> None:
        network, x = teacher(6, 40, 3), normal(2000, 6)
        student = student_of(network, 20, order=order, norm=norm)
        (fit,) = transfer_network(network, student, batches(x), TransferOptions(rows=rows))  # type: ignore[arg-type]
        assert fit.explained > 0.5
        assert distance(network, student, normal(500, 6, seed=1)) < 0.6

    @pytest.mark.parametrize("rows", ["gaussian", "orthogonal"])
    def test_random_rows_are_scaled_to_the_inputs_and_their_kinks_pass_through_some(self, rows: str) -> None:
        network = teacher(6, 40, 3)
        x = normal(200, 6) * torch.logspace(0, 2, 6, dtype=F64)
        student = student_of(network, 8)
        transfer_network(network, student, [(x, x)], TransferOptions(rows=rows))  # type: ignore[arg-type]
        with torch.no_grad():
            projected = x @ student[0].projections[0].T + student[0].offsets[0]
        assert projected.abs().amin(dim=0).max() < 1e-9
        deviations = projected.std(dim=0)
        assert deviations.min() > 0.2
        assert deviations.max() < 3

    @pytest.mark.parametrize("rows", ["gaussian", "orthogonal"])
    @pytest.mark.parametrize("feature_bias", [True, False])
    def test_inputs_that_were_constant_have_no_weight(self, rows: str, feature_bias: bool) -> None:
        """Like nerfacto's embeddings, which vary in training but not in evaluation."""
        network, x = teacher(6, 40, 3), normal(2000, 6)
        x[:, 2], x[:, 4] = 1, 0
        student = student_of(network, 20, feature_bias=feature_bias)
        (fit,) = transfer_network(network, student, batches(x), TransferOptions(rows=rows))  # type: ignore[arg-type]
        assert not student[0].projections[..., [2, 4]].any()
        assert (x @ student[0].projections[0].T).std(dim=0).min() > 0.2
        assert fit.explained > 0.5

    def test_inputs_that_are_all_constant(self) -> None:
        network, x = teacher(6, 40, 3), torch.ones(100, 6, dtype=F64)
        student = student_of(network, 20)
        transfer_network(network, student, batches(x), TransferOptions(rows="gaussian"))
        torch.testing.assert_close(student(x), network(x))

    def test_training_a_layer_alone_improves_it(self) -> None:
        network, x = teacher(6, 40, 40, 3), normal(2000, 6)
        closed, trained = student_of(network, 8), student_of(network, 8)
        options = TransferOptions(rows="gaussian")
        before = transfer_network(network, closed, batches(x), options)
        options.solver, options.steps, options.batch = "layerwise", 150, 256
        after = transfer_network(network, trained, batches(x), options)
        assert after[0].explained > before[0].explained + 0.01
        assert distance(network, trained, x) < distance(network, closed, x)
        assert all(parameter.grad is None for parameter in trained.parameters())

    def test_a_layer_trained_alone_is_judged_by_what_the_next_one_sees(self) -> None:
        """Outputs that the next layer ignores need not be right."""
        dense, x = teacher(6, 40, 3)[0], normal(1000, 6)
        y = dense(x).detach()
        sees = torch.zeros(4, 40, dtype=F64)
        sees[:, :4] = torch.eye(4)
        missed = []
        for consumer in (None, sees):
            layer = student_of(nn.Sequential(dense, nn.Linear(40, 3, dtype=F64)), 6)[0]
            options = TransferOptions(rows="gaussian", solver="layerwise", steps=200, batch=256)
            fit_layer(layer, dense, [(x, y)], options, consumer, torch.Generator().manual_seed(0))
            missed.append((layer(x) - y)[:, :4].square().mean().item())
        assert missed[1] < 0.8 * missed[0]

    def test_the_learning_rate_of_layerwise_ends_near_zero(self, monkeypatch: pytest.MonkeyPatch) -> None:
        rates: list[float] = []
        step = torch.optim.Adam.step

        def noted(optimizer: torch.optim.Adam) -> None:
            rates.append(optimizer.param_groups[0]["lr"])
            step(optimizer)

        monkeypatch.setattr(torch.optim.Adam, "step", noted)
        network = teacher(6, 20, 3)
        options = TransferOptions(solver="layerwise", steps=20)
        transfer_network(network, student_of(network, 5), batches(normal(100, 6)), options)
        assert len(rates) == 20
        assert rates[0] == options.learning_rate
        assert rates == sorted(rates, reverse=True)
        assert rates[-1] < 0.01 * rates[0]

    def test_training_that_leads_astray_is_undone(self) -> None:
        network, x = teacher(6, 40, 3), normal(500, 6)
        closed, trained = student_of(network, 8), student_of(network, 8)
        (before,) = transfer_network(network, closed, batches(x), TransferOptions())
        options = TransferOptions(solver="layerwise", steps=2, learning_rate=1e3)
        (after,) = transfer_network(network, trained, batches(x), options)
        assert after.explained == before.explained
        for name, value in closed.state_dict().items():
            assert torch.equal(trained.state_dict()[name], value)

    def test_training_that_ends_in_what_is_no_number_is_undone_too(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def astray(layer: EUGen, *_: object) -> None:
            layer.projections.data.fill_(torch.nan)

        monkeypatch.setattr("eugen_nerf.layers.transfer._train", astray)
        network, x = teacher(6, 40, 3), normal(500, 6)
        closed, trained = student_of(network, 8), student_of(network, 8)
        transfer_network(network, closed, batches(x), TransferOptions())
        transfer_network(network, trained, batches(x), TransferOptions(solver="layerwise"))
        for name, value in closed.state_dict().items():
            assert torch.equal(trained.state_dict()[name], value)

    def test_frozen_projections_stay_buffers(self) -> None:
        network, x = teacher(6, 40, 3), normal(500, 6)
        student = student_of(network, 8, trainable_projections=False)
        transfer_network(network, student, batches(x), TransferOptions(solver="layerwise", steps=3))
        assert not student[0].projections.requires_grad
        assert student[0].weight.requires_grad

    def test_the_same_seed_gives_the_same_layers(self) -> None:
        network, x = teacher(6, 20, 3), normal(300, 6)
        states = []
        for _ in range(2):
            student = student_of(network, 5)
            transfer_network(network, student, batches(x), TransferOptions(rows="orthogonal", seed=3))
            states.append(student.state_dict())
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])

    def test_a_layer_without_constants(self) -> None:
        layer, dense = EUGen(4, 8, 8, norm=False, bias=False, dtype=F64), nn.Linear(4, 8, bias=False, dtype=F64)
        x = normal(300, 4)
        assert fit_layer(layer, dense, [(x, torch.relu(dense(x)))], TransferOptions(ridge=1e-13)) > 1 - 1e-9

    def test_features_of_a_layer_without_a_bias_are_chosen_by_what_it_can_do(self) -> None:
        """A nearly constant unit gives a layer without a bias the outputs' mean; with one it would be worth nothing."""
        torch.manual_seed(0)
        dense, layer = nn.Linear(3, 4, bias=False, dtype=F64), EUGen(3, 4, 2, norm=False, bias=False, dtype=F64)
        x = torch.cat([torch.rand(300, 2), torch.ones(300, 1)], dim=1).double()
        with torch.no_grad():
            rows = [[1.0, 0.0, -0.5], [0.0, 1.0, -0.5], [1.0, 1.0, -0.9], [1e-4, 0.0, 2.0]]
            dense.weight.copy_(torch.tensor(rows))
        y = torch.relu(dense(x)) + 5
        explained = fit_layer(layer, dense, [(x, y)], TransferOptions(ridge=1e-12))
        every = []
        for pair in itertools.combinations(range(4), 2):
            features = torch.relu(dense(x))[:, pair]
            solution = torch.linalg.lstsq(features, y).solution
            every.append(1 - (features @ solution - y).square().sum().item() / y.square().sum().item())
        assert explained == pytest.approx(max(every), abs=1e-9)
        assert sorted(every)[-2] < max(every) - 1e-6
        chosen = {tuple(row) for row in layer.projections[0].tolist()}
        assert tuple(dense.weight[3].tolist()) in chosen


def test_networks_are_looked_at_in_evaluation_mode() -> None:
    def with_dropout() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(6, 30), nn.ReLU(), nn.Dropout(0.5), nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 3)
        ).double()

    network, x = with_dropout().train(), normal(500, 6)
    network[2].eval()
    student = convert(copy.deepcopy(network), ConversionPlan(8, ("3",), norm=False)).module
    modes = [module.training for module in (*network.modules(), *student.modules())]
    (fit,) = transfer_network(network, student, batches(x), TransferOptions())
    assert [module.training for module in (*network.modules(), *student.modules())] == modes
    other = with_dropout().train()
    second = convert(copy.deepcopy(other), ConversionPlan(8, ("3",), norm=False)).module
    (expected,) = transfer_network(other.eval(), second.eval(), batches(x), TransferOptions())
    assert fit.explained == expected.explained
    third = convert(copy.deepcopy(other), ConversionPlan(8, ("3",), norm=False)).module
    (in_training,) = transfer_network(other.train(), third.train(), batches(x), TransferOptions())
    assert in_training.explained == expected.explained


def test_nothing_of_the_teacher_changes() -> None:
    network, x = teacher(6, 20, 20, 3), normal(300, 6)
    before = copy.deepcopy(network.state_dict())
    student = student_of(network, 5)
    transfer_network(network, student, batches(x), TransferOptions(solver="layerwise", steps=3))
    assert all(torch.equal(network.state_dict()[name], before[name]) for name in before)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in network.parameters())


def test_the_next_layer_sees_an_output_behind_what_a_skip_connection_puts_in_front() -> None:
    network = MLP(4, 5, 12, 3, skip_connections=(2,), activation=nn.ReLU())
    consumer = _consumer(units(network), 1)
    assert consumer is not None
    assert torch.equal(consumer, network.layers[2].weight[:, 4:])


def test_units_of_a_sequential() -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.GELU(), EUGen(4, 5, 2), nn.Identity(), nn.Linear(5, 2))
    x = torch.randn(7, 3)
    y = x
    for unit in units(network):
        y = unit(x, y)
    assert [type(unit.layer) for unit in units(network)] == [nn.Linear, EUGen, nn.Linear]
    assert torch.equal(y, network(x))


def test_units_of_a_converted_sequential_are_those_of_the_original() -> None:
    original = nn.Sequential(Dense(3, 6), nn.Dropout(0.5), nn.Linear(6, 6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 2))
    x = torch.randn(60, 3)
    student = student_of(original, 6)
    assert [type(unit.layer) for unit in units(student)] == [EUGen, nn.Dropout, EUGen, nn.Dropout, nn.Linear]
    assert len(transfer_network(original, student, batches(x), TransferOptions(ridge=1e-9))) == 2
    torch.testing.assert_close(student.eval()(x), original.eval()(x), rtol=1e-3, atol=1e-3)


class TestRefusals:
    def test_no_samples(self) -> None:
        network = teacher(6, 20, 3)
        with pytest.raises(ValueError, match="no samples were collected"):
            transfer_network(network, student_of(network, 5), batches(normal(0, 6), 1), TransferOptions())

    def test_networks_that_do_not_correspond(self) -> None:
        with pytest.raises(ValueError, match="must have the same layers"):
            transfer_network(teacher(6, 20, 3), teacher(6, 20, 20, 3), batches(normal(9, 6)), TransferOptions())

    def test_a_network_of_unknown_layers(self) -> None:
        with pytest.raises(ValueError, match="Bilinear is not supported; the network must be"):
            units(nn.Bilinear(2, 2, 2))

    def test_the_kernel_form(self) -> None:
        layer = EUGen(4, 8, 4, psi="relu")
        with pytest.raises(ValueError, match="kernel form"):
            fit_layer(layer, nn.Linear(4, 8), [(torch.ones(3, 4), torch.ones(3, 8))], TransferOptions())

    def test_more_features_than_the_teacher_has_units(self) -> None:
        for units_of_teacher in (1, 3):
            layer, dense = EUGen(4, units_of_teacher, 4, norm=False), nn.Linear(4, units_of_teacher)
            x = torch.randn(50, 4)
            with pytest.raises(ValueError, match=f"4 features cannot be taken from the {units_of_teacher} units"):
                fit_layer(layer, dense, [(x, dense(x))], TransferOptions())
            fit_layer(layer, dense, [(x, dense(x))], TransferOptions(rows="orthogonal"))

    @pytest.mark.parametrize(
        "options",
        [
            {"ridge": -1.0},
            {"ridge": torch.nan},
            {"steps": 0},
            {"learning_rate": 0.0},
            {"solver": "newton"},
            {"rows": "teachers"},
            {"selection": "all"},
        ],
        ids=str,
    )
    def test_options(self, options: dict) -> None:
        with pytest.raises(ValueError, match=next(iter(options))):
            TransferOptions(**options)


def test_nested_sequences() -> None:
    flat = teacher(5, 12, 12, 3)
    nested = nn.Sequential(nn.Sequential(flat[0]), nn.Sequential(flat[1], flat[2]))
    student = student_of(nested, 12)
    fits = transfer_network(nested, student, batches(normal(400, 5)), TransferOptions(ridge=1e-13))
    assert [fit.position for fit in fits] == [0, 1]
    assert distance(nested, student, normal(50, 5, seed=1)) < 1e-9


def test_layers_that_would_be_forgotten() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = Dense(5, 12, dtype=F64)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x)

    network = nn.Sequential(Block(), nn.Linear(12, 3, dtype=F64))
    with pytest.raises(
        ValueError, match=r"the EUGen layer 0\.layer is inside a module of the network and cannot be fit"
    ):
        transfer_network(network, student_of(network, 12), batches(normal(40, 5)), TransferOptions())


def test_random_rows_are_scaled_to_all_inputs() -> None:
    """Not to those of the first batch, which may be a single sample."""
    x = normal(400, 5)
    layers = [EUGen(5, 3, 8, norm=False, feature_bias=True, dtype=F64) for _ in range(2)]
    dense = teacher(5, 3, 3)[0]
    options = TransferOptions(rows="gaussian")
    for layer, parts in zip(layers, ([x], [x[:1], x[1:]]), strict=True):
        fit_layer(layer, dense, [(part, dense(part)) for part in parts], options)
    torch.testing.assert_close(layers[0].projections, layers[1].projections)


def test_layers_that_have_nothing_to_fit_or_to_take() -> None:
    pairs = [(normal(40, 5), normal(40, 3))]
    with pytest.raises(ValueError, match="of order 0 has no features to fit"):
        fit_layer(EUGen(5, 3, 2, order=0, dtype=F64), nn.Linear(5, 3, dtype=F64), pairs, TransferOptions())
    with pytest.raises(ValueError, match='a LowRank layer has no units to take as projections; use rows="orthogonal"'):
        fit_layer(EUGen(5, 3, 2, dtype=F64), LowRank(5, 3, 2, dtype=F64), pairs, TransferOptions())

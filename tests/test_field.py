"""EugenField: results, counts and refusals."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from eugen_nerf.errors import UserError
from eugen_nerf.field import EugenField, FieldConfig, HashGrid, TruncatedExp
from eugen_nerf.layers import EUGen
from eugen_nerf.ops import HashGridLayout, RadianceField

KINDS: dict[str, dict[str, Any]] = {
    "eugen": {"network": "eugen"},
    "eugen-norm": {"network": "eugen", "norm": True},
    "mlp": {"network": "mlp"},
    "low-rank": {"network": "low-rank"},
    "snnk": {"network": "snnk"},
}
every_kind = pytest.mark.parametrize("kind", KINDS)
SMALL = FieldConfig(
    hidden_features=24,
    num_features=6,
    geometry_features=5,
    num_levels=3,
    features_per_level=2,
    log2_hashmap_size=8,
    base_resolution=4,
    max_resolution=16,
)
ENTRIES = 5**3 + 2**8 + 2**8  # resolutions 4, 8 and 16, the last two hashed


def small_field(**options: object) -> EugenField:
    """A field whose hash table is not close to zero, so that every part of the field matters."""
    torch.manual_seed(0)
    field = EugenField(dataclasses.replace(SMALL, **options))  # type: ignore[arg-type]
    with torch.no_grad():
        field.get_parameter("encoding.table").normal_()
    return field


def queries(n: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n)
    x = torch.rand(n, 3, generator=generator, dtype=torch.float64)
    directions = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    return x.to(dtype), torch.nn.functional.normalize(directions, dim=-1).to(dtype)


@every_kind
@pytest.mark.parametrize("n", [0, 1, 50])
def test_field_shapes_and_ranges(kind: str, n: int) -> None:
    sigma, rgb = small_field(**KINDS[kind])(*queries(n))
    assert (sigma.shape, rgb.shape) == ((n,), (n, 3))
    assert sigma.dtype == rgb.dtype == torch.float32
    assert (sigma > 0).all()
    assert ((rgb >= 0) & (rgb <= 1)).all()
    density, geometry = small_field(**KINDS[kind]).density_at(queries(n)[0])
    assert torch.equal(density, sigma)
    assert geometry.shape == (n, 5)


@every_kind
def test_mixed_precision_leaves_the_networks_precision_to_them(kind: str) -> None:
    """ns-train --mixed-precision True: half-precision matrices would move every step to eager PyTorch."""
    field = small_field(**KINDS[kind])
    expected = field(*queries(50))
    with torch.autocast("cpu", torch.bfloat16):
        got = field(*queries(50))
    for mine, theirs in zip(got, expected, strict=True):
        assert mine.dtype == torch.float32
        assert torch.equal(mine, theirs)


@every_kind
def test_color_depends_on_the_direction_and_density_does_not(kind: str) -> None:
    field = small_field(**KINDS[kind]).double()
    x, directions = queries(20, torch.float64)
    sigma, rgb = field(x, directions)
    other_sigma, other_rgb = field(x, -directions)
    assert torch.equal(sigma, other_sigma)
    assert (rgb - other_rgb).abs().max() > 1e-3


@every_kind
def test_evaluator_is_the_field(kind: str) -> None:
    field = small_field(**KINDS[kind])
    for got, expected in zip(field.evaluator()(*queries(50)), field(*queries(50)), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    field = field.double()
    x, directions = queries(50, torch.float64)
    for got, expected in zip(field.evaluator()(x, directions), field(x, directions), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-13)


@every_kind
def test_implementations_native_and_torch_agree(kind: str) -> None:
    native = small_field(**KINDS[kind], implementation="native")
    eager = small_field(**KINDS[kind], implementation="torch")
    eager.load_state_dict(native.state_dict())
    for got, expected in zip(native(*queries(50)), eager(*queries(50)), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@every_kind
def test_field_in_single_precision(kind: str) -> None:
    field = small_field(**KINDS[kind])
    single = field(*queries(50))
    double = field.double()(*queries(50, torch.float64))
    for got, expected in zip(single, double, strict=True):
        torch.testing.assert_close(got.double(), expected, rtol=1e-3, atol=1e-4)


# Density network 6 -> 24 -> 1 + 5, color network 16 + 5 -> 24 -> 24 -> 3, six features.
STORED = {
    # projections, output matrix [24, 6] and bias of each EUGen layer, then the linear layer
    "eugen": (6 * 6 + 24 * 6 + 24) + (24 * 6 + 6) + (6 * 21 + 24 * 6 + 24) + (6 * 24 + 24 * 6 + 24) + (24 * 3 + 3),
    "mlp": (6 * 24 + 24) + (24 * 6 + 6) + (21 * 24 + 24) + (24 * 24 + 24) + (24 * 3 + 3),
    "low-rank": (6 * 6 + 6 * 24 + 24) + (24 * 6 + 6) + (21 * 6 + 6 * 24 + 24) + (24 * 6 + 6 * 24 + 24) + (24 * 3 + 3),
    "snnk": (6 * 6 + 24 * 6 + 24) + (24 * 6 + 6) + (6 * 21 + 24 * 6 + 24) + (6 * 24 + 24 * 6 + 24) + (24 * 3 + 3),
}
# EUGen and SNNK lose the width of 24; the low-rank factors stay, since an activation follows each pair.
MERGED = {
    "eugen": 6 * 6 + (6 * 6 + 6) + 6 * 21 + (6 * 6 + 6) + (6 * 3 + 3),
    "mlp": STORED["mlp"],
    "low-rank": STORED["low-rank"],
    "snnk": 6 * 6 + (6 * 6 + 6) + 21 * 6 + (6 * 6 + 6) + (6 * 3 + 3),
}
MULTIPLY_ADDS = {
    "eugen": 6 * 6 + 6 * 6 + 21 * 6 + 6 * 6 + 6 * 3,
    "mlp": 6 * 24 + 24 * 6 + 21 * 24 + 24 * 24 + 24 * 3,
    "low-rank": (6 * 6 + 6 * 24) + 24 * 6 + (21 * 6 + 6 * 24) + (24 * 6 + 6 * 24) + 24 * 3,
    "snnk": 6 * 6 + 6 * 6 + 21 * 6 + 6 * 6 + 6 * 3,
}
# The norm adds a column to the projections of each network's first layer, and takes a square of every input.
STORED["eugen-norm"] = STORED["eugen"] + 6 + 6
MERGED["eugen-norm"] = MERGED["eugen"] + 6 + 6
MULTIPLY_ADDS["eugen-norm"] = MULTIPLY_ADDS["eugen"] + (6 + 6) + (21 + 6)


@every_kind
def test_counts_against_counts_by_hand(kind: str) -> None:
    field = small_field(**KINDS[kind])
    assert field.num_parameters() == 2 * ENTRIES + STORED[kind]
    assert field.network_parameters() == MERGED[kind]
    assert field.multiply_adds() == MULTIPLY_ADDS[kind]


def test_the_nominal_width_costs_nothing_once_merged() -> None:
    narrow, wide = small_field(hidden_features=24), small_field(hidden_features=96)
    assert wide.num_parameters() > narrow.num_parameters()
    assert wide.multiply_adds() == narrow.multiply_adds()
    assert wide.network_parameters() == narrow.network_parameters()


def test_frozen_projections_are_stored_but_not_trained() -> None:
    trained, frozen = small_field(), small_field(trainable_projections=False)
    assert frozen.num_parameters() == trained.num_parameters()
    projections = 6 * 6 + 6 * 21 + 6 * 24
    counts = [sum(p.numel() for p in field.parameters()) for field in (trained, frozen)]
    assert counts[0] - counts[1] == projections


@every_kind
def test_gradients_reach_every_parameter(kind: str) -> None:
    field = small_field(**KINDS[kind])
    sigma, rgb = field(*queries(200))
    (sigma.log().square().mean() + rgb.square().mean()).backward()
    for name, parameter in field.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


@every_kind
def test_state_dict_round_trip(kind: str) -> None:
    field = small_field(**KINDS[kind])
    torch.manual_seed(1)
    other = EugenField(field.config)
    assert not torch.equal(other(*queries(9))[1], field(*queries(9))[1])
    other.load_state_dict(field.state_dict())
    for got, expected in zip(other(*queries(9)), field(*queries(9)), strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize(
    "option",
    [
        "hidden_features",
        "num_features",
        "order",
        "density_layers",
        "color_layers",
        "geometry_features",
        "num_levels",
        "features_per_level",
        "log2_hashmap_size",
        "base_resolution",
    ],
)
def test_counts_below_one_are_refused(option: str) -> None:
    with pytest.raises(UserError, match=rf"{option} must be at least 1, not 0"):
        dataclasses.replace(SMALL, **{option: 0}).validate()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_resolution": 3}, r"max_resolution \(3\) must not be below base_resolution \(4\)"),
        ({"phi": "tanh"}, r"phi must be one of identity, relu, .*, not 'tanh'"),
        ({"network": "snnk", "phi": "sin"}, "use phi relu, not sin"),
        ({"phi": "identity"}, "order 1 with phi identity would be linear"),
        ({"network": "mlp", "phi": "identity"}, "would be linear.* train the method eugen-nerf-mlp"),
        ({"network": "low-rank", "phi": "identity"}, "would be linear.* train the method eugen-nerf-low-rank"),
        ({"network": "snnk", "phi": "identity"}, "would be linear.* train the method eugen-nerf-snnk"),
        ({"implementation": "tcnn"}, "no eugen layers .* Use implementation native"),
        ({"implementation": "tcnn", "network": "mlp", "phi": "gelu"}, "no mlp layers with gelu"),
    ],
)
def test_options_that_cannot_work_are_refused(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        EugenField(dataclasses.replace(SMALL, **options))


def test_the_hash_grid_has_the_layout_of_the_configuration() -> None:
    field = small_field()
    layout = field.get_submodule("encoding").layout
    assert layout == HashGridLayout.build(3, 2, 8, 4, 16)
    assert layout.resolutions == (4, 8, 16)
    assert sum(layout.used_rows) == ENTRIES
    assert field.get_parameter("encoding.table").shape == (layout.num_entries, 2)


def test_hash_tables_of_earlier_versions_are_loaded() -> None:
    """They had no padding between levels."""
    grid, other = (HashGrid(HashGridLayout.build(4, 2, 9, 4, 24)) for _ in range(2))
    layout = grid.layout
    before = {"table": torch.cat(layout.levels(grid.table)).detach()}
    assert len(before["table"]) < layout.num_entries
    other.load_state_dict(before)
    assert torch.equal(other.table, grid.table)
    assert len(before["table"]) < layout.num_entries  # the checkpoint is left alone


def test_a_new_hash_table_is_almost_zero() -> None:
    table = EugenField(SMALL).get_parameter("encoding.table")
    assert table.abs().max() <= 1e-4
    assert table.std().item() == pytest.approx(1e-4 / math.sqrt(3), rel=0.1)


def test_new_eugen_layers_have_output_weights_of_twice_their_own_size() -> None:
    field = small_field(hidden_features=512, num_features=32)
    layers = [module for module in field.modules() if isinstance(module, EUGen)]
    assert len(layers) == 3
    for layer in layers:
        assert layer.weight.std().item() == pytest.approx(2 * math.sqrt(2 / 32), rel=0.05)


@every_kind
@pytest.mark.parametrize("density", [0.1, 1.0, 5.0])
def test_the_density_of_an_untrained_field_can_be_set(kind: str, density: float) -> None:
    torch.manual_seed(0)
    field = EugenField(dataclasses.replace(SMALL, **KINDS[kind]))
    field.set_initial_density(density)
    sigma, _ = field(*queries(100))
    torch.testing.assert_close(sigma, torch.full_like(sigma, density), rtol=0.05, atol=0)


def test_truncated_exp_under_transformations() -> None:
    x = torch.tensor([-1.0, 0.5, 20.0])
    gradient = torch.func.grad(lambda x: TruncatedExp.apply(x).sum())(x)
    torch.testing.assert_close(gradient, x.clamp(max=15).exp())
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(TruncatedExp.apply))(x), gradient)


def test_truncated_exp() -> None:
    x = torch.tensor([-1e4, -2.0, 0.0, 14.0, 16.0, 90.0, 1e4], requires_grad=True)
    y = TruncatedExp.apply(x)
    assert y.isfinite().all()
    torch.testing.assert_close(y[:5], torch.exp(x[:5]))
    y.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, torch.exp(x.detach().clamp(max=15)))


class TestCandidates:
    """More features at the beginning of training than at the end."""

    @staticmethod
    def field(**options: Any) -> EugenField:
        return small_field(candidate_features=20, **options)

    @pytest.mark.parametrize("options", [{}, {"norm": True}, {"order": 2, "shared": True, "phi": "identity"}], ids=str)
    def test_selection_keeps_the_field_and_its_cost_falls(self, options: dict[str, Any]) -> None:
        field = self.field(**options)
        x, directions = queries(400)
        before = field(x, directions)
        wide = field.multiply_adds()
        kept = field.select_features(6, [(x[:150], directions[:150]), (x[150:], directions[150:])])
        assert len(kept) == 3
        assert field.multiply_adds() == small_field(**options).multiply_adds() < wide
        assert not field.has_candidates()
        after = field(x, directions)
        strangers = small_field(**options)(x, directions)
        for a, b, c in zip(after, before, strangers, strict=True):
            assert (a - b).square().mean() < 0.5 * (c - b).square().mean()

    def test_each_network_may_keep_its_own_number(self) -> None:
        field = self.field()
        x, directions = queries(100)
        kept = field.select_features((4, 8), [(x, directions)])
        assert [len(one.features) for one in kept] == [4, 8, 8]

    @pytest.mark.parametrize("name", ["encoding.table", "density_network.layers.1.bias", "color_network.layers.2.bias"])
    def test_nothing_is_selected_in_a_field_that_is_not_finite(self, name: str) -> None:
        field = small_field(candidate_features=12)
        with torch.no_grad():
            field.get_parameter(name).fill_(torch.nan)
        before = {key: value.shape for key, value in field.state_dict().items()}
        with pytest.raises(ValueError, match="not finite"):
            field.select_features(6, [queries(50)])
        assert {key: value.shape for key, value in field.state_dict().items()} == before

    def test_a_checkpoint_from_before_or_after_is_loaded_alike(self) -> None:
        field = self.field()
        x, directions = queries(100)
        for selected in (False, True):
            if selected:
                field.select_features(6, [(x, directions)])
            fresh = self.field()
            fresh.load_state_dict(field.state_dict())
            assert fresh.has_candidates() != selected
            for a, b in zip(fresh(x, directions), field(x, directions), strict=True):
                assert torch.equal(a, b)

    def test_a_checkpoint_of_other_sizes_is_refused(self) -> None:
        with pytest.raises(RuntimeError, match="size mismatch"):
            self.field().load_state_dict(small_field(num_features=5).state_dict())

    @pytest.mark.parametrize("options", [{"network": "mlp"}, {"network": "low-rank"}, {"network": "snnk"}])
    def test_other_layers_than_eugen_have_none(self, options: dict[str, Any]) -> None:
        field = self.field(**options)
        assert not field.has_candidates()
        assert field.multiply_adds() == small_field(**options).multiply_adds()


class Emptied(EugenField):
    def density_at(self, x: Tensor) -> tuple[Tensor, Tensor]:
        sigma, geometry = super().density_at(x)
        return 0 * sigma, geometry


class Masked(HashGrid):
    def forward(self, x: Tensor) -> Tensor:
        return 0 * super().forward(x)


def emptied(field: EugenField) -> None:
    field.__class__ = Emptied


def masked(field: EugenField) -> None:
    field.encoding.__class__ = Masked


def hooked(field: EugenField) -> None:
    field.encoding.register_forward_hook(lambda module, inputs, output: 0 * output)


def hooked_color(field: EugenField) -> None:
    field.color_network.register_forward_hook(lambda module, inputs, output: output + 1)


@pytest.mark.parametrize("change", [emptied, masked, hooked, hooked_color])
def test_what_is_done_beside_the_parameters_is_done_in_pictures_too(change: Callable[[EugenField], None]) -> None:
    field = small_field()
    x, directions = queries(50)
    before = field(x, directions)
    assert isinstance(field.evaluator(), RadianceField)
    change(field)
    changed = field(x, directions)
    assert not all(torch.equal(a, b) for a, b in zip(before, changed, strict=True))
    with torch.no_grad():
        for got, expected in zip(field.evaluator()(x, directions), changed, strict=True):
            torch.testing.assert_close(got, expected)


@every_kind
def test_evaluators_require_no_gradients(kind: str) -> None:
    sigma, rgb = small_field(**KINDS[kind]).evaluator()(*queries(5))
    assert not sigma.requires_grad
    assert not rgb.requires_grad


def test_half_precision_is_the_evaluators() -> None:
    field = small_field().bfloat16()
    x, directions = queries(20, torch.bfloat16)
    for value, other in zip(field(x, directions), field.evaluator()(x, directions), strict=True):
        torch.testing.assert_close(value.float(), other.float(), rtol=0.05, atol=0.05)


def test_a_selection_that_cannot_be_leaves_the_field_alone() -> None:
    field = small_field(candidate_features=12)
    with pytest.raises(ValueError, match="m must be at least 1"):
        field.select_features((4, 0), [queries(50)])
    assert {layer.num_features for layer in field.modules() if isinstance(layer, EUGen)} == {12}

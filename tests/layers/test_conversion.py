"""Conversion of other libraries' models: which layers are replaced, which are not, and the refusals."""

from __future__ import annotations

import copy
import pickle
from functools import partial
from typing import Any

import pytest
import torch
from nerfstudio.field_components.mlp import MLP
from torch import Tensor, nn

import eugen_nerf
from eugen_nerf.layers import ConversionPlan, Dense, EUGen, LayerStack, convert, merge_chain
from eugen_nerf.ops import network

PLAN = ConversionPlan(num_features=4)


class Adapted(nn.Linear):
    """A subclass with an addition, like LoRA adapters."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


def perceptron() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 3), nn.Sigmoid())


def paths(found: Any) -> list[str]:
    return [replacement.path for replacement in found.replaced]


def test_it_is_at_hand_from_the_package() -> None:
    assert eugen_nerf.convert is convert
    assert eugen_nerf.ConversionPlan is ConversionPlan


class TestSequential:
    def test_linear_layers_with_a_hidden_activation(self) -> None:
        model = perceptron()
        found = convert(model, PLAN)
        assert found.module is model
        assert paths(found) == ["0", "2"]
        assert [type(m).__name__ for m in model] == ["EUGen", "Identity", "EUGen", "Identity", "Linear", "Sigmoid"]
        assert str(found) == (
            "0: Linear(6, 8) + ReLU -> EUGen m=4, order 1, norm\n2: Linear(8, 8) + GELU -> EUGen m=4, order 1, norm"
        )
        x = torch.randn(5, 6)
        merged = torch.sigmoid(network(x, merge_chain(model[:5]), backend="reference"))
        torch.testing.assert_close(merged, model(x), rtol=1e-5, atol=1e-5)

    def test_by_name_and_what_was_left(self) -> None:
        found = convert(nn.ModuleDict({"first": perceptron(), "second": perceptron()}), ConversionPlan(4, ("s*.2",)))
        assert paths(found) == ["second.2"]
        assert found.kept == ("first.0", "first.2", "second.0")
        assert "first.0: kept" in str(found)

    def test_one_activation_in_many_places(self) -> None:
        act = nn.ReLU()
        model = nn.Sequential(nn.Linear(6, 8), act, nn.Linear(8, 8), act, nn.Linear(8, 3))
        assert paths(convert(model, PLAN)) == ["0", "2"]
        assert [type(m).__name__ for m in model] == ["EUGen", "Identity", "EUGen", "Identity", "Linear"]

    def test_a_norm_in_between_is_no_activation(self) -> None:
        norm = nn.LayerNorm(8)
        model = nn.Sequential(nn.Linear(6, 8), norm, nn.ReLU(), nn.Linear(8, 8), norm, nn.ReLU())
        with pytest.raises(ValueError, match="those of the model are: none"):
            convert(model, PLAN)

    def test_options_reach_the_layers(self) -> None:
        plan = ConversionPlan(2, ("0",), order=2, norm=False, phi="gelu", trainable_projections=False)
        (replacement,) = convert(perceptron().double().eval(), plan).replaced
        layer = replacement.layer
        assert (layer.num_features, layer.order, layer.norm, layer.phi) == (2, 2, False, "gelu")
        assert not layer.projections.requires_grad
        assert layer.weight.dtype == torch.float64
        assert not layer.training

    def test_a_single_layer_comes_back_replaced(self) -> None:
        found = convert(Dense(6, 8), PLAN)
        assert isinstance(found.module, EUGen)
        assert str(found).startswith("the model: Dense(6, 8) + relu")

    def test_what_replaces_a_frozen_layer_is_frozen(self) -> None:
        model = perceptron()
        linear: Any = model[0]
        linear.requires_grad_(False)
        model[2].bias.requires_grad_(False)
        convert(model, ConversionPlan(4, feature_bias=True))
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert trained == {"2.projections", "2.offsets", "2.weight", "4.weight", "4.bias"}

    @pytest.mark.parametrize("activation", [torch.sigmoid, "sin", "identity"])
    def test_a_dense_layer_with_another_activation(self, activation: Any) -> None:
        with pytest.raises(ValueError, match="those of the model are: none"):
            convert(Dense(6, 8, activation), PLAN)


class TestNerfstudioMLP:
    @staticmethod
    def mlp(**options: Any) -> MLP:
        return MLP(6, 8, 16, skip_connections=(4,), out_activation=nn.ReLU(), **options)

    def test_layers_that_stay_compute_what_they_did(self) -> None:
        holder = nn.ModuleDict({"base": self.mlp()})
        x = torch.randn(2, 5, 6)
        mlp: Any = holder["base"]
        kept = {name: value.clone() for name, value in mlp.state_dict().items()}
        found = convert(holder, ConversionPlan(4, ("base.layers.3", "*.5", "base.layers.7")))
        assert paths(found) == ["base.layers.3", "base.layers.5", "base.layers.7"]
        stack: Any = holder["base"]
        assert isinstance(stack, LayerStack)
        for name, value in stack.state_dict().items():
            if not name.startswith(("layers.3", "layers.5", "layers.7")):
                torch.testing.assert_close(value, kept[name])
        # Layer by layer, as in nerfstudio's MLP.
        y = x
        for i, layer in enumerate(stack.layers):
            y = layer(torch.cat([x, y], dim=-1) if i == 4 else y)
            y = y if isinstance(layer, EUGen) else torch.relu(y)
        torch.testing.assert_close(stack(x), y, rtol=1e-5, atol=1e-5)

    def test_more_can_be_replaced_later(self) -> None:
        found = convert(convert(self.mlp(), ConversionPlan(4, ("layers.1",))).module, ConversionPlan(4, ("layers.2",)))
        assert paths(found) == ["layers.2"]
        assert "layers.1" not in found.kept
        assert isinstance(found.module, LayerStack)
        assert found.module(torch.randn(3, 6)).shape == (3, 16)

    def test_a_bounded_output_is_no_feed_forward_layer(self) -> None:
        found = convert(MLP(6, 3, 16, out_dim=3, out_activation=nn.Sigmoid()), PLAN)
        assert paths(found) == ["layers.0", "layers.1"]
        y = found.module(1e3 * torch.randn(50, 6))
        assert y.min() >= 0
        assert y.max() <= 1

    def test_a_shared_perceptron_stays_shared(self) -> None:
        mlp = self.mlp()
        holder = nn.ModuleDict({"a": mlp, "b": mlp})
        convert(holder, PLAN)
        assert isinstance(holder["a"], LayerStack)
        assert holder["a"] is holder["b"]

    def test_skip_connections_beyond_the_last_layer(self) -> None:
        """nerfstudio ignores them, and its fields give (4,) by default to networks of any depth."""
        mlp = MLP(6, 3, 16, skip_connections=(4,))
        before = mlp(torch.ones(1, 6)).shape
        assert paths(convert(mlp, ConversionPlan(8, ("layers.1",)))) == ["layers.1"]
        assert convert(mlp, ConversionPlan(8)).module(torch.ones(1, 6)).shape == before

    def test_what_merging_would_ignore(self) -> None:
        normed, adapted = self.mlp(), self.mlp()
        nn.utils.spectral_norm(normed.layers[2])
        adapted.layers[2] = Adapted(16, 16)
        for mlp, says in ((normed, "Linear has hooks"), (adapted, "Adapted has its own forward")):
            kinds = [type(layer) for layer in mlp.layers]
            with pytest.raises(ValueError, match=f"layers.1: in its network {says}, which merging"):
                convert(mlp, ConversionPlan(8, ("layers.1",)))
            assert [type(layer) for layer in mlp.layers] == kinds
        # Weights computed by a parametrization can be merged.
        computed = self.mlp()
        nn.utils.parametrizations.weight_norm(computed.layers[2])
        assert paths(convert(computed, ConversionPlan(8, ("layers.1",)))) == ["layers.1"]


class TestTransformer:
    @pytest.mark.parametrize("activation", ["relu", "gelu"])
    @pytest.mark.parametrize("grad", [True, False], ids=["autograd", "no-grad"])
    def test_encoder_layer(self, activation: str, grad: bool) -> None:
        """Also where PyTorch would take its fused path: evaluating, without gradients, with padding."""
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(16, 2, 32, activation=activation, batch_first=True)
        encoder = nn.TransformerEncoder(layer, 2).eval()
        found = convert(encoder, ConversionPlan(8))
        assert paths(found) == ["layers.0.linear1", "layers.1.linear1"]
        x, padding = torch.randn(3, 5, 16), torch.zeros(3, 5, dtype=torch.bool)
        padding[1, 3:] = True
        with torch.set_grad_enabled(grad):
            y = encoder(x, src_key_padding_mask=padding)
        expected = x
        for block in encoder.layers:
            attended, _ = block.self_attn(expected, expected, expected, key_padding_mask=padding)
            expected = block.norm1(expected + attended)
            expected = block.norm2(expected + block.linear2(block.linear1(expected)))
        torch.testing.assert_close(y[~padding], expected[~padding], rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("kind", [nn.TransformerEncoderLayer, nn.TransformerDecoderLayer])
    @pytest.mark.parametrize("activation", ["gelu", nn.GELU()])
    @pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda block: pickle.loads(pickle.dumps(block))])
    def test_copies_compute_the_same(self, kind: Any, activation: Any, duplicate: Any) -> None:
        block = kind(16, 2, 32, activation=activation, batch_first=True).eval()
        convert(block, ConversionPlan(8))
        # Another ReLU would not be noticed behind a layer whose outputs are positive.
        x = (torch.randn(2, 5, 16),) * (1 if kind is nn.TransformerEncoderLayer else 2)
        torch.testing.assert_close(duplicate(block)(*x), block(*x))

    @pytest.mark.parametrize("name", ["gpt-2", "vit-b"])
    @pytest.mark.parametrize("m", [32, 64])
    def test_feed_forward_of_768_and_3072(self, name: str, m: int) -> None:
        """The sizes of GPT-2 and ViT-B, merged with the contraction (arXiv 2601.22563, transformer experiments)."""
        torch.manual_seed(0)
        if name == "gpt-2":
            block = nn.TransformerDecoderLayer(768, 12, 3072, activation="gelu")
            pattern = "linear1"
        else:
            block = nn.Sequential(nn.Linear(768, 3072), nn.GELU(), nn.Linear(3072, 768))  # type: ignore[assignment]
            pattern = "0"
        (replacement,) = convert(block, ConversionPlan(m, (pattern,), norm=False)).replaced
        contraction: Any = block.linear2 if name == "gpt-2" else block[2]  # type: ignore[index]
        ffn = nn.Sequential(replacement.layer, contraction).double()
        chain = merge_chain(ffn)
        assert chain.multiply_adds == 2 * 768 * m
        assert chain.num_parameters == 2 * 768 * m + 768
        dense = 768 * 3072 + 3072 + 3072 * 768 + 768
        assert dense / chain.num_parameters > {32: 94, 64: 47}[m]
        x = torch.randn(4, 768, dtype=torch.float64)
        merged: Tensor = nn.functional.linear(chain.stages[0].features(x), chain.weight, chain.bias)
        assert merged.shape == (4, 768)
        torch.testing.assert_close(merged, ffn(x), rtol=1e-10, atol=1e-10)

    @pytest.mark.parametrize("kind", [nn.TransformerEncoderLayer, nn.TransformerDecoderLayer])
    @pytest.mark.parametrize("activation", [torch.sigmoid, torch.tanh, nn.Tanh(), lambda x: x.clamp(0, 1)])
    def test_a_bounded_activation(self, kind: Any, activation: Any) -> None:
        block = kind(16, 2, 32, activation=activation)
        with pytest.raises(ValueError, match="those of the model are: none"):
            convert(block, ConversionPlan(8))
        assert isinstance(block.linear1, nn.Linear)

    @pytest.mark.parametrize(
        ("activation", "name"),
        [
            (nn.SiLU(), "SiLU"),
            (nn.functional.silu, "silu"),
            (partial(nn.functional.gelu, approximate="tanh"), "partial"),
        ],
        ids=["module", "function", "partial"],
    )
    def test_other_hidden_activations(self, activation: Any, name: str) -> None:
        found = convert(nn.TransformerEncoderLayer(16, 2, 32, activation=activation), ConversionPlan(8))
        assert str(found).startswith(f"linear1: Linear(16, 32) + {name} -> ")


def hooked(module: Any, kind: str) -> Any:
    getattr(module, f"register_{kind}_hook")(lambda *_: None)
    return module


def in_sequential(linear: nn.Module, activation: nn.Module) -> nn.Module:
    return nn.Sequential(linear, activation, nn.Linear(8, 3))


def in_transformer(linear: nn.Module, activation: Any) -> nn.Module:
    block = nn.TransformerEncoderLayer(6, 2, 8, activation=activation)
    block.linear1 = linear  # type: ignore[assignment]
    return block


def in_mlp(linear: nn.Module, activation: nn.Module) -> nn.Module:
    mlp = MLP(6, 3, 8, activation=activation)
    mlp.layers[0] = linear
    return mlp


def in_stack(linear: Any, activation: nn.Module) -> nn.Module:
    return LayerStack([linear, nn.Linear(8, 3)], [activation, None])


class TestWhatWouldBeLost:
    @staticmethod
    def refused(model: nn.Module, message: str) -> None:
        before, parameters = str(model), list(model.parameters())
        with pytest.raises(ValueError, match=message):
            convert(model, PLAN)
        assert str(model) == before
        assert all(one is other for one, other in zip(model.parameters(), parameters, strict=True))

    @pytest.mark.parametrize("build", [in_sequential, in_transformer, in_mlp, in_stack])
    def test_with_a_linear_layer(self, build: Any) -> None:
        for kind in ("forward", "forward_pre", "full_backward", "full_backward_pre"):
            self.refused(build(hooked(nn.Linear(6, 8), kind), nn.ReLU()), "Linear has hooks, which would be lost")
        self.refused(build(Adapted(6, 8), nn.ReLU()), "Adapted has its own forward, which would be lost")
        changed: Any = nn.Linear(6, 8)
        changed.forward = lambda x: x
        self.refused(build(changed, nn.ReLU()), "Linear has its own forward")
        normed = nn.utils.parametrizations.weight_norm(nn.Linear(6, 8))
        self.refused(build(normed, nn.ReLU()), "ParametrizedLinear has parametrizations")
        self.refused(build(nn.utils.spectral_norm(nn.Linear(6, 8)), nn.ReLU()), "Linear has hooks")

    @pytest.mark.parametrize("build", [in_sequential, in_transformer, in_mlp, in_stack])
    def test_with_its_activation(self, build: Any) -> None:
        class Capped(nn.ReLU):
            def forward(self, x: Tensor) -> Tensor:
                return super().forward(x).clamp(max=1)

        self.refused(build(nn.Linear(6, 8), hooked(nn.ReLU(), "forward")), "ReLU has hooks")
        self.refused(build(nn.Linear(6, 8), Capped()), "Capped has its own forward")

    def test_with_our_dense_layer(self) -> None:
        class Doubled(Dense):
            def forward(self, x: Tensor) -> Tensor:
                return 2 * super().forward(x)

        self.refused(nn.Sequential(hooked(Dense(6, 8), "forward")), "Dense has hooks")
        self.refused(nn.Sequential(Doubled(6, 8)), "Doubled has its own forward")

    def test_with_the_perceptron_that_becomes_a_stack(self) -> None:
        class Residual(MLP):
            def forward(self, in_tensor: Tensor) -> Tensor:
                return in_tensor + super().forward(in_tensor)

        class Scaled(MLP):
            def pytorch_fwd(self, in_tensor: Tensor) -> Tensor:
                return 2 * super().pytorch_fwd(in_tensor)

        class Renamed(MLP):
            pass

        self.refused(hooked(MLP(6, 3, 8), "forward"), "MLP has hooks")
        self.refused(Residual(8, 3, 8), "Residual has its own forward")
        self.refused(Scaled(6, 3, 8), "Scaled has its own forward")
        assert paths(convert(Renamed(6, 3, 8), PLAN)) == ["layers.0", "layers.1"]

    def test_with_a_layer_that_stays_but_is_no_longer_called(self) -> None:
        mlp = MLP(6, 3, 8)
        hooked(mlp.layers[2], "forward")
        self.refused(mlp, "in its network Linear has hooks, which merging would ignore")

    def test_nothing_with_layers_that_were_not_asked_for(self) -> None:
        model = nn.Sequential(hooked(nn.Linear(6, 8), "forward"), nn.ReLU(), nn.Linear(8, 8), nn.ReLU())
        assert paths(convert(model, ConversionPlan(4, ("2",)))) == ["2"]


class Twice(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return self[1](self[2](self[1](self[0](x))))


class Squared(nn.TransformerEncoderLayer):
    def _ff_block(self, x: Tensor) -> Tensor:
        hidden = nn.functional.relu(self.linear1(x)).square()
        return self.linear2(hidden)  # type: ignore[no-any-return]


class TestContainersWithAForwardOfTheirOwn:
    """Subclasses of containers whose own forward decides what happens between their layers."""

    @pytest.mark.parametrize(
        "make", [lambda: Twice(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6)), lambda: Squared(6, 2, 8)]
    )
    def test_are_left_alone(self, make: Any) -> None:
        with pytest.raises(ValueError, match="matches no feed-forward layer"):
            convert(make(), PLAN)
        model = nn.Sequential(make(), nn.Linear(6, 8), nn.ReLU())
        before = str(model[0])
        assert paths(convert(model, PLAN)) == ["1"]
        assert str(model[0]) == before

    def test_a_changed_instance_too(self) -> None:
        model = nn.Sequential(nn.Linear(6, 8), nn.ReLU())
        model.forward = lambda x: model[1](model[1](model[0](x)))  # type: ignore[assignment, misc]
        with pytest.raises(ValueError, match="matches no feed-forward layer"):
            convert(model, PLAN)


class Mlp(nn.Module):
    """An MLP as in vision transformers, where only forward knows what follows a layer."""

    def __init__(self, act: Any) -> None:
        super().__init__()
        self.fc1 = nn.Linear(6, 24)
        self.act = act
        self.fc2 = nn.Linear(24, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))  # type: ignore[no-any-return]


class TestNamedActivations:
    @staticmethod
    def blocks(act: Any) -> nn.Module:
        return nn.ModuleDict({"blocks": nn.ModuleList([Mlp(act), Mlp(act)]), "head": perceptron()})

    @pytest.mark.parametrize(
        "act", [nn.GELU(), torch.nn.functional.gelu, nn.Hardtanh()], ids=["module", "function", "odd"]
    )
    def test_pairs_that_no_container_shows(self, act: Any) -> None:
        model = self.blocks(act)
        found = convert(model, ConversionPlan(4, norm=False), {"blocks.*.fc1": "act"})
        assert paths(found) == ["blocks.0.fc1", "blocks.1.fc1", "head.0", "head.2"]
        block: Any = model["blocks"][0]  # type: ignore[index]
        x = torch.randn(5, 6)
        torch.testing.assert_close(block(x), block.fc2(block.fc1(x)))
        merged = merge_chain([block.fc1, block.act, block.fc2])
        torch.testing.assert_close(merged.evaluate(x), block(x), rtol=1e-5, atol=1e-5)

    def test_patterns_of_the_plan_choose_among_them(self) -> None:
        found = convert(self.blocks(nn.GELU()), ConversionPlan(4, ("blocks.1.*",)), {"blocks.*.fc1": "act"})
        assert paths(found) == ["blocks.1.fc1"]
        assert "blocks.0.fc1" in found.kept

    @pytest.mark.parametrize("features", [24, 6])  # as many as the units that the fused path expects, and fewer
    def test_the_pair_of_a_transformer_layer(self, features: int) -> None:
        class Renamed(nn.TransformerEncoderLayer):
            def _ff_block(self, x: Tensor) -> Tensor:
                return self.linear2(self.activation(self.linear1(x)))

        torch.manual_seed(0)
        for kind in (Renamed, nn.TransformerEncoderLayer):
            layer = kind(6, 2, 24, dropout=0.0, batch_first=True).eval()
            convert(layer, ConversionPlan(features), {"linear1": "activation"})
            x = torch.randn(3, 5, 6)
            expected = layer(x)
            with torch.no_grad():
                torch.testing.assert_close(layer(x), expected)

    @pytest.mark.parametrize("name", ["method", "static"])
    def test_what_belongs_to_the_class_cannot_be_replaced(self, name: str) -> None:
        class Own(Mlp):
            static = staticmethod(torch.relu)

            def method(self, x: Tensor) -> Tensor:
                return x.relu()

        with pytest.raises(ValueError, match=f"'{name}' beside it belongs to the class Own"):
            convert(Own(nn.GELU()), PLAN, {"fc1": name})

    @pytest.mark.parametrize(
        ("act", "name", "message"),
        [
            (nn.GELU(), "fc2", r"has parameters \(Linear\)"),
            (nn.GELU(), "fc1", "is not an activation"),
            (nn.PReLU(), "act", r"has parameters \(PReLU\)"),
            (nn.Dropout(), "act", "is dropout, not an activation"),
            (3, "act", "is not an activation"),
        ],
    )
    def test_what_is_no_activation(self, act: Any, name: str, message: str) -> None:
        with pytest.raises(ValueError, match=f"'{name}' beside it {message}"):
            convert(Mlp(act), PLAN, {"fc1": name})

    @pytest.mark.parametrize(
        ("activations", "message"),
        [
            ({"blocks.*.fc9": "act"}, r"'blocks\.\*\.fc9', of activations, matches no torch\.nn\.Linear"),
            ({"blocks.*.fc1": "activation"}, r"blocks\.0\.fc1: the attribute 'activation' beside it does not exist"),
            ({"blocks.*.fc[12]": "act"}, r"blocks\.0\.fc1 and blocks\.0\.fc2 have the activation 'act' in common"),
            (
                {"blocks.*.fc1": "act", "blocks.0.*1": "gate"},
                r"blocks\.0\.fc1 is given two activations, 'act' and 'gate'",
            ),
        ],
    )
    def test_what_is_not_there(self, activations: dict[str, str], message: str) -> None:
        model = self.blocks(nn.GELU())
        before = str(model)
        with pytest.raises(ValueError, match=message):
            convert(model, PLAN, activations)
        assert str(model) == before

    def test_patterns_that_name_a_pair_twice(self) -> None:
        converted = convert(self.blocks(nn.GELU()), PLAN, {"blocks.*.fc1": "act", "*.fc1": "act"})
        assert paths(converted) == ["blocks.0.fc1", "blocks.1.fc1", "head.0", "head.2"]
        assert all(one.layer is converted.module.get_submodule(one.path) for one in converted.replaced)

    def test_hooks_of_the_activation_would_be_lost(self) -> None:
        with pytest.raises(ValueError, match="GELU has hooks, which would be lost"):
            convert(self.blocks(hooked(nn.GELU(), "forward")), PLAN, {"blocks.*.fc1": "act"})


class TestRefusals:
    @pytest.mark.parametrize(
        ("plan", "message"),
        [
            (ConversionPlan(4, ("field.*",)), r"'field\.\*' matches no feed-forward layer; those .* are: 0, 2"),
            (ConversionPlan(4, ("0", "4")), "'4' matches no feed-forward layer"),
            (ConversionPlan(4, ()), "the plan names no layers"),
            (ConversionPlan(9), r"0, Linear\(6, 8\): 9 features of 1 order\(s\) are more than its 8 units"),
            (ConversionPlan(5, order=2), "more than its 8 units"),
            (ConversionPlan(4, order=0), "order must be at least 1, got 0"),
            (ConversionPlan(0), "num_features must be at least 1"),
            (ConversionPlan(4, phi="rel"), "unknown activation 'rel'"),
            (ConversionPlan(4, projection="sparse"), "unknown projection 'sparse'"),
        ],
    )
    def test_nothing_is_changed(self, plan: ConversionPlan, message: str) -> None:
        model = perceptron()
        before = str(model)
        with pytest.raises(ValueError, match=message):
            convert(model, plan)
        assert str(model) == before

    def test_width_1(self) -> None:
        with pytest.raises(ValueError, match=r"0, Linear\(1, 8\), has width 1"):
            convert(nn.Sequential(nn.Linear(1, 8), nn.ReLU()), PLAN)

    def test_a_model_without_feed_forward_layers(self) -> None:
        with pytest.raises(ValueError, match="those of the model are: none"):
            convert(nn.Linear(3, 4), PLAN)

    def test_tied_layers(self) -> None:
        linear = nn.Linear(8, 8)
        with pytest.raises(ValueError, match="stands in 2 places"):
            convert(nn.Sequential(linear, nn.ReLU(), linear, nn.ReLU()), PLAN)

    def test_tied_weights(self) -> None:
        first, second = nn.Linear(8, 8), nn.Linear(8, 8)
        second.weight = first.weight
        model = nn.Sequential(first, nn.ReLU(), second, nn.ReLU())
        with pytest.raises(ValueError, match=r"0, Linear\(8, 8\), shares a parameter with 2"):
            convert(model, ConversionPlan(4, ("0",)))
        assert model[0] is first

    @pytest.mark.parametrize("pattern", ["*", "head.layers.0", "head"])
    def test_tiny_cuda_nn(self, pattern: str) -> None:
        mlp = MLP(6, 3, 16)
        mlp.tcnn_encoding = nn.Identity()
        with pytest.raises(ValueError, match=r"head keeps its weights in one opaque array of tiny-cuda-nn"):
            convert(nn.ModuleDict({"head": mlp, "other": perceptron()}), ConversionPlan(4, (pattern,)))
        assert paths(convert(nn.ModuleDict({"head": mlp, "other": perceptron()}), ConversionPlan(4, ("other.*",))))


def test_one_pattern_may_be_given_by_itself() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    assert paths(convert(model, ConversionPlan(4, "0"))) == ["0"]  # type: ignore[arg-type]
    assert ConversionPlan(4, "net.*.0").layers == ("net.*.0",)  # type: ignore[arg-type]

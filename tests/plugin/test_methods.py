"""The methods' configurations: defaults for each device, and a fair comparison."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from eugen_nerf.field import ORDER_2_LAYERS, EugenField
from eugen_nerf.plugin import methods
from eugen_nerf.plugin.methods import method_config, order_2_method_config

METHODS = {
    "eugen-nerf": (methods.eugen_nerf, "eugen"),
    "eugen-nerf-mlp": (methods.eugen_nerf_mlp, "mlp"),
    "eugen-nerf-low-rank": (methods.eugen_nerf_low_rank, "low-rank"),
    "eugen-nerf-snnk": (methods.eugen_nerf_snnk, "snnk"),
}


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """Every option of a configuration, by its path."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        items = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    elif isinstance(value, dict):
        items = value
    else:
        return {path: value}
    return {k: v for name, item in items.items() for k, v in flat(item, f"{path}.{name}" if path else name).items()}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("network", ["mlp", "low-rank", "snnk"])
def test_methods_differ_in_their_networks_alone(network: Any, device: Any) -> None:
    first = flat(method_config("eugen-nerf", "eugen", device))
    second = flat(method_config(f"eugen-nerf-{network}", network, device))
    assert set(first) == set(second)
    different = {name for name in first if first[name] != second[name]}
    # Each kind of network has its own learning rate, which decays by the same factor.
    assert different - {"optimizers.networks.optimizer.lr"} == {"method_name", "pipeline.model.field.network"}
    assert second["pipeline.model.field.network"] == network
    for options in (first, second):
        assert options["optimizers.networks.scheduler.final_fraction"] == pytest.approx(1 / 30)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_order_2_is_the_same_method_with_other_layers_of_the_same_cost(device: Any) -> None:
    configs = [method_config("eugen-nerf", "eugen", device), order_2_method_config("eugen-nerf-order2", device)]
    first, second = map(flat, configs)
    different = {name for name in first if first[name] != second[name]}
    others = {"method_name", "optimizers.networks.optimizer.lr"}
    assert {name.removeprefix("pipeline.model.field.") for name in different - others} == ORDER_2_LAYERS.keys()
    assert flat(methods.eugen_nerf_order2.config) == flat(order_2_method_config("eugen-nerf-order2"))
    small = {"log2_hashmap_size": 4, "candidate_features": 0}
    models: list[Any] = [config.pipeline.model for config in configs]
    fields = [EugenField(dataclasses.replace(model.field, **small)) for model in models]
    products = 3 * 16  # in one layer of the density network and two of the color network
    assert fields[1].multiply_adds() == fields[0].multiply_adds() + products


def test_the_offered_methods_are_these() -> None:
    for name, (specification, network) in METHODS.items():
        assert flat(specification.config) == flat(method_config(name, network))  # type: ignore[arg-type]
        assert specification.description
    specifications = [methods.eugen_nerf_order2, *(specification for specification, _ in METHODS.values())]
    assert len({specification.description for specification in specifications}) == len(specifications)


def test_defaults_follow_the_device() -> None:
    cpu, gpu = (flat(method_config("m", "eugen", device)) for device in ("cpu", "cuda"))  # type: ignore[arg-type]
    assert cpu["machine.device_type"] == "cpu"
    assert gpu["machine.device_type"] == "cuda"
    for option in (
        "max_num_iterations",
        "pipeline.target_num_samples",
        "pipeline.max_num_samples_per_ray",
        "pipeline.model.steps_per_diagonal",
        "pipeline.model.occupancy_resolution",
        "pipeline.model.field.log2_hashmap_size",
        "pipeline.model.field.max_resolution",
    ):
        assert cpu[option] < gpu[option], option
    assert (cpu["pipeline.model.skip_occluded"], gpu["pipeline.model.skip_occluded"]) == (None, True)
    # The full-size grid on a GPU; on a CPU a smaller one with as many features.
    assert (gpu["pipeline.model.field.num_levels"], gpu["pipeline.model.field.features_per_level"]) == (16, 2)
    assert cpu["pipeline.model.field.num_levels"] * cpu["pipeline.model.field.features_per_level"] == 32
    for options in (cpu, gpu):
        # The first batch keeps within the budget of samples.
        assert options["pipeline.target_num_samples"] >= options["pipeline.max_num_samples_per_ray"]
        assert options["optimizers.encoding.scheduler.max_steps"] == options["max_num_iterations"]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_optimizer_averages_and_divides_alike(device: Any) -> None:
    """Gradients of a hash grid are tiny, so Adam's usual eps would suppress the steps."""
    configs = [method_config("m", network, device) for _, network in METHODS.values()]  # type: ignore[arg-type]
    for config in (*configs, order_2_method_config("m", device)):
        groups = config.optimizers
        assert set(groups) == {"encoding", "networks"}
        for group in groups.values():
            optimizer: Any = group["optimizer"]
            assert (optimizer.betas, optimizer.eps) == ((0.9, 0.99), 1e-15)


@pytest.mark.parametrize("available", [True, False])
def test_the_device_is_chosen_by_what_there_is(monkeypatch: pytest.MonkeyPatch, available: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    expected = method_config("m", "mlp", "cuda" if available else "cpu")
    assert flat(method_config("m", "mlp")) == flat(expected)


def test_training_ends_by_itself() -> None:
    """With a viewer, nerfstudio keeps serving the scene after the last step."""
    for specification in (methods.eugen_nerf_order2, *(specification for specification, _ in METHODS.values())):
        assert not specification.config.is_viewer_enabled()
        assert not specification.config.is_viewer_legacy_enabled()
        # Only a viewer keeps nerfstudio from evaluating during training.
        assert specification.config.steps_per_eval_image < specification.config.max_num_iterations

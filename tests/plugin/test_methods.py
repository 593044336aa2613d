"""The methods' configurations: defaults for each device, and a fair comparison."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from eugen_nerf.errors import UserError
from eugen_nerf.field import ORDER_2_LAYERS, EugenField
from eugen_nerf.plugin import methods
from eugen_nerf.plugin.methods import EugenTrainerConfig, method_config, order_2_method_config

METHODS = {
    "eugen-nerf": (methods.eugen_nerf, "eugen"),
    "eugen-nerf-mlp": (methods.eugen_nerf_mlp, "mlp"),
    "eugen-nerf-low-rank": (methods.eugen_nerf_low_rank, "low-rank"),
    "eugen-nerf-snnk": (methods.eugen_nerf_snnk, "snnk"),
}


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """Every option of a configuration by its path."""
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
    # Each kind of network trains at a rate of its own, which decays by the same factor.
    rates = {"optimizers.networks.optimizer.lr", "optimizers.networks.scheduler.lr_final"}
    assert different - rates == {"method_name", "pipeline.model.field.network"}
    assert second["pipeline.model.field.network"] == network
    for options in (first, second):
        rate, last = (options[name] for name in sorted(rates))
        assert last == pytest.approx(rate / 30)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_order_2_is_the_same_method_with_other_layers_of_the_same_cost(device: Any) -> None:
    configs = [method_config("eugen-nerf", "eugen", device), order_2_method_config("eugen-nerf-order2", device)]
    first, second = map(flat, configs)
    different = {name for name in first if first[name] != second[name]}
    others = {"method_name", "optimizers.networks.optimizer.lr", "optimizers.networks.scheduler.lr_final"}
    assert {name.removeprefix("pipeline.model.field.") for name in different - others} == ORDER_2_LAYERS.keys()
    assert flat(methods.eugen_nerf_order2.config) == flat(order_2_method_config("eugen-nerf-order2"))
    small = {"log2_hashmap_size": 4, "candidate_features": 0}
    models: list[Any] = [config.pipeline.model for config in configs]
    fields = [EugenField(dataclasses.replace(model.field, **small)) for model in models]
    products = 3 * 16  # in one layer of the density and two of the colour network
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
    # The full-size grid on a GPU; on a CPU a smaller one with as many features.
    assert (gpu["pipeline.model.field.num_levels"], gpu["pipeline.model.field.features_per_level"]) == (16, 2)
    assert cpu["pipeline.model.field.num_levels"] * cpu["pipeline.model.field.features_per_level"] == 32
    for options in (cpu, gpu):
        # The first batch keeps within the budget of samples.
        assert options["pipeline.target_num_samples"] >= options["pipeline.max_num_samples_per_ray"]
        assert options["optimizers.encoding.scheduler.max_steps"] == options["max_num_iterations"]


@pytest.mark.parametrize("available", [True, False])
def test_the_device_is_chosen_by_what_there_is(monkeypatch: pytest.MonkeyPatch, available: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    expected = method_config("m", "mlp", "cuda" if available else "cpu")
    assert flat(method_config("m", "mlp")) == flat(expected)


def test_training_ends_by_itself() -> None:
    """With a viewer, nerfstudio goes on serving the scene after the last step."""
    for specification in (methods.eugen_nerf_order2, *(specification for specification, _ in METHODS.values())):
        assert not specification.config.is_viewer_enabled()
        assert not specification.config.is_viewer_legacy_enabled()
        # Nothing but a viewer keeps nerfstudio from evaluating while it trains.
        assert specification.config.steps_per_eval_image < specification.config.max_num_iterations


class TestSaveConfig:
    """What ns-train does before anything else."""

    def config(self, parse: Any, scene: Path, output: Path, *options: str) -> EugenTrainerConfig:
        config = parse("--output-dir", output, "--timestamp=now", *options)
        config.pipeline.datamanager.data = scene
        return config

    def test_writes_a_configuration_that_finds_the_scene_from_anywhere(
        self, parse: Any, ball_scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(ball_scene.parent)
        self.config(parse, Path(ball_scene.name), tmp_path).save_config()
        written = tmp_path / ball_scene.name / "eugen-nerf" / "now" / "config.yml"
        config = yaml.load(written.read_text(), Loader=yaml.Loader)
        assert config.pipeline.datamanager.data == ball_scene
        assert config.pipeline.datamanager.dataparser.data == ball_scene

    @pytest.mark.parametrize("fit", [True, False])
    def test_learning_rates_decay_over_the_steps_there_are(
        self, parse: Any, ball_scene: Path, tmp_path: Path, fit: bool
    ) -> None:
        config = self.config(parse, ball_scene, tmp_path, "--max-num-iterations=123", f"--fit-schedules={fit}")
        before = {name: group["scheduler"].max_steps for name, group in config.optimizers.items()}
        config.save_config()
        after = {name: group["scheduler"].max_steps for name, group in config.optimizers.items()}
        assert after == (dict.fromkeys(before, 123) if fit else before)

    def test_says_what_will_be_trained(
        self, parse: Any, ball_scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.config(parse, ball_scene, tmp_path).save_config()
        text = " ".join(capsys.readouterr().out.split())
        assert "Training eugen on cpu: hash grid 4 x 4 features, up to 2^11 entries a level" in text

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--pipeline.model.field.num-levels=0"], "num_levels must be at least 1"),
            (["--pipeline.model.occupancy-resolution=9"], "occupancy_resolution must be even"),
            (["--load-dir=/nowhere"], r"/nowhere: holds no checkpoint .* nerfstudio_models"),
        ],
    )
    def test_refuses_options_before_it_writes_anything(
        self, parse: Any, ball_scene: Path, tmp_path: Path, options: list[str], message: str
    ) -> None:
        with pytest.raises(UserError, match=message):
            self.config(parse, ball_scene, tmp_path, *options).save_config()
        assert not list(tmp_path.iterdir())

    def test_refuses_a_folder_without_a_scene(self, parse: Any, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        with pytest.raises(UserError, match="holds no scene"):
            self.config(parse, tmp_path / "empty", tmp_path / "outputs").save_config()
        assert not (tmp_path / "outputs").exists()

    def test_leaves_other_dataparsers_to_nerfstudio(self, parse: Any, ball_scene: Path, tmp_path: Path) -> None:
        config = parse("--output-dir", tmp_path, "--timestamp=now", "blender-data", "--data", ball_scene)
        config.save_config()
        assert config.pipeline.datamanager.data == ball_scene
        assert (tmp_path / "ball" / "eugen-nerf" / "now" / "config.yml").is_file()


class TestBusyMachine:
    @pytest.fixture(autouse=True)
    def two_threads(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
        monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
        monkeypatch.setattr(torch, "get_num_threads", lambda: 2)

    def test_is_told_what_helps(self) -> None:
        hint = methods.busy_machine_hint(1.5)
        assert hint is not None
        assert "OMP_WAIT_POLICY=passive" in hint

    def test_nothing_to_tell(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert methods.busy_machine_hint(0.1) is None
        monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
        assert methods.busy_machine_hint(1.5) is None
        monkeypatch.delenv("OMP_WAIT_POLICY")
        monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
        assert methods.busy_machine_hint(1.5) is None

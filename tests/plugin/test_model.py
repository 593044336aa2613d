"""EugenModel in nerfstudio's pipeline: backgrounds, training, checkpoints, crops and its panel in the viewer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.scene_box import OrientedBox, SceneBox
from nerfstudio.engine.callbacks import TrainingCallbackAttributes, TrainingCallbackLocation
from nerfstudio.model_components.renderers import background_color_override_context
from nerfstudio.utils.eval_utils import eval_setup
from nerfstudio.viewer.utils import parse_object
from nerfstudio.viewer.viewer_elements import ViewerElement

from eugen_nerf.errors import UserError
from eugen_nerf.layers import EUGen
from eugen_nerf.plugin.model import EugenModel, EugenModelConfig
from eugen_nerf.plugin.pipeline import SampleBudgetPipeline
from eugen_nerf.renderer import RenderOutput
from tests.pretended_gpu import OnGpu, pretended_gpu

BOX = SceneBox(aabb=torch.tensor([[-1.5, -1.5, -1.5], [1.5, 1.5, 1.5]]))
BOUNDED = {"bounded": True, "near": 0.1, "far": 10.0}


def build(metadata: dict[str, Any] | None = None, parse: Any = None, **options: Any) -> EugenModel:
    """A model without a dataset, with small options and a partly opaque field."""
    config: EugenModelConfig = parse().pipeline.model
    for name, value in options.items():
        setattr(config, name, value)
    torch.manual_seed(0)
    model = config.setup(scene_box=BOX, num_train_data=1, metadata=BOUNDED if metadata is None else metadata)
    with torch.no_grad():
        model.field.get_parameter("encoding.table").normal_()
    return model


def bundle(n: int = 64) -> RayBundle:
    """Rays from around the scene toward its center."""
    generator = torch.Generator().manual_seed(0)
    origins = 3 * torch.nn.functional.normalize(torch.randn(n, 3, generator=generator), dim=-1)
    directions = torch.nn.functional.normalize(0.5 * torch.randn(n, 3, generator=generator) - origins, dim=-1)
    return RayBundle(origins, directions, pixel_area=torch.ones(n, 1))


def empty(model: EugenModel) -> EugenModel:
    """The model with zero density everywhere."""
    model.occupancy.bits.zero_()
    return model


@pytest.fixture(scope="module")
def pipeline(trained_run: Path) -> SampleBudgetPipeline:
    return eval_setup(trained_run / "config.yml", test_mode="val")[1]  # type: ignore[return-value]


@pytest.mark.parametrize("skip_occluded", [False, True])
def test_samples_are_counted(parse: Any, skip_occluded: bool) -> None:
    model = build(parse=parse, skip_occluded=skip_occluded)
    assert model.renderer.skip_occluded == skip_occluded
    for training in (True, False):
        outputs = model.train(training)(bundle())
        count = model.get_metrics_dict(outputs, {})["num_samples_per_batch"]
        assert count == outputs["num_samples_per_ray"].sum() > 0
    with pytest.MonkeyPatch.context() as patch, pretended_gpu(patch) as gpu:
        model.to(gpu)
        rays = bundle().to(gpu)
        count = model.train().get_metrics_dict(model(rays), {})["num_samples_per_batch"]
        assert not isinstance(count, OnGpu)  # the pipeline reads it in every step, which would synchronize


def test_training_shifts_the_samples_of_each_ray(parse: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(parse=parse).train()
    shifts: list[torch.Tensor] = []
    render = model.renderer.render_differentiable

    def noted(origins: torch.Tensor, directions: torch.Tensor, jitter: torch.Tensor) -> RenderOutput:
        shifts.append(jitter)
        return render(origins, directions, jitter)

    monkeypatch.setattr(model.renderer, "render_differentiable", noted)
    model(bundle())
    model(bundle())
    for jitter in shifts:
        assert ((jitter >= 0) & (jitter < 1)).all()
    assert len(torch.cat(shifts).unique()) == 2 * 64  # drawn anew in each step
    model.eval()
    first, second = model(bundle()), model(bundle())
    assert len(shifts) == 2
    assert torch.equal(first["rgb"], second["rgb"])


def test_colors_of_pictures_keep_within_their_range(parse: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(parse=parse).eval()
    rgb, ones = torch.tensor([[1.25, -0.25, 0.5]]).expand(64, 3), torch.ones(64)
    monkeypatch.setattr(model.renderer, "render", lambda *_: RenderOutput(rgb, ones, ones, ones))
    assert torch.equal(model(bundle())["rgb"], torch.tensor([[1.0, 0.0, 0.5]]).expand(64, 3))


class TestBackgrounds:
    def test_training_returns_colors_without_background_and_random_ones_come_with_the_loss(self, parse: Any) -> None:
        model = empty(build(parse=parse)).train()
        outputs = model(bundle())
        assert not outputs["rgb"].any()
        assert not outputs["accumulation"].any()
        transparent = {"image": torch.zeros(64, 4)}
        # Truth and prediction have the same background, whatever it is.
        assert model.get_loss_dict(outputs, transparent)["rgb_loss"] == 0
        opaque = {"image": torch.cat([torch.full((64, 3), 0.5), torch.ones(64, 1)], dim=-1)}
        losses = {model.get_loss_dict(outputs, opaque)["rgb_loss"].item() for _ in range(3)}
        assert len(losses) == 3  # the colors are drawn anew
        assert all(loss == pytest.approx(1 / 12, rel=0.3) for loss in losses)  # variance of a uniform number

    @pytest.mark.parametrize(("name", "value"), [("white", 1.0), ("black", 0.0)])
    def test_training_on_a_constant_background(self, parse: Any, name: str, value: float) -> None:
        model = empty(build(parse=parse, train_background=name)).train()
        outputs = model(bundle())
        assert (outputs["rgb"] == value).all()
        assert model.get_loss_dict(outputs, {"image": torch.zeros(64, 4)})["rgb_loss"] == 0

    @pytest.mark.parametrize(("name", "value"), [("white", 1.0), ("black", 0.0)])
    def test_pictures_are_on_the_background_of_the_dataset(self, parse: Any, name: str, value: float) -> None:
        model = empty(build({**BOUNDED, "eval_background": name}, parse=parse)).eval()
        assert (model(bundle())["rgb"] == value).all()

    def test_a_dataset_that_names_no_background_means_white(self, parse: Any) -> None:
        assert (empty(build({}, parse=parse)).eval()(bundle())["rgb"] == 1).all()

    def test_the_background_chosen_in_the_viewer_wins(self, parse: Any) -> None:
        color = torch.tensor([0.1, 0.2, 0.3])
        with background_color_override_context(color):
            outputs = empty(build(parse=parse)).eval()(bundle())
        assert torch.equal(outputs["rgb"], color.expand(64, 3))

    def test_truth_with_alpha_is_blended_for_metrics(self, parse: Any) -> None:
        model = build(parse=parse).eval()
        alpha = torch.rand(16, 16, 1, generator=torch.Generator().manual_seed(0))
        truth = torch.cat([torch.full((16, 16, 3), 0.2), alpha], dim=-1)
        outputs = {
            "rgb": 0.2 * alpha + (1 - alpha).expand(16, 16, 3),
            "accumulation": alpha,
            "depth": alpha,
        }
        metrics, images = model.get_image_metrics_and_images(outputs, {"image": truth})
        assert metrics["psnr"] > 50
        torch.testing.assert_close(images["img"], torch.cat([outputs["rgb"]] * 2, dim=1))
        assert images["accumulation"].shape == images["depth"].shape == (16, 16, 3)

    @pytest.mark.parametrize(("name", "value"), [("white", 1.0), ("black", 0.0)])
    def test_the_loss_on_test_views_is_that_of_pictures(self, parse: Any, name: str, value: float) -> None:
        """These already have the dataset's background."""
        model = empty(build({**BOUNDED, "eval_background": name}, parse=parse)).eval()
        alpha = torch.rand(64, 1, generator=torch.Generator().manual_seed(0))
        truth = torch.cat([torch.full((64, 3), 0.3), alpha], dim=-1)
        loss = model.get_loss_dict(model(bundle()), {"image": truth})["rgb_loss"]
        torch.testing.assert_close(loss, ((0.3 - value) * alpha).square().mean())

    @pytest.mark.parametrize(("name", "value"), [("white", 1.0), ("black", 0.0)])
    def test_rgba_image_takes_the_background_out_again(self, parse: Any, name: str, value: float) -> None:
        model = build({**BOUNDED, "eval_background": name}, parse=parse).eval()
        outputs = model(bundle())
        rgba = model.get_rgba_image(outputs)
        alpha = outputs["accumulation"]
        assert torch.equal(rgba[:, 3:], alpha)
        assert alpha.max() > 0.3
        torch.testing.assert_close(rgba[:, :3] * alpha + value * (1 - alpha), outputs["rgb"], rtol=0, atol=1e-5)


class TestSpace:
    def test_bounded_scenes_have_steps_of_one_length_and_others_growing_ones(self, parse: Any) -> None:
        bounded, unbounded = build(parse=parse).renderer, build({}, parse=parse).renderer
        assert not bounded.space.contracted
        assert unbounded.space.contracted
        assert bounded.rule.step_size == unbounded.rule.step_size == pytest.approx(3 * 3**0.5 / 128)
        assert (bounded.skip_occluded, unbounded.skip_occluded) == (False, True)
        assert bounded.rule.cone_angle == 0
        assert unbounded.rule.cone_angle > 0

    @pytest.mark.parametrize(("metadata", "density"), [(BOUNDED, 1.0), ({}, 0.1)], ids=["bounded", "contracted"])
    def test_training_begins_in_fog_that_is_thin_where_rays_are_long(
        self, parse: Any, metadata: dict[str, Any], density: float
    ) -> None:
        model = build(metadata, parse=parse)
        with torch.no_grad():
            model.field.get_parameter("encoding.table").mul_(1e-4)  # as before training
            sigma, _ = model.field.density_at(torch.rand(100, 3))
        torch.testing.assert_close(sigma, torch.full((100,), density), rtol=0.01, atol=0)

    def test_options_go_before_what_the_scene_says(self, parse: Any) -> None:
        renderer = build(parse=parse).renderer
        assert (renderer.near, renderer.far) == (0.1, 10.0)
        renderer = build(parse=parse, near=0.5, far=4.0, contraction=True).renderer
        assert (renderer.near, renderer.far, renderer.space.contracted) == (0.5, 4.0, True)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"near": 5.0, "far": 2.0}, r"near limit of rays \(5.0\) .* below far \(2.0\)"),
            ({"near": -1.0}, "must not be negative"),
            ({"steps_per_diagonal": 0}, "steps_per_diagonal must be at least 1, not 0"),
            ({"occupancy_resolution": 7}, "occupancy_resolution must be even and positive, at most 1024, not 7"),
            ({"occupancy_resolution": 4096}, "occupancy_resolution must be even and positive, at most 1024, not 4096"),
            ({"cone_angle": -0.1}, "cone_angle must be a finite number, 0 or more, not -0.1"),
            ({"cone_angle": math.nan}, "cone_angle must be a finite number, 0 or more, not nan"),
            ({"occupancy_threshold": math.nan}, "occupancy_threshold must be a finite number"),
            ({"eval_num_rays_per_chunk": 0}, "eval_num_rays_per_chunk must be at least 1, not 0"),
            ({"enable_collider": True}, "enable_collider must stay False"),
        ],
    )
    def test_options_that_cannot_work(self, parse: Any, options: dict[str, Any], message: str) -> None:
        with pytest.raises(UserError, match=message):
            build(parse=parse, **options)

    def test_pictures_are_those_of_nerfstudios_rays(self, pipeline: SampleBudgetPipeline) -> None:
        camera = pipeline.datamanager.eval_dataset.cameras[0:1]
        camera = replace(camera, width=camera.width - 3)  # neither square nor a power of two
        model = pipeline.model
        expected = model.get_outputs_for_camera_ray_bundle(camera.generate_rays(camera_indices=0, keep_shape=True))
        got = model.get_outputs_for_camera(camera)
        assert expected["accumulation"].max() > 0.9
        for name, values in expected.items():
            assert got[name].shape == values.shape
            assert (got[name] - values).abs().mean() < 1e-4

    def test_limits_may_be_integers(self, pipeline: SampleBudgetPipeline) -> None:
        """ns-render --render-nearest-camera True asks so whether something hides a camera."""
        camera = pipeline.datamanager.eval_dataset.cameras[0:1]
        rays = camera.generate_rays(camera_indices=0, keep_shape=True).flatten()
        expected = pipeline.model.get_outputs(rays)["depth"]
        rays.nears, rays.fars = (torch.full((len(rays), 1), limit) for limit in (0, 100))
        torch.testing.assert_close(pipeline.model.get_outputs(rays)["depth"], expected)

    def test_what_nothing_was_hit_in_lies_behind_everything(self, pipeline: SampleBudgetPipeline) -> None:
        """The viewer and ns-render hide what is farther than the depth, as the frustums of other cameras."""
        model = pipeline.model
        camera = pipeline.datamanager.eval_dataset.cameras[0:1]
        outputs = model.get_outputs_for_camera(camera)
        missed = outputs["accumulation"] < 1e-4
        assert 0 < missed.sum() < missed.numel()
        box = torch.tensor(model.renderer.space.box)
        corners = torch.cartesian_prod(*box.T)
        here = camera.camera_to_worlds[0, :, 3]
        assert outputs["depth"][missed].min() >= (corners - here).norm(dim=-1).max() - 1e-3
        assert outputs["depth"][missed].max() < 20  # depth images keep their contrast
        assert outputs["depth"][~missed].max() < outputs["depth"][missed].min()
        rays = camera.generate_rays(camera_indices=0, keep_shape=True).flatten()
        with torch.random.fork_rng():
            trained = model.train().get_outputs(rays)["depth"]
        model.eval()
        assert trained[missed.flatten()].max() < outputs["depth"][~missed].max()  # no part of training

    def test_contracted_scenes_put_it_at_seven_eighths_of_their_space(self, parse: Any) -> None:
        model = empty(build({"bounded": False, "near": 0.1, "far": 1e3}, parse)).eval()
        rays = bundle(5)
        assert model.renderer.space.contracted
        expected = 3 + 2 * model.renderer.space.diagonal
        torch.testing.assert_close(model(rays)["depth"], torch.full((5, 1), expected))
        near = empty(build({"bounded": False, "near": 0.1, "far": 4.0}, parse)).eval()
        assert (near(rays)["depth"] == 4).all()

    def test_a_crop_box_is_respected(self, pipeline: SampleBudgetPipeline) -> None:
        camera = pipeline.datamanager.eval_dataset.cameras[0:1]
        model = pipeline.model
        whole = model.get_outputs_for_camera(camera)
        assert whole["accumulation"].max() > 0.9
        around = OrientedBox(R=torch.eye(3), T=torch.zeros(3), S=torch.full((3,), 2.4))
        difference = model.get_outputs_for_camera(camera, obb_box=around)["rgb"] - whole["rgb"]
        assert difference.abs().mean() < 0.02  # little floats beyond
        small = OrientedBox(R=torch.eye(3), T=torch.zeros(3), S=torch.full((3,), 0.4))
        cropped = model.get_outputs_for_camera(camera, obb_box=small)
        assert cropped["accumulation"].sum() < 0.5 * whole["accumulation"].sum()
        assert (cropped["rgb"][0, 0] == 1).all()
        beside = OrientedBox(R=torch.eye(3), T=torch.tensor([0.0, 0.0, 9.0]), S=torch.ones(3))
        assert not model.get_outputs_for_camera(camera, obb_box=beside)["accumulation"].any()


class TestTraining:
    def test_the_loss_falls_and_the_ball_is_learned(self, parse: Any, ball_scene: Path) -> None:
        torch.manual_seed(0)
        pipeline = parse("--data", ball_scene, "--pipeline.model.field.candidate-features=0").pipeline
        pipeline.datamanager.data = ball_scene
        pipeline = pipeline.setup(device="cpu")
        groups = pipeline.get_param_groups()
        assert {id(p) for group in groups.values() for p in group} == {id(p) for p in pipeline.model.field.parameters()}
        optimizer = torch.optim.Adam([p for group in groups.values() for p in group], lr=1e-2, eps=1e-15)
        (callback,) = pipeline.get_training_callbacks(None)  # type: ignore[arg-type]
        losses, rays = [], []
        pipeline.train()
        for step in range(170):
            callback.run_callback(step)
            _, loss, metrics = pipeline.get_train_loss_dict(step)
            optimizer.zero_grad()
            loss["rgb_loss"].backward()
            optimizer.step()
            losses.append(loss["rgb_loss"].item())
            rays.append(int(metrics["num_rays_per_batch"]))
            assert metrics["psnr"].item() == pytest.approx(-10 * torch.tensor(losses[-1]).log10().item(), rel=1e-4)
        assert sum(losses[-10:]) < 0.1 * sum(losses[:10])
        assert pipeline.model.occupancy.occupied_fraction < 0.5
        # The sample budget stays the same, so emptier space means more rays.
        assert max(rays[-10:]) > 2 * rays[0]

    def test_the_trained_run_shows_the_ball(self, pipeline: SampleBudgetPipeline) -> None:
        metrics = pipeline.get_average_eval_image_metrics()
        assert metrics["psnr"] > 17
        assert metrics["ssim"] > 0.6

    def test_the_number_of_rays_keeps_within_its_limits(self, pipeline: SampleBudgetPipeline) -> None:
        config = pipeline.config
        for rays, samples, expected in [
            (1000, 0, 2000),  # only background: at most doubled
            (1000, config.target_num_samples, 1000),
            (1000, 2 * config.target_num_samples, 500),
            (1000, 10**9, 64),
            (config.max_rays_per_batch, 1, config.max_rays_per_batch),
        ]:
            pipeline.dynamic_num_rays_per_batch = rays
            pipeline._update_dynamic_num_rays_per_batch(samples)
            assert pipeline.dynamic_num_rays_per_batch == expected

    def test_a_budget_below_the_samples_of_one_ray_still_starts_with_rays(self, parse: Any, ball_scene: Path) -> None:
        config = parse("--pipeline.target-num-samples=8", "--pipeline.max-num-samples-per-ray=100").pipeline
        config.datamanager.data = ball_scene
        pipeline = config.setup(device="cpu")
        assert pipeline.datamanager.train_pixel_sampler.num_rays_per_batch == 64
        assert pipeline.get_train_loss_dict(0)[1]["rgb_loss"].isfinite()


def test_an_option_without_effect_is_refused(parse: Any, ball_scene: Path) -> None:
    config = parse("--data", ball_scene, "--pipeline.datamanager.train-num-rays-per-batch=512")
    with pytest.raises(UserError, match=r"train_num_rays_per_batch has no effect.*target_num_samples"):
        config.validate()


class TestSelection:
    """The time of feature selection, with 24 candidates of which 16 are kept."""

    @pytest.fixture
    def candidates(self, parse: Any, ball_scene: Path) -> SampleBudgetPipeline:
        config = parse("--data", ball_scene, "--pipeline.model.field.candidate-features=24").pipeline
        config.datamanager.data = ball_scene
        pipeline: SampleBudgetPipeline = config.setup(device="cpu", test_mode="val")
        pipeline.model.occupancy.bits.fill_(255)
        return pipeline

    def trainer(self, pipeline: SampleBudgetPipeline, start: int = 0, steps: int = 100) -> Callable[..., bool]:
        """Run a trainer's callbacks before a step, or at the end; return whether candidates are left."""
        optimizers = SimpleNamespace(optimizers={"networks": torch.optim.Adam(pipeline.model.field.parameters())})
        trainer = SimpleNamespace(_start_step=start, config=SimpleNamespace(max_num_iterations=steps))
        callbacks = pipeline.get_training_callbacks(
            TrainingCallbackAttributes(optimizers, None, pipeline, trainer)  # type: ignore[arg-type]
        )
        ours = [one for one in callbacks if one.func.__module__ == SampleBudgetPipeline.__module__]

        def call(step: int, location: Any = TrainingCallbackLocation.BEFORE_TRAIN_ITERATION) -> bool:
            for callback in ours:
                callback.run_callback_at_location(step, location)
            return bool(pipeline.model.field.has_candidates())

        return call

    def test_after_its_share_of_all_steps(self, candidates: SampleBudgetPipeline) -> None:
        before = self.trainer(candidates)
        assert before(49)
        assert not before(50)

    def test_steps_that_led_to_the_checkpoint_count(self, candidates: SampleBudgetPipeline) -> None:
        before = self.trainer(candidates, start=80, steps=120)
        assert before(99)
        assert not before(100)

    def test_before_the_last_step_at_the_latest(self, candidates: SampleBudgetPipeline) -> None:
        candidates.config.selection_fraction = 0.999
        before = self.trainer(candidates, steps=40)
        assert before(38)
        assert not before(39)

    def test_rays_are_drawn_up_to_a_limit(
        self, candidates: SampleBudgetPipeline, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """However large the photos are; and no more of them than there are pixels."""
        cameras, shares = candidates.datamanager.train_dataset.cameras, []

        def recorded(pipeline: Any, fields: list[str], share: float, *_: Any, **__: Any) -> None:
            shares.append(share)
            raise UserError("no more is wanted")

        monkeypatch.setattr("eugen_nerf.plugin.pipeline.record", recorded)
        pixels = int((cameras.height * cameras.width).sum())
        for limit in (pixels // 4, 2 * pixels):
            monkeypatch.setattr("eugen_nerf.plugin.pipeline.SELECTION_RAYS", limit)
            with pytest.raises(UserError, match="no more is wanted"):
                candidates.select_features(torch.optim.Adam(candidates.model.field.parameters()))
        assert shares == [0.25, 1.0]

    def test_later_where_there_is_nothing_to_select_them_by(
        self, candidates: SampleBudgetPipeline, capsys: pytest.CaptureFixture[str]
    ) -> None:
        before = self.trainer(candidates)
        candidates.model.occupancy.bits.zero_()
        for step in (49, 50, 51, 59):
            assert before(step)
        assert capsys.readouterr().out.count("All features are kept for now") == 1
        candidates.model.occupancy.bits.fill_(255)
        assert not before(60)
        assert not before(99, TrainingCallbackLocation.AFTER_TRAIN)
        assert "All 24" not in capsys.readouterr().out

    def test_is_missed_once_where_training_goes_on_late(
        self, candidates: SampleBudgetPipeline, capsys: pytest.CaptureFixture[str]
    ) -> None:
        before = self.trainer(candidates, start=90, steps=10)
        candidates.model.occupancy.bits.zero_()
        for step in range(90, 99):
            before(step)
        assert capsys.readouterr().out.count("All features are kept for now") == 1

    def test_the_end_says_that_all_stayed(
        self, candidates: SampleBudgetPipeline, capsys: pytest.CaptureFixture[str]
    ) -> None:
        call = self.trainer(candidates, steps=3)
        candidates.model.occupancy.bits.zero_()
        for step in range(3):
            call(step)
        call(2, TrainingCallbackLocation.AFTER_TRAIN)
        text = " ".join(capsys.readouterr().out.split())
        assert text.count("All 24 features of each EUGen layer were kept") == 1

    def test_a_field_that_is_not_finite_stays_as_it_is(
        self, candidates: SampleBudgetPipeline, capsys: pytest.CaptureFixture[str]
    ) -> None:
        before = self.trainer(candidates)
        with torch.no_grad():
            candidates.model.field.color_network.layers[-1].bias.fill_(torch.nan)
        assert before(50)
        assert "All features are kept for now. Features cannot be compared" in " ".join(capsys.readouterr().out.split())
        layers = [m for m in candidates.model.field.modules() if isinstance(m, EUGen)]
        assert [layer.num_features for layer in layers] == [24] * 3


class TestCheckpoints:
    def test_round_trip(self, parse: Any) -> None:
        model = build(parse=parse).eval()
        model.renderer.update_occupancy(0)
        other = build(parse=parse).eval()
        with torch.no_grad():
            other.field.get_parameter("encoding.table").zero_()
        assert not torch.equal(other(bundle())["rgb"], model(bundle())["rgb"])
        other.load_model({"model": model.state_dict()})
        for name, value in model(bundle()).items():
            assert torch.equal(other(bundle())[name], value), name
        assert torch.equal(other.occupancy.values, model.occupancy.values)

    def test_a_run_is_loaded_with_its_step(self, trained_run: Path) -> None:
        _, pipeline, path, step = eval_setup(trained_run / "config.yml", test_mode="inference")
        assert step == 299
        assert path == trained_run / "nerfstudio_models" / "step-000000299.ckpt"
        assert pipeline.model.occupancy.occupied_fraction < 1


class FakeViser:
    """Records the texts added to the panel, and returns a handle like viser's."""

    def __init__(self) -> None:
        self.gui = self
        self.handles: dict[str, Any] = {}

    def add_text(self, name: str, value: str, **_: Any) -> Any:
        handle = self.handles[name] = type("Handle", (), {"value": value, "callbacks": []})()
        handle.on_update = handle.callbacks.append
        return handle


class TestPanel:
    @pytest.fixture
    def server(self, pipeline: SampleBudgetPipeline) -> Iterator[FakeViser]:
        server = FakeViser()
        elements = [element for _, element in parse_object(pipeline, ViewerElement, "Custom Elements")]
        for element in elements:
            element.install(server)
        yield server
        for element in elements:
            element.gui_handle = None

    def test_the_viewer_finds_and_fills_it(self, pipeline: SampleBudgetPipeline, server: FakeViser) -> None:
        assert set(server.handles) == {"Network", "Frame time", "Samples per ray"}
        assert server.handles["Network"].value == "eugen"
        server.handles["Frame time"].value = server.handles["Samples per ray"].value = "no frame yet"
        outputs = pipeline.model.get_outputs_for_camera(pipeline.datamanager.eval_dataset.cameras[0:1])
        assert server.handles["Frame time"].value.endswith(" ms")
        assert 0 < float(server.handles["Samples per ray"].value) < 128
        # Exactly the outputs that the viewer offers for display.
        assert set(outputs) == {"rgb", "accumulation", "depth"}

    def test_writing_to_it_does_not_make_the_viewer_render_again(self, server: FakeViser) -> None:
        assert all(not handle.callbacks for handle in server.handles.values())

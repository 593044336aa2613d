"""`EugenField` and its renderer as a nerfstudio model."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.scene_box import OrientedBox
from nerfstudio.engine.callbacks import (
    TrainingCallback,
    TrainingCallbackAttributes,
    TrainingCallbackLocation,
)
from nerfstudio.model_components.renderers import RGBRenderer
from nerfstudio.models.base_model import Model, ModelConfig
from nerfstudio.utils import colormaps
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor
from torch.nn import Parameter

from eugen_nerf.errors import UserError
from eugen_nerf.field import EugenField, FieldConfig
from eugen_nerf.metrics import Lpips, image_metrics
from eugen_nerf.occupancy import OccupancyGrid
from eugen_nerf.ops import Space, StepRule
from eugen_nerf.plugin.panel import Readout
from eugen_nerf.plugin.rays import ImageRayGenerator
from eugen_nerf.renderer import Renderer

MAX_OCCUPANCY_RESOLUTION = 1024  # its cells take 4 GB of memory during training


@dataclass
class EugenModelConfig(ModelConfig):
    """Options of the model."""

    _target: type = field(default_factory=lambda: EugenModel)
    """Class to instantiate."""
    enable_collider: bool = False
    """Must stay False: rays use the scene's near and far limits instead of nerfstudio's collider."""
    collider_params: dict[str, float] | None = None
    """Unused; see enable_collider."""
    eval_num_rays_per_chunk: int = 1 << 14
    """Number of rays per chunk when rendering images."""
    field: FieldConfig = field(default_factory=FieldConfig)
    """The radiance field: hash grid and networks."""
    steps_per_diagonal: int = 1024
    """Number of steps along the diagonal of the scene box; sets the step size."""
    cone_angle: float = 1 / 256
    """Growth of the step size per world unit of distance, in contracted scenes. Bounded scenes always use 0."""
    near: float | None = None
    """Distance at which every ray starts, world units. None uses the scene's own."""
    far: float | None = None
    """Distance at which every ray ends, world units. None uses the scene's own."""
    contraction: bool | None = None
    """Contract the world beyond the scene box. None does so unless the scene is bounded."""
    occupancy_resolution: int = 128
    """Number of cells along each axis of the occupancy grid."""
    occupancy_threshold: float = 0.01
    """A cell is occupied if its per-step optical thickness exceeds min(threshold, grid mean)."""
    skip_occluded: bool | None = None
    """Leave occluded samples out of training, at the cost of evaluating the density of all samples first. None enables
    this only in contracted scenes, where rays have many occluded samples."""
    train_background: Literal["random", "white", "black"] = "random"
    """Background color during training. With a constant color, scenes with alpha images can collapse to that color."""

    def validate(self) -> None:
        """Check all options; raise a UserError that names the first invalid one."""
        self.field.validate()
        if self.steps_per_diagonal < 1:
            raise UserError(f"steps_per_diagonal must be at least 1, not {self.steps_per_diagonal}.")
        resolution = self.occupancy_resolution
        if not 2 <= resolution <= MAX_OCCUPANCY_RESOLUTION or resolution % 2:
            raise UserError(
                f"occupancy_resolution must be even and positive, at most {MAX_OCCUPANCY_RESOLUTION}, not {resolution}."
            )
        if self.eval_num_rays_per_chunk < 1:
            raise UserError(f"eval_num_rays_per_chunk must be at least 1, not {self.eval_num_rays_per_chunk}.")
        for name in ("cone_angle", "occupancy_threshold"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise UserError(f"{name} must be a finite number, 0 or more, not {value}.")
        if self.enable_collider:
            raise UserError("enable_collider must stay False: rays use the scene's limits or the options near and far.")

    def limits(self, metadata: Mapping[str, Any]) -> tuple[float, float]:
        """The distances at which every ray starts and ends, world units.

        Args:
            metadata: the scene's limits, and whether it is bounded, from the dataparser; only this package's
                dataparsers provide them.

        Raises:
            UserError: near is negative or not below far, or far is infinite in a contracted scene.
        """
        near = self.near if self.near is not None else float(metadata.get("near", 0.05))
        far = self.far if self.far is not None else float(metadata.get("far", 1e3))
        if not 0 <= near < far:
            raise UserError(f"The near limit of rays ({near}) must not be negative and must be below far ({far}).")
        if self.contracted(metadata) and math.isinf(far):
            raise UserError(
                "The far limit of rays must be finite in a contracted scene: set a finite far, or leave the option out."
            )
        return near, far

    def contracted(self, metadata: Mapping[str, Any]) -> bool:
        """Whether the world beyond the scene box is contracted; `metadata` as in `limits`."""
        return self.contraction if self.contraction is not None else not metadata.get("bounded", False)


class EugenModel(Model):
    """Radiance field with EUGen layers or baseline layers; see `EugenField`."""

    config: EugenModelConfig

    def populate_modules(self) -> None:
        config = self.config
        config.validate()
        super().populate_modules()
        metadata: dict[str, Any] = self.kwargs.get("metadata") or {}
        contracted = config.contracted(metadata)
        low, high = (tuple(float(v) for v in corner) for corner in self.scene_box.aabb)
        space = Space(((low[0], low[1], low[2]), (high[0], high[1], high[2])), contracted)
        rule = StepRule(space.diagonal / config.steps_per_diagonal, config.cone_angle if contracted else 0.0)
        near, far = config.limits(metadata)

        self.field = EugenField(config.field)
        self.occupancy = OccupancyGrid(config.occupancy_resolution, config.occupancy_threshold)
        # Rays through contracted scenes are long, so the initial fog is thinner.
        self.field.set_initial_density(0.1 if contracted else 1.0)
        skip_occluded = contracted if config.skip_occluded is None else config.skip_occluded
        self.renderer = Renderer(self.field, self.occupancy, space, rule, near, far, skip_occluded)
        # nerfstudio reads the background color from this attribute.
        self.renderer_rgb = RGBRenderer(background_color=config.train_background)
        self.eval_background: Literal["white", "black"] = metadata.get("eval_background", "white")
        self.lpips = Lpips()
        self._lpips_warned = False
        self._picture_rays = ImageRayGenerator()
        self._total_samples: int | None = None  # of the last rays, if known

        # Shown in the panel of nerfstudio's viewer.
        self.panel_network = Readout("Network", config.field.network)
        self.panel_time = Readout("Frame time", "no frame yet", hint="of the last frame")
        self.panel_samples = Readout("Samples per ray", "no frame yet", hint="mean of the last frame")

    def get_param_groups(self) -> dict[str, list[Parameter]]:
        networks = [*self.field.density_network.parameters(), *self.field.color_network.parameters()]
        return {"encoding": list(self.field.encoding.parameters()), "networks": networks}

    def get_training_callbacks(
        self, training_callback_attributes: TrainingCallbackAttributes
    ) -> list[TrainingCallback]:
        return [
            TrainingCallback(
                where_to_run=[TrainingCallbackLocation.BEFORE_TRAIN_ITERATION],
                update_every_num_iters=1,
                func=self.renderer.update_occupancy,
            )
        ]

    def get_outputs(self, ray_bundle: RayBundle) -> dict[str, Tensor]:  # type: ignore[override]
        origins, directions = ray_bundle.origins, ray_bundle.directions
        if self.training:
            jitter = torch.rand(origins.shape[0], device=origins.device)
            out = self.renderer.render_differentiable(origins, directions, jitter)
            rgb, depth = out.rgb, out.depth
            if self.config.train_background != "random":  # a random background is added by the loss
                rgb = self._on_background(rgb, out.alpha, self.config.train_background)
        else:
            # ns-render asks with integers whether something hides a camera.
            limits = (limit if limit is None else limit.to(origins) for limit in (ray_bundle.nears, ray_bundle.fars))
            out = self.renderer.render(origins, directions, *limits)
            rgb = self._on_background(out.rgb, out.alpha, self.eval_background).clamp(0, 1)
            depth = torch.where(out.depth > 0, out.depth, self._behind_everything(origins))
        self._total_samples = out.total_samples
        return {
            "rgb": rgb,
            "accumulation": out.alpha[:, None],
            "depth": depth[:, None],
            "num_samples_per_ray": out.num_samples[:, None],
        }

    def _behind_everything(self, origins: Tensor) -> Tensor:
        """The depth of rays that hit nothing, [R]. nerfstudio's viewer and ns-render hide what is farther away than
        the depth, for example the frustums of cameras, so it must not be 0.

        It lies behind the box of a bounded scene, and behind seven eighths of the contracted space otherwise: the far
        limit would leave a depth image no contrast.
        """
        space = self.renderer.space
        corners = origins.new_tensor(space.box)
        reach = space.diagonal * (2.0 if space.contracted else 0.5)
        return ((origins - corners.mean(dim=0)).norm(dim=-1) + reach).clamp_max(self.renderer.far)

    @torch.no_grad()
    def get_outputs_for_camera(self, camera: Cameras, obb_box: OrientedBox | None = None) -> dict[str, Tensor]:
        picture = self._picture_rays(camera) if obb_box is None else None
        if picture is None:
            return super().get_outputs_for_camera(camera, obb_box)
        outputs = self.get_outputs_for_camera_ray_bundle(picture.rays)
        return {name: picture.in_place(values) for name, values in outputs.items()}

    def get_outputs_for_camera_ray_bundle(self, camera_ray_bundle: RayBundle) -> dict[str, Tensor]:
        start = time.perf_counter()
        outputs = super().get_outputs_for_camera_ray_bundle(camera_ray_bundle)
        samples = outputs.pop("num_samples_per_ray").float()
        if samples.is_cuda:
            torch.cuda.synchronize()
        self.panel_time.value = f"{1000 * (time.perf_counter() - start):.1f} ms"
        self.panel_samples.value = f"{samples.mean().item():.1f}"
        return outputs

    @staticmethod
    def _on_background(rgb: Tensor, alpha: Tensor, background: str) -> Tensor:
        # The renderer's method respects the color chosen in the viewer. With the image's shape, it would expand the
        # color in main memory and copy it to a GPU in every frame.
        color = RGBRenderer.get_background_color(background, shape=(3,), device=rgb.device)  # type: ignore[arg-type]
        return rgb + (1 - alpha)[:, None] * color

    def _blend_for_loss(self, outputs: dict[str, Tensor], image: Tensor) -> tuple[Tensor, Tensor]:
        if self.training:
            return self.renderer_rgb.blend_background_for_loss_computation(
                pred_image=outputs["rgb"], pred_accumulation=outputs["accumulation"], gt_image=image
            )
        return outputs["rgb"], self.renderer_rgb.blend_background(image, self.eval_background)

    def get_metrics_dict(self, outputs: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        # The pipeline needs this number in every step; summing it on a GPU would mean waiting for the GPU.
        total = self._total_samples
        count = outputs["num_samples_per_ray"].sum() if total is None else torch.tensor(total)
        return {"num_samples_per_batch": count}

    def get_loss_dict(
        self,
        outputs: dict[str, Tensor],
        batch: dict[str, Any],
        metrics_dict: dict[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        prediction, truth = self._blend_for_loss(outputs, batch["image"].to(self.device))
        loss = torch.nn.functional.mse_loss(prediction, truth)
        if metrics_dict is not None:
            metrics_dict["psnr"] = -10 * torch.log10(loss.detach())
        return {"rgb_loss": loss}

    def get_image_metrics_and_images(
        self, outputs: dict[str, Tensor], batch: dict[str, Any]
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        image = batch["image"].to(self.device)
        truth = self.renderer_rgb.blend_background(image, self.eval_background)
        metrics = image_metrics(outputs["rgb"], truth, self.lpips)
        if self.lpips.reason and not self._lpips_warned:
            self._lpips_warned = True
            CONSOLE.print(f"Warning: {self.lpips.reason}", style="bold yellow", markup=False)
        images = {
            "img": torch.cat([truth, outputs["rgb"]], dim=1),
            "accumulation": colormaps.apply_colormap(outputs["accumulation"]),
            "depth": colormaps.apply_depth_colormap(outputs["depth"], accumulation=outputs["accumulation"]),
        }
        return metrics, images

    def get_rgba_image(self, outputs: dict[str, Tensor], output_name: str = "rgb") -> Tensor:
        alpha = outputs["accumulation"]
        background = 1.0 if self.eval_background == "white" else 0.0
        color = (outputs[output_name] - background * (1 - alpha)) / alpha.clamp_min(1e-6)
        return torch.cat([color.clamp(0, 1), alpha], dim=-1)

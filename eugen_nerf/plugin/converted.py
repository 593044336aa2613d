"""nerfstudio's own models with EUGen layers in place of some of their dense layers."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.models.base_model import Model
from nerfstudio.models.mipnerf import MipNerfModel
from nerfstudio.models.nerfacto import NerfactoModel, NerfactoModelConfig
from nerfstudio.models.vanilla_nerf import NeRFModel, VanillaModelConfig
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor, nn
from torchmetrics.functional.image import structural_similarity_index_measure

from eugen_nerf import ops
from eugen_nerf.errors import UserError
from eugen_nerf.layers import Conversion, ConversionPlan, LayerStack, MergedChain, convert
from eugen_nerf.metrics import SSIM_MIN_SIDE, Lpips, to_uint8
from eugen_nerf.plugin.compat import without_nerfstudio_lpips

# Three non-adjacent layers of NeRF's eight trunk layers: the norm of their input is then available, and the output
# matrix of each is absorbed by the next layer (that of layer 3 across the skip connection).
TRUNK_LAYERS = ("1", "3", "5")


class LpipsOfBatch(nn.Module):
    """This package's LPIPS, which tolerates missing weights, with the interface that nerfstudio's models expect."""

    def __init__(self) -> None:
        super().__init__()
        self.distance = Lpips()

    def forward(self, truth: Tensor, prediction: Tensor) -> Tensor:
        """[1, 3, H, W] in [0, 1] each -> []; NaN without weights."""
        first, second = (to_uint8(image[0].movedim(0, -1)) for image in (truth, prediction))
        value = self.distance(second, first)
        return torch.tensor(math.nan if value is None else value)


def ssim_of_batch(truth: Tensor, prediction: Tensor) -> Tensor:
    """nerfstudio's SSIM of [1, 3, H, W] each; NaN for images too small for its window."""
    if min(truth.shape[-2:]) < SSIM_MIN_SIDE:
        return torch.tensor(math.nan)
    value = structural_similarity_index_measure(truth, prediction)
    assert isinstance(value, Tensor)
    return value


class PlanError(UserError):
    """A plan does not fit the model; `reason` says why, without naming the option."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"pipeline.model.eugen: {reason}.")
        self.reason = reason


def convert_model(model: Model, plan: ConversionPlan) -> Conversion:
    """Replace the plan's layers in a nerfstudio model.

    Raises:
        UserError: the plan names no layers or does not fit the model.
    """
    if not plan.layers:
        raise UserError(
            "pipeline.model.eugen.layers is empty: this would be nerfstudio's own method. Name layers, or leave the "
            "option out to use its default."
        )
    try:
        conversion = convert(model, plan)
    except ValueError as error:
        raise PlanError(str(error)) from error
    for module in model.modules():
        if isinstance(module, LayerStack):
            module.network = _network
    return conversion


def _network(x: Tensor, chain: MergedChain) -> Tensor:
    """Evaluate a chain with native code on a CPU, and with cuBLAS on a GPU.

    In trunks 256 wide, the backward pass of the CUDA kernels would keep only one to four warps busy per multiprocessor
    (docs/gpu.md).
    """
    return ops.network(x, chain) if x.device.type == "cpu" else chain.evaluate(x)


class ConvertedModel(Model):
    """Common base of the converted models; must precede nerfstudio's model in the list of bases."""

    config: Any
    lpips: Any  # nerfstudio declares its own class

    def populate_modules(self) -> None:
        with without_nerfstudio_lpips():
            super().populate_modules()
        self.lpips = LpipsOfBatch()
        self.ssim: Any = ssim_of_batch
        self._lpips_warned = False
        self.conversion = str(convert_model(self, self.config.eugen))

    def get_image_metrics_and_images(
        self, outputs: dict[str, Tensor], batch: dict[str, Any]
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        original: Any = super()
        metrics, images = original.get_image_metrics_and_images(outputs, batch)
        if self.lpips.distance.reason and not self._lpips_warned:
            self._lpips_warned = True
            CONSOLE.print(f"Warning: {self.lpips.distance.reason}", style="bold yellow", markup=False)
        # NaN means a missing metric, except that a diverged model has no PSNR.
        return {name: value for name, value in metrics.items() if name == "psnr" or not math.isnan(value)}, images


class ConvertedModelConfig:
    """Common base of the converted models' configurations."""

    def validate(self) -> None:
        """Raise UserError if the plan does not fit the model."""
        self.describe_conversion()

    def describe_conversion(self) -> str:
        """Build the model and describe the replaced layers, one line each.

        Raises:
            UserError: the plan does not fit the model.
        """
        config: Any = self
        with torch.random.fork_rng(devices=[]):  # it is built on the CPU
            model = config.setup(scene_box=SceneBox(torch.tensor([[-1.0] * 3, [1.0] * 3])), num_train_data=1)
        description: str = model.conversion
        return description


class CoarseToFineModel(ConvertedModel):
    """Common base of models with a coarse and a fine pass. nerfstudio's commands expect outputs without suffix."""

    def get_outputs(self, ray_bundle: RayBundle) -> dict[str, Tensor]:  # type: ignore[override]
        original: Any = super()
        outputs: dict[str, Tensor] = original.get_outputs(ray_bundle)
        if not self.training:
            outputs.update({name: outputs[f"{name}_fine"] for name in ("rgb", "depth", "accumulation")})
        return outputs


class EugenVanillaNerfModel(CoarseToFineModel, NeRFModel):
    """NeRF (Mildenhall et al. 2020): a coarse and a fine network of eight layers."""


class EugenMipNerfModel(CoarseToFineModel, MipNerfModel):
    """mip-NeRF (Barron et al. 2021): one network of eight layers on integrated positional encodings."""


class EugenNerfactoModel(ConvertedModel, NerfactoModel):
    """nerfacto: hash grid, small networks, proposal sampling."""


@dataclass
class EugenVanillaNerfModelConfig(VanillaModelConfig, ConvertedModelConfig):
    """nerfstudio's options of vanilla-nerf, and the layers that become EUGen layers."""

    _target: type = field(default_factory=lambda: EugenVanillaNerfModel)
    """Class to instantiate."""
    eugen: ConversionPlan = field(
        default_factory=lambda: ConversionPlan(128, tuple(f"field_*.mlp_base.layers.{i}" for i in TRUNK_LAYERS))
    )
    """The layers to replace, and the kind of EUGen layers that replace them."""


@dataclass
class EugenMipNerfModelConfig(VanillaModelConfig, ConvertedModelConfig):
    """nerfstudio's options of mipnerf, and the layers that become EUGen layers."""

    _target: type = field(default_factory=lambda: EugenMipNerfModel)
    """Class to instantiate."""
    eugen: ConversionPlan = field(
        default_factory=lambda: ConversionPlan(128, tuple(f"field.mlp_base.layers.{i}" for i in TRUNK_LAYERS))
    )
    """The layers to replace, and the kind of EUGen layers that replace them."""


@dataclass
class EugenNerfactoModelConfig(NerfactoModelConfig, ConvertedModelConfig):
    """nerfstudio's options of nerfacto, and the layers that become EUGen layers."""

    _target: type = field(default_factory=lambda: EugenNerfactoModel)
    """Class to instantiate."""
    # The first of the two layers that depend on the viewing direction, as in the EUGen paper's Zip-NeRF experiments.
    eugen: ConversionPlan = field(default_factory=lambda: ConversionPlan(32, ("field.mlp_head.layers.0",)))
    """The layers to replace, and the kind of EUGen layers that replace them."""

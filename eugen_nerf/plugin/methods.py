"""The methods registered with ``ns-train``, with defaults for the available device."""

import copy
import functools
from dataclasses import replace
from typing import Any, Literal

import torch
from nerfstudio.configs.base_config import MachineConfig
from nerfstudio.engine.optimizers import OptimizerConfig
from nerfstudio.models.base_model import ModelConfig
from nerfstudio.plugins.types import MethodSpecification

from eugen_nerf.field import ORDER_2_LAYERS, FieldConfig, NetworkKind
from eugen_nerf.plugin import compat
from eugen_nerf.plugin.averages import AveragingPipeline
from eugen_nerf.plugin.converted import (
    EugenMipNerfModelConfig,
    EugenNerfactoModelConfig,
    EugenVanillaNerfModelConfig,
)
from eugen_nerf.plugin.datamanager import SceneDataManagerConfig
from eugen_nerf.plugin.dataparsers import SceneDataParserConfig
from eugen_nerf.plugin.model import EugenModelConfig
from eugen_nerf.plugin.optimizers import MaskedAdamOptimizerConfig, NetworkAdamOptimizerConfig
from eugen_nerf.plugin.pipeline import SampleBudgetPipelineConfig
from eugen_nerf.plugin.schedules import LinearDecaySchedulerConfig
from eugen_nerf.plugin.trainer_config import ConvertedTrainerConfig, EugenTrainerConfig

compat.apply()


# Learning rates of the networks: factored layers need smaller ones than an MLP. For EUGen and MLP they are the best of
# those tried on lego and fox, for low rank the best on lego; snnk uses the MLP's.
NETWORK_RATES: dict[NetworkKind, float] = {"eugen": 4e-3, "mlp": 1e-2, "low-rank": 1e-2, "snnk": 1e-2}


def _field(network: NetworkKind, on_gpu: bool) -> FieldConfig:
    if on_gpu:
        return FieldConfig(network=network)
    return FieldConfig(network=network, num_levels=8, features_per_level=4, log2_hashmap_size=17, max_resolution=512)


def _optimizer(config: type[OptimizerConfig], lr: float, steps: int) -> dict[str, Any]:
    return {
        # With Instant NGP's epsilon, rarely sampled entries move as fast as the others.
        "optimizer": config(lr=lr, eps=1e-15),
        "scheduler": LinearDecaySchedulerConfig(max_steps=steps),
    }


def method_config(name: str, network: NetworkKind, device: Literal["cpu", "cuda"] | None = None) -> EugenTrainerConfig:
    """The configuration of a method.

    Args:
        name: the method's name in ns-train.
        network: kind of the field's networks. Besides it, methods differ only in the networks' learning rate.
        device: device whose defaults to use; None for a GPU if there is one.
    """
    on_gpu = (device or ("cuda" if torch.cuda.is_available() else "cpu")) == "cuda"
    steps = 20_000 if on_gpu else 4_000
    return EugenTrainerConfig(
        method_name=name,
        machine=MachineConfig(device_type="cuda" if on_gpu else "cpu"),
        max_num_iterations=steps,
        steps_per_save=2_000 if on_gpu else 1_000,
        steps_per_eval_batch=0,
        steps_per_eval_image=1_000 if on_gpu else 500,
        steps_per_eval_all_images=0,
        mixed_precision=False,
        pipeline=SampleBudgetPipelineConfig(
            target_num_samples=1 << 18 if on_gpu else 1 << 15,
            max_num_samples_per_ray=1024 if on_gpu else 256,
            datamanager=SceneDataManagerConfig(dataparser=SceneDataParserConfig()),
            model=EugenModelConfig(
                # A GPU renders a whole image at once. Without kernels for it, the renderer splits the rays itself.
                eval_num_rays_per_chunk=1 << (20 if on_gpu else 14),
                field=_field(network, on_gpu),
                steps_per_diagonal=1024 if on_gpu else 384,
                cone_angle=1 / 256 if on_gpu else 1 / 64,
                occupancy_resolution=128 if on_gpu else 64,
                # Short steps leave many samples occluded. With long steps, evaluating all densities first costs as
                # much as it saves.
                skip_occluded=True if on_gpu else None,
            ),
        ),
        optimizers={
            "encoding": _optimizer(MaskedAdamOptimizerConfig, 2e-2, steps),
            "networks": _optimizer(NetworkAdamOptimizerConfig, NETWORK_RATES[network], steps),
        },
        # Without a viewer, ns-train exits after its last step; with --vis viewer it keeps serving the scene.
        vis="tensorboard",
    )


def order_2_method_config(name: str, device: Literal["cpu", "cuda"] | None = None) -> EugenTrainerConfig:
    """`eugen-nerf` with `ORDER_2_LAYERS`.

    Args:
        name: the method's name in ns-train.
        device: device whose defaults to use; None for a GPU if there is one.
    """
    config = method_config(name, "eugen", device)
    model: Any = config.pipeline.model
    model.field = replace(model.field, **ORDER_2_LAYERS)
    return config


def converted_method_config(
    name: str, original: str, model: type[ModelConfig], device: Literal["cpu", "cuda"] | None = None
) -> ConvertedTrainerConfig:
    """The configuration of a nerfstudio method with EUGen layers, and with other defaults for data, device and viewer.

    Args:
        name: the method's name in ns-train.
        original: nerfstudio's name of the method without EUGen layers.
        model: configuration class with nerfstudio's model options and the conversion plan.
        device: device whose defaults to use; None for a GPU if there is one.
    """
    from nerfstudio.configs.method_configs import method_configs

    on_gpu = (device or ("cuda" if torch.cuda.is_available() else "cpu")) == "cuda"
    config: Any = copy.deepcopy(method_configs[original])
    options = {key: value for key, value in vars(config.pipeline.model).items() if key != "_target"}
    if "implementation" in options:
        options["implementation"] = "torch"  # tiny-cuda-nn's weights are opaque
    config.pipeline._target = AveragingPipeline
    config.pipeline.model = model(**options)
    config.pipeline.datamanager.dataparser = SceneDataParserConfig()
    trainer = {key: value for key, value in vars(config).items() if key != "_target"}
    trainer.update(
        method_name=name,
        machine=MachineConfig(device_type="cuda" if on_gpu else "cpu"),
        mixed_precision=config.mixed_precision and on_gpu,
        vis="tensorboard",
    )
    return ConvertedTrainerConfig(**trainer)


eugen_nerf = MethodSpecification(
    config=method_config("eugen-nerf", "eugen"),
    description="Radiance field with EUGen layers: wide random-feature layers that merge exactly into a small network.",
)
eugen_nerf_order2 = MethodSpecification(
    config=order_2_method_config("eugen-nerf-order2"),
    description="eugen-nerf with EUGen layers of order 2 (pairwise products), for objects on a plain background.",
)
eugen_nerf_mlp = MethodSpecification(
    config=method_config("eugen-nerf-mlp", "mlp"),
    description="MLP baseline: eugen-nerf with standard dense layers instead of EUGen layers.",
)
eugen_nerf_low_rank = MethodSpecification(
    config=method_config("eugen-nerf-low-rank", "low-rank"),
    description="Low-rank baseline: eugen-nerf with low-rank hidden layers instead of EUGen layers.",
)
eugen_nerf_snnk = MethodSpecification(
    config=method_config("eugen-nerf-snnk", "snnk"),
    description="SNNK baseline: eugen-nerf with scalable neural network kernels instead of EUGen layers.",
)

_CONVERTED: dict[str, tuple[str, type[ModelConfig], str]] = {
    "eugen_vanilla_nerf": (
        "vanilla-nerf",
        EugenVanillaNerfModelConfig,
        "nerfstudio's vanilla-nerf with EUGen layers in place of three of its eight trunk layers.",
    ),
    "eugen_mipnerf": (
        "mipnerf",
        EugenMipNerfModelConfig,
        "nerfstudio's mipnerf with EUGen layers in place of three of its eight trunk layers.",
    ),
    "eugen_nerfacto": (
        "nerfacto",
        EugenNerfactoModelConfig,
        "nerfstudio's nerfacto with an EUGen layer as the first layer of its color network.",
    ),
}


@functools.cache
def _converted(attribute: str) -> MethodSpecification:
    original, model, description = _CONVERTED[attribute]
    config = converted_method_config(attribute.replace("_", "-"), original, model)
    return MethodSpecification(config=config, description=description)


def __getattr__(attribute: str) -> MethodSpecification:
    """Create the methods that are based on nerfstudio's own on first access.

    They need nerfstudio's list of methods. Importing that list loads this module's methods, so creating them while
    this module is being imported would expose it half initialized.
    """
    if attribute in _CONVERTED:
        return _converted(attribute)
    raise AttributeError(f"module {__name__!r} has no attribute {attribute!r}")

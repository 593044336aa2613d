"""Hash grid and MLP by tiny-cuda-nn, if it is installed."""

from __future__ import annotations

import importlib
from types import ModuleType

from torch import nn

from eugen_nerf.errors import UserError
from eugen_nerf.ops import HashGridLayout


def load_tcnn() -> ModuleType:
    """Import tiny-cuda-nn.

    Raises:
        UserError: it is not installed or cannot be loaded; the message gives the reason and a remedy.
    """
    try:
        return importlib.import_module("tinycudann")
    except Exception as error:  # without a GPU it raises OSError and others, not only ImportError
        raise UserError(
            f"Implementation tcnn is selected, but tiny-cuda-nn cannot be used here ({error}). It has no "
            "PyPI package: build it from https://github.com/NVlabs/tiny-cuda-nn on a machine with an NVIDIA "
            "GPU, or use implementation native."
        ) from error


def hash_grid(layout: HashGridLayout) -> nn.Module:
    """tiny-cuda-nn's hash grid with the levels of ``layout``. It does not give the same values as `HashGrid`."""
    growth = 1.0
    if layout.num_levels > 1:
        growth = (layout.resolutions[-1] / layout.resolutions[0]) ** (1 / (layout.num_levels - 1))
    tcnn = load_tcnn()
    encoding = tcnn.Encoding(
        n_input_dims=3,
        encoding_config={
            "otype": "HashGrid",
            "n_levels": layout.num_levels,
            "n_features_per_level": layout.features_per_level,
            "log2_hashmap_size": layout.log2_table_size,
            "base_resolution": layout.resolutions[0],
            "per_level_scale": growth,
        },
    )
    return _fused(tcnn, encoding)


def mlp(in_features: int, out_features: int, hidden_features: int, num_hidden_layers: int) -> nn.Module:
    """tiny-cuda-nn's ReLU MLP: fully fused for the widths that support it, otherwise its CUTLASS network."""
    tcnn = load_tcnn()
    network = tcnn.Network(
        n_input_dims=in_features,
        n_output_dims=out_features,
        network_config={
            "otype": "FullyFusedMLP" if hidden_features in (16, 32, 64, 128) else "CutlassMLP",
            "activation": "ReLU",
            "output_activation": "None",
            "n_neurons": hidden_features,
            "n_hidden_layers": num_hidden_layers,
        },
    )
    return _fused(tcnn, network)


def _fused(tcnn: ModuleType, module: nn.Module) -> nn.Module:
    """Enable JIT fusion, which compiles the module's kernels into one at run time, if version and GPU support it."""
    if hasattr(tcnn, "supports_jit_fusion"):
        module.jit_fusion = tcnn.supports_jit_fusion()
    return module

"""The scene file of the web viewer: a trained field as a description (JSON) and tensors (safetensors).

docs/scene-format.md describes both.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save
from torch import Tensor

from eugen_nerf.errors import UserError
from eugen_nerf.export.tables import StoredTable
from eugen_nerf.layers.merge import FeatureStage, MergedChain
from eugen_nerf.ops import RadianceField, Space, StepRule
from eugen_nerf.ops.reference import MIN_TRANSMITTANCE

VERSION = 1

Tensors = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, eq=False)
class ExportedField:
    """What the viewer needs to render a field as `eugen_nerf.renderer.Renderer` does."""

    name: str  # kind of network, shown in the viewer
    field: RadianceField
    table: StoredTable  # replaces field.table
    space: Space
    rule: StepRule
    near: float
    far: float
    occupancy_bits: Tensor  # [resolution**3 / 8] uint8
    occupancy_resolution: int

    def tensors(self) -> Tensors:
        """All arrays of the field, by their names in the scene file."""
        arrays: Tensors = {"table": self.table.data, "occupancy": _array(self.occupancy_bits, np.uint8)}
        if self.table.scale is not None:
            arrays["table_scale"] = self.table.scale
        for name, chain in (("density", self.field.density), ("color", self.field.color)):
            arrays.update(_chain_tensors(name, chain))
        return arrays

    def write(self, path: Path) -> dict[str, Any]:
        """Write the tensors to `path` and return the field's entry in scene.json.

        Raises:
            UserError: the viewer cannot evaluate a part of the network.
        """
        tensors = self.tensors()
        description = self._description()
        content = save({name: np.ascontiguousarray(array) for name, array in tensors.items()})
        path.write_bytes(content)
        return {
            "name": self.name,
            "file": path.name,
            "bytes": len(content),
            "crc32": zlib.crc32(content),
            **description,
        }

    def _description(self) -> dict[str, Any]:
        layout = self.table.layout
        return {
            "multiply_adds": self.field.density.multiply_adds + self.field.color.multiply_adds,
            "space": {"box": [list(corner) for corner in self.space.box], "contracted": self.space.contracted},
            "step": {"size": self.rule.step_size, "cone_angle": self.rule.cone_angle},
            "near": self.near,
            "far": self.far,
            "min_transmittance": MIN_TRANSMITTANCE,
            "occupancy": {"resolution": self.occupancy_resolution},
            "encoding": {
                "resolutions": list(layout.resolutions),
                "offsets": list(layout.offsets),
                "features": layout.features_per_level,
                "log2_table_size": layout.log2_table_size,
            },
            "density": _chain_description("density", self.field.density),
            "color": _chain_description("color", self.field.color),
        }


def _chain_description(name: str, chain: MergedChain) -> dict[str, Any]:
    return {
        "inputs": chain.in_features,
        "outputs": chain.out_features,
        "stages": [_stage_description(f"stage {i} of the {name} network", s) for i, s in enumerate(chain.stages)],
    }


def _stage_description(where: str, stage: FeatureStage) -> dict[str, Any]:
    if stage.norm_factor is not None:
        raise UserError(
            f"The web viewer cannot evaluate {where}: it depends on the norm of what an earlier layer puts out, and "
            "only a network's first layer may see its input's norm there. Train with norm in the first layers alone."
        )
    return {
        "inputs": stage.in_features,
        "features": stage.out_features,
        "order": stage.order,
        "shared": stage.shared,
        "phi": stage.phi,
        "eps": stage.eps,
    }


def _chain_tensors(name: str, chain: MergedChain) -> Tensors:
    tensors: dict[str, Tensor | None] = {f"{name}.weight": chain.weight, f"{name}.bias": chain.bias}
    for index, stage in enumerate(chain.stages):
        tensors[f"{name}.{index}.projections"] = stage.projections
        tensors[f"{name}.{index}.offsets"] = stage.offsets
        tensors[f"{name}.{index}.norm_column"] = stage.norm_column
    arrays = {key: _array(tensor, np.float32) for key, tensor in tensors.items() if tensor is not None}
    for key, array in arrays.items():
        if not np.isfinite(array).all():
            raise UserError(f"The network's {key} holds values that are not numbers: the training has diverged.")
    return arrays


def _array(tensor: Tensor, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    return tensor.detach().cpu().numpy().astype(dtype)

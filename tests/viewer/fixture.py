"""Files that the viewer's own tests read: small fields, and what Python computes with them.

    python -m tests.viewer.fixture

writes them anew to viewer/tests/fixtures, after a change of the format. A test checks that they are what is written
today.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from nerfstudio.cameras.cameras import Cameras

from eugen_nerf.export.folder import FORMAT
from eugen_nerf.export.scene_file import VERSION, ExportedField
from eugen_nerf.export.tables import half_precision, quantized
from eugen_nerf.field import EugenField, FieldConfig
from eugen_nerf.occupancy import pack_bits
from eugen_nerf.ops import RadianceField, Space, StepRule, reference
from tests.ops.comparisons import convert

FOLDER = Path(__file__).parents[2] / "viewer" / "tests" / "fixtures"
SPACE = Space(((-1.0, -1.0, -1.0), (1.0, 1.0, 1.0)))


def small_field(name: str, generator: torch.Generator, **options: Any) -> ExportedField:
    """A field with random parameters, which are equal for equal options."""
    sizes = {"num_levels": 3, "log2_hashmap_size": 7, "base_resolution": 4, "max_resolution": 12, "hidden_features": 16}
    config = FieldConfig(**{**sizes, **options})  # type: ignore[arg-type]
    module = EugenField(config)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    field = module.evaluator()
    assert isinstance(field, RadianceField)
    store = quantized if name == "bytes" else half_precision
    bits = pack_bits(torch.rand(16**3, generator=generator) < 0.5)
    return ExportedField(name, field, store(field.table, field.layout), SPACE, StepRule(0.02), 0.5, 6.0, bits, 16)


def write(folder: Path) -> None:
    """Write scene.json, the tensors, and expected.json."""
    generator = torch.Generator().manual_seed(11)
    fields = [
        small_field("halves", generator, num_features=6, order=2, norm=True, phi="gelu", geometry_features=5),
        small_field("bytes", generator, network="mlp", phi="softplus", geometry_features=3),
    ]
    entries = [field.write(folder / f"{field.name}.safetensors") for field in fields]
    pose = torch.tensor([[0.6, 0.0, 0.8, 2.4], [0.8, 0.0, -0.6, -1.8], [0.0, 1.0, 0.0, 0.1]])
    lens = {"fx": 50.0, "fy": 52.0, "cx": 21.0, "cy": 14.0, "width": 40, "height": 30}
    view = {"name": "test/r_0", "split": "test", "camera_to_world": pose.tolist(), **lens}
    scene = {
        "format": FORMAT,
        "version": VERSION,
        "generator": "a test",
        "title": "fixture",
        "background": [1.0, 1.0, 1.0],
        "up": [0.0, 0.0, 1.0],
        "focus": [0.0, 0.0, 0.0],
        "fields": entries,
        "views": [view],
    }
    (folder / "scene.json").write_text(json.dumps(scene, indent=1) + "\n")

    positions = torch.rand(8, 3, generator=generator)
    directions = torch.nn.functional.normalize(torch.randn(8, 3, generator=generator), dim=-1)
    layout = fields[0].table.layout
    vertices = torch.tensor([[0, 0, 0], [1, 2, 3], [4, 4, 4], [3, 0, 4]])
    rows = reference._vertex_rows(vertices[:, None, None].expand(-1, layout.num_levels, 1, -1), layout)[..., 0]
    pixels = torch.tensor([[0.5, 0.5], [7.5, 39.5], [29.5, 12.5]])  # row, column
    camera = Cameras(pose[None], *(lens[key] for key in ("fx", "fy", "cx", "cy", "width", "height")))  # type: ignore[arg-type]
    rays = camera.generate_rays(camera_indices=0, coords=pixels)
    expected = {
        "positions": positions.tolist(),
        "directions": directions.tolist(),
        "harmonics": reference.spherical_harmonics(directions).tolist(),
        "vertices": vertices.tolist(),
        "rows": rows.tolist(),
        "fields": [_evaluated(field, positions, directions) for field in fields],
        "pixels": pixels.tolist(),
        "rays": rays.directions.tolist(),
    }
    (folder / "expected.json").write_text(json.dumps(_rounded(expected), indent=1) + "\n")


def _evaluated(exported: ExportedField, positions: torch.Tensor, directions: torch.Tensor) -> dict[str, Any]:
    # In double precision, because the last digit in single precision differs between processors and could show in the
    # file.
    positions, directions, table = positions.double(), directions.double(), exported.table.values().double()
    density, color = (
        convert(chain, lambda _, t: t.double()) for chain in (exported.field.density, exported.field.color)
    )
    encoded = reference.hash_encode(positions, table, exported.table.layout)
    raw = reference.network(encoded, density)
    harmonics = reference.spherical_harmonics(directions)
    color = torch.sigmoid(reference.network(torch.cat([harmonics, raw[:, 1:]], dim=-1), color))
    return {"encoded": encoded.tolist(), "log_density": raw[:, 0].tolist(), "color": color.tolist()}


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return round(value, 5) if isinstance(value, float) else value


if __name__ == "__main__":
    torch.set_num_threads(1)
    FOLDER.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        write(FOLDER)

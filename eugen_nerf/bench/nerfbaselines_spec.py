"""Method specs that nerfbaselines loads through the entry point `nerfbaselines.specs`; imports nothing of ours.

With both packages in one environment, `nerfbaselines train --method eugen-nerf --backend python --data DIR` works.
"""

from __future__ import annotations

from typing import Any

from nerfbaselines import register

METHODS = {
    "eugen-nerf": ("EugenNerf", "EUGen-NeRF", "Radiance field on a hash grid with EUGen layers, merged at inference."),
    "eugen-nerf-order2": (
        "EugenNerfOrder2",
        "EUGen-NeRF, order 2",
        "The same radiance field with products of two projections as features.",
    ),
    "eugen-nerf-mlp": ("EugenNerfMlp", "EUGen-NeRF, MLP baseline", "The same radiance field with standard MLP layers."),
}


def spec(method: str) -> dict[str, Any]:
    """The MethodSpec of one of our methods."""
    class_name, name, description = METHODS[method]
    return {
        "id": method,
        "method_class": f"eugen_nerf.bench.nerfbaselines_method:{class_name}",
        "backends_order": ["python"],
        "metadata": {
            "name": name,
            "description": description,
            "paper_title": "EUGens: Efficient, Unified, and General Dense Layers",
            "paper_link": "https://arxiv.org/abs/2601.22563",
            "licenses": [{"name": "Apache 2.0"}],
        },
    }


for method_id in METHODS:
    register(spec(method_id))

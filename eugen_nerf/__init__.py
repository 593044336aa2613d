"""EUGen radiance fields: norm-aware random-feature layers for NeRF, as a nerfstudio method."""

from eugen_nerf.layers import ConversionPlan, convert

__all__ = ["ConversionPlan", "convert"]
__version__ = "0.1.0"

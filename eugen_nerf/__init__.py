"""EUGen radiance fields: norm-aware random-feature layers for NeRF, as a nerfstudio method."""

__version__ = "0.1.0"

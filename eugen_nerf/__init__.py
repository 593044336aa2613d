"""EUGen radiance fields: norm-aware random-feature layers for NeRF, as a nerfstudio method."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eugen_nerf.layers import ConversionPlan, convert

__all__ = ["ConversionPlan", "convert"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import the layers on first use, so that reading scenes and showing help do not wait for torch."""
    if name in __all__:
        from eugen_nerf import layers

        return getattr(layers, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""nerfstudio's optimizer options with this package's optimizer of the hash table and its defaults for networks."""

from dataclasses import dataclass

from nerfstudio.engine.optimizers import AdamOptimizerConfig, OptimizerConfig

from eugen_nerf.optim import BETAS, MaskedAdam


@dataclass
class MaskedAdamOptimizerConfig(OptimizerConfig):
    """Options of the optimizer of the hash table."""

    _target: type = MaskedAdam
    """Class to instantiate."""
    betas: tuple[float, float] = BETAS
    """Decay rates, per step, of the running means of the gradients and of their squares."""


@dataclass
class NetworkAdamOptimizerConfig(AdamOptimizerConfig):
    """Options of the optimizer of the networks."""

    betas: tuple[float, float] = BETAS
    """Decay rates, per step, of the running means of the gradients and of their squares."""
    fused: bool = True
    """Update each parameter in one pass instead of one operator per term. The networks are so small that operator
    overhead outweighs the computation."""

"""Linear decay of learning rates, for which nerfstudio has no scheduler."""

from __future__ import annotations

from dataclasses import dataclass, field

from nerfstudio.engine.schedulers import Scheduler, SchedulerConfig
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler


@dataclass
class LinearDecaySchedulerConfig(SchedulerConfig):
    """Options of the learning rate schedule."""

    _target: type = field(default_factory=lambda: LinearDecayScheduler)
    """Class to instantiate."""
    final_fraction: float = 1 / 30
    """Final learning rate as a fraction of the initial one."""
    max_steps: int = 20_000
    """Number of steps until the final learning rate is reached."""


class LinearDecayScheduler(Scheduler):
    """Decays linearly from the optimizer's learning rate to `final_fraction` of it, then stays constant."""

    config: LinearDecaySchedulerConfig

    def get_scheduler(self, optimizer: Optimizer, lr_init: float) -> LRScheduler:
        last = self.config.final_fraction

        def share(step: float) -> float:
            return 1 - (1 - last) * min(step / self.config.max_steps, 1)

        return LambdaLR(optimizer, share)

"""nerfstudio's trainer, whose checkpoints are whole or not there."""

import os
import shutil
import tempfile
from pathlib import Path
from typing import Literal

from nerfstudio.engine.trainer import Trainer
from nerfstudio.utils import writer
from nerfstudio.utils.decorators import check_main_thread

from eugen_nerf.errors import UserError

FULL = 1 << 16  # bytes: with less to spare nothing more can be written


class EugenTrainer(Trainer):
    """Trainer that goes on from what it has saved, whatever happens while it saves."""

    def setup(self, test_mode: Literal["test", "val", "inference"] = "val") -> None:
        super().setup(test_mode)
        # nerfstudio counts steps from the first one ever made, and would show 110 % of those that are still to come.
        writer.GLOBAL_BUFFER["max_iter"] = self._start_step + self.config.max_num_iterations

    @check_main_thread
    def save_checkpoint(self, step: int) -> None:
        """Save what training would go on with after a step.

        It is written into the run's folder and then moved to its place: a half would be the newest checkpoint, and all
        that nerfstudio keeps where it keeps the latest alone. What else lies among checkpoints, nerfstudio's commands
        take for one.

        Raises:
            UserError: it cannot be written; earlier ones stay.
        """
        place = self.checkpoint_dir
        try:
            place.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".", dir=place.parent) as temporary:
                self.checkpoint_dir = Path(temporary)
                try:
                    super().save_checkpoint(step)
                except RuntimeError as error:  # so torch tells of a full disk, and of others
                    raise OSError(_reason(error, place)) from error
                finally:
                    self.checkpoint_dir = place
                (saved,) = Path(temporary).glob("*.ckpt")
                os.replace(saved, place / saved.name)
        except OSError as error:
            reason = error.strerror or str(error)
            raise UserError(
                f"{place}: the checkpoint of step {step} cannot be written ({reason}). Earlier ones are as they were; "
                "make room, or choose another --output-dir, and go on from the latest with --load-dir."
            ) from error
        if self.config.save_only_latest_checkpoint:
            for file in place.glob("*.ckpt"):
                if file.name != saved.name:
                    file.unlink(missing_ok=True)  # another training may write to the same folder


def _reason(error: RuntimeError, place: Path) -> str:
    if shutil.disk_usage(place).free < FULL:
        return "the disk is full"
    return next(iter(str(error).splitlines()), "unknown")

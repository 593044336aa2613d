"""nerfstudio's trainer with atomic checkpoints."""

import os
import shutil
import tempfile
from pathlib import Path
from typing import Literal

from nerfstudio.engine.trainer import Trainer
from nerfstudio.utils import writer
from nerfstudio.utils.decorators import check_main_thread

from eugen_nerf.errors import UserError

FULL = 1 << 16  # bytes; a disk with less free space counts as full


class EugenTrainer(Trainer):
    """Trainer whose checkpoints stay usable even if saving is interrupted."""

    def setup(self, test_mode: Literal["test", "val", "inference"] = "val") -> None:
        load_scaler = self.grad_scaler.load_state_dict
        # A training in full precision has saved an empty state, which a scaler refuses.
        self.grad_scaler.load_state_dict = lambda state: load_scaler(state) if state else None  # type: ignore[assignment,method-assign]
        super().setup(test_mode)
        # nerfstudio counts steps from the start of the first training, so its progress would exceed 100 % when training
        # resumes.
        writer.GLOBAL_BUFFER["max_iter"] = self._start_step + self.config.max_num_iterations

    @check_main_thread
    def save_checkpoint(self, step: int) -> None:
        """Save a checkpoint after a step.

        The file is written to a temporary folder inside the run's folder and then moved into place. Otherwise, a
        partial file would count as the newest checkpoint, and would be the only one if nerfstudio keeps only the
        latest. The temporary folder is not among the checkpoints, because nerfstudio's commands take every file there
        for one.

        Raises:
            UserError: it cannot be written. Earlier checkpoints are kept.
        """
        place = self.checkpoint_dir
        try:
            place.mkdir(parents=True, exist_ok=True)
            # The folder of checkpoints may be a link to another disk.
            with tempfile.TemporaryDirectory(prefix=".", dir=place.resolve().parent) as temporary:
                self.checkpoint_dir = Path(temporary)
                try:
                    super().save_checkpoint(step)
                except RuntimeError as error:  # torch reports a full disk, among others, this way
                    raise OSError(_reason(error, place)) from error
                finally:
                    self.checkpoint_dir = place
                (saved,) = Path(temporary).glob("*.ckpt")
                os.replace(saved, place / saved.name)
        except OSError as error:
            reason = error.strerror or str(error)
            raise UserError(
                f"{place}: the checkpoint of step {step} cannot be written ({reason}). Earlier ones are unchanged; "
                "free some space, or choose another --output-dir, and resume from the latest with --load-dir."
            ) from error
        if self.config.save_only_latest_checkpoint:
            for file in place.glob("*.ckpt"):
                if file.name != saved.name:
                    file.unlink(missing_ok=True)  # another process may train in the same folder


def _reason(error: RuntimeError, place: Path) -> str:
    if shutil.disk_usage(place).free < FULL:
        return "the disk is full"
    return next(iter(str(error).splitlines()), "unknown")

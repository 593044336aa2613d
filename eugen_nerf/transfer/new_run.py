"""The run folder of a transferred model, like those that ns-train writes."""

from __future__ import annotations

import io
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml

from eugen_nerf.errors import UserError
from eugen_nerf.folders import check_place, refused
from eugen_nerf.plugin.checkpoints import MODEL


def place_run(config: Any, output_dir: Path | None, timestamp: str) -> None:
    """Decide where a new run goes, and check that it can be written there.

    Args:
        config: nerfstudio's configuration of the run; gets the absolute output folder and the timestamp.
        output_dir: folder of runs; None: the configuration's own.
        timestamp: name of the run, or nerfstudio's placeholder for the time.

    Raises:
        UserError: the folder exists, or cannot be written.
    """
    # nerfstudio's commands must find the run from any folder.
    config.output_dir = Path(os.path.expanduser(output_dir or config.output_dir)).absolute()
    config.timestamp = timestamp
    config.set_timestamp()
    run = Path(config.get_base_dir())
    check_place(run, "--output-dir")
    if run.exists():
        raise UserError(f"{run}: exists already; choose another --timestamp or --output-dir.")


def write_run(config: Any, teacher: Any, model: Any, load_config: Path) -> Path:
    """Write a run folder like that of ns-train, completely or not at all.

    Args:
        config: nerfstudio's configuration of the run, after `place_run`.
        teacher: the `Teacher`, whose pipeline's other state and step the checkpoint keeps.
        model: the transferred model.
        load_config: config.yml of the teacher's run.

    Returns:
        The run's folder.

    Raises:
        UserError: the folder cannot be written, or the disk is full.
    """
    run = Path(config.get_base_dir())
    state = {name: value for name, value in teacher.state.items() if not name.startswith(MODEL)}
    state.update({f"{MODEL}{name}": value.cpu() for name, value in model.state_dict().items()})
    # Optimizers and schedules belong to the teacher's parameters; further training creates its own.
    checkpoint = {**teacher.checkpoint, "pipeline": state, "optimizers": {}, "schedulers": {}}
    try:
        run.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{run.name}-", dir=run.parent))
    except OSError as error:
        raise refused(run, error, "--output-dir") from None
    try:
        new = temporary / "run"  # its permissions follow the user's umask; `temporary` is private
        folder = new / config.relative_model_dir
        folder.mkdir(parents=True)
        # If torch wrote the file itself, a full disk would raise a general RuntimeError.
        stored = io.BytesIO()
        torch.save(checkpoint, stored)
        (folder / f"step-{int(teacher.checkpoint['step']):09d}.ckpt").write_bytes(stored.getbuffer())
        (new / "config.yml").write_text(yaml.dump(config), "utf8")
        transforms = load_config.parent / "dataparser_transforms.json"
        if transforms.is_file():
            shutil.copyfile(transforms, new / transforms.name)
        new.replace(run)
    except OSError as error:
        raise refused(run, error, "--output-dir") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return run

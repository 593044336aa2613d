"""Export a finished run as a static page with a viewer: `export_web`."""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eugen_nerf import __version__
from eugen_nerf.errors import UserError
from eugen_nerf.export import budget, views
from eugen_nerf.export.folder import BUILT_FROM, FORMAT, check_output, write_folder
from eugen_nerf.export.scene_file import VERSION, ExportedField
from eugen_nerf.export.tables import StoredTable, half_precision
from eugen_nerf.ops import RadianceField
from eugen_nerf.plugin import evaluation
from eugen_nerf.plugin.model import EugenModel
from eugen_nerf.plugin.run_config import read_config
from eugen_nerf.plugin.runs import load_run
from eugen_nerf.scenes.world import bounded_range

VIEWER = Path(__file__).parent / "web"  # built from viewer/; see its README
BACKGROUNDS = {"white": (1.0, 1.0, 1.0), "black": (0.0, 0.0, 0.0)}
NETWORKS = {"eugen": "EUGen", "mlp": "MLP", "low-rank": "Low rank", "snnk": "SNNK"}
# The viewer's shader has every parameter as a literal, which makes its source long. Networks of 24,832 multiply-adds
# have been tested.
MAX_MULTIPLY_ADDS = 25_000
# Its texture has a row for 32,768 cells, and graphics processors have at most 16,384 rows.
MAX_OCCUPANCY = 812
# Number of views whose PSNR is compared before and after shrinking a table.
JUDGED_VIEWS = 4


@dataclass(frozen=True)
class Options:
    """Content of the page."""

    size_budget: float | None = None  # maximum MB (10^6 bytes) of each network's scene file
    with_images: bool = False
    overwrite: bool = False


def export_web(
    load_configs: Sequence[Path], output: Path, options: Options, tell: Callable[[str], None] = lambda line: None
) -> int:
    """Write the page of a run, or of two runs to compare, to a folder.

    Args:
        load_configs: config.yml of one run, or of two runs on the same scene.
        output: the folder; it is written completely or not at all.
        tell: called with a line on what is done.

    Returns:
        The page's size in bytes.

    Raises:
        UserError: a run cannot be loaded or shown in a browser, or the folder cannot be written.
    """
    check_output(output, options.overwrite)  # before loading, which takes minutes
    if options.size_budget is not None and not 0 < options.size_budget < math.inf:
        raise UserError(f"--size-budget must be a positive number of megabytes, not {options.size_budget}.")
    if not (VIEWER / "index.html").is_file():
        raise UserError(f"{VIEWER}: the built viewer is missing. Install eugen-nerf again, or build it in viewer/.")
    pipelines = [_load(path) for path in load_configs]
    datasets = {"test": pipelines[0].datamanager.eval_dataset, "train": pipelines[0].datamanager.train_dataset}
    listed = views.describe_views(datasets)
    for path, pipeline in zip(load_configs[1:], pipelines[1:], strict=True):
        _check_same_scene(path, pipeline, datasets["test"])
    fields = [_prepare(path, pipeline, options, tell) for path, pipeline in zip(load_configs, pipelines, strict=True)]
    if len(fields) == 2 and fields[0].name == fields[1].name:
        names = _run_names(load_configs)
        fields = [_renamed(field, f"{field.name} {name}") for field, name in zip(fields, names, strict=True)]
    background = BACKGROUNDS[pipelines[0].model.eval_background]
    size = 0

    def fill(folder: Path) -> None:
        nonlocal size
        for file in VIEWER.iterdir():  # one by one, since copytree merges all errors into one
            if file.name != BUILT_FROM:
                shutil.copyfile(file, folder / file.name)
        scene = folder / "scene"
        scene.mkdir()
        if options.with_images:
            _write_photos(datasets, listed, scene, background)
        files = ["scene.safetensors", "compare.safetensors"]
        entries = [field.write(scene / file) for field, file in zip(fields, files, strict=False)]
        description = {
            "format": FORMAT,
            "version": VERSION,
            "generator": f"eugen-nerf {__version__}",
            "title": read_config(load_configs[0]).experiment_name,
            "background": list(background),
            "up": [0.0, 0.0, 1.0],
            "focus": views.focus(listed),
            "fields": entries,
            "views": listed,
        }
        (scene / "scene.json").write_text(json.dumps(description, allow_nan=False), encoding="utf-8")
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())

    write_folder(output, fill, options.overwrite)
    return size


def _load(load_config: Path) -> Any:
    pipeline = load_run(load_config)
    model = pipeline.model
    if not isinstance(model, EugenModel):
        raise UserError(
            f"{load_config}: is a run of a method whose model ({type(model).__name__}) the web viewer has no shader "
            "for. It shows eugen-nerf, eugen-nerf-order2, eugen-nerf-mlp, eugen-nerf-low-rank and eugen-nerf-snnk."
        )
    if not isinstance(model.field.evaluator(), RadianceField):
        raise UserError(
            f"{load_config}: was trained with tiny-cuda-nn, whose parameters are opaque. Train with "
            "--pipeline.model.field.implementation native to show the scene in a browser."
        )
    work = model.field.multiply_adds()
    if work > MAX_MULTIPLY_ADDS:
        raise UserError(
            f"{load_config}: its merged networks take {work} multiply-adds a sample, and the web viewer's shader has "
            f"room for {MAX_MULTIPLY_ADDS}. Train with smaller --pipeline.model.field.num-features or hidden-features."
        )
    cells = model.occupancy.resolution
    if cells > MAX_OCCUPANCY:
        raise UserError(
            f"{load_config}: its occupancy grid has {cells} cells a side, and graphics processors have textures for "
            f"{MAX_OCCUPANCY}. Train with a smaller --pipeline.model.occupancy-resolution."
        )
    return pipeline


def _check_same_scene(path: Path, pipeline: Any, dataset: Any) -> None:
    poses, others = dataset.cameras.camera_to_worlds, pipeline.datamanager.eval_dataset.cameras.camera_to_worlds
    if poses.shape != others.shape or not torch.allclose(poses, others, atol=1e-4):
        raise UserError(
            f"{path}: has other test cameras than the first run. Runs to compare must be of the same scene."
        )


def _prepare(path: Path, pipeline: Any, options: Options, tell: Callable[[str], None]) -> ExportedField:
    field = pipeline.model.field
    if options.size_budget is None:
        return exported_field(pipeline.model, half_precision(field.encoding.table, field.encoding.layout))
    # The size of everything but the table: that of a file with an empty table.
    empty = StoredTable(field.encoding.layout, np.zeros((0, 0), np.float16))
    rest = sum(array.nbytes for array in exported_field(pipeline.model, empty).tensors().values()) + (1 << 13)
    before = _psnr(pipeline)
    table = budget.fit_table(pipeline, int(options.size_budget * 1e6) - rest, tell)
    after = _psnr(pipeline)
    tell(
        f"{path}: hash table of {table.num_bytes / 1e6:.2f} MB; PSNR {before:.2f} dB "
        f"before, {after:.2f} dB after ({after - before:+.2f} dB)."
    )
    return exported_field(pipeline.model, table)


def exported_field(model: EugenModel, table: StoredTable) -> ExportedField:
    """A model in the form that the viewer needs, with `table` in place of its hash table."""
    renderer = model.renderer
    field = model.field.evaluator()
    assert isinstance(field, RadianceField)
    return ExportedField(
        name=NETWORKS[model.config.field.network],
        field=field,
        table=table,
        space=renderer.space,
        rule=renderer.rule,
        near=renderer.near,
        # A box ends the rays of a bounded scene anyway, and JSON has no infinity.
        far=min(renderer.far, bounded_range(max(map(abs, itertools.chain(*renderer.space.box))))[1]),
        occupancy_bits=model.occupancy.bits,
        occupancy_resolution=model.occupancy.resolution,
    )


def _run_names(load_configs: Sequence[Path]) -> list[str]:
    """Method and time of each run, as ns-train names its folders, or more of the path if two runs share both."""
    folders = [Path(os.path.abspath(path)).parent for path in load_configs]
    for count in range(2, max(len(folder.parts) for folder in folders)):
        names = ["/".join(folder.parts[-count:]) for folder in folders]
        if len(set(names)) == len(set(folders)):  # a run compared with itself has one name
            return names
    return [str(folder) for folder in folders]


def _renamed(field: ExportedField, name: str) -> ExportedField:
    return ExportedField(**{**vars(field), "name": name})


def _psnr(pipeline: Any) -> float:
    order = evaluation.spread_order(evaluation.num_test_views(pipeline))[:JUDGED_VIEWS]
    psnr = evaluation.mean(evaluation.evaluate(pipeline, order), "psnr")
    assert psnr is not None
    return psnr


def _write_photos(
    datasets: dict[str, Any], listed: list[dict[str, Any]], scene: Path, background: tuple[float, float, float]
) -> None:
    positions = [(dataset, index) for dataset in datasets.values() for index in range(len(dataset))]
    for number, ((dataset, index), view) in enumerate(zip(positions, listed, strict=True)):
        view["photo"] = f"photos/{number:04d}.jpg"
        views.write_photo(dataset, index, scene / view["photo"], background)

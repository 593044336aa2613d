"""The YAML files of `eugen-bench run`."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from eugen_nerf.bench.schema import convert, from_mapping
from eugen_nerf.errors import UserError

Overrides = dict[str, Any]


@dataclass(frozen=True)
class Budget:
    """Length of each training; exactly one of the two is given."""

    iterations: int | None = None
    """Optimization steps."""
    seconds: float | None = None
    """Seconds of training, without evaluations."""

    def __str__(self) -> str:
        return f"{self.iterations} iterations" if self.iterations is not None else f"{self.seconds:g} s"


@dataclass(frozen=True)
class SceneEntry:
    """A scene of a benchmark."""

    path: str
    """Folder, relative to the current folder, to the YAML file or to $EUGEN_DATA."""
    name: str = ""
    """Name in tables; by default the folder's name."""
    overrides: Overrides = field(default_factory=dict)
    """Options for every method on this scene."""


@dataclass(frozen=True)
class MethodEntry:
    """A method of a benchmark."""

    method: str
    """Name of the method in ns-train."""
    name: str = ""
    """Name in tables; by default the method's name. It must be unique, also for variants of one method."""
    dataparser: str = "eugen-scene"
    """nerfstudio's name of the scene's loader. With the same one, all methods get the same poses and splits."""
    overrides: Overrides = field(default_factory=dict)
    """Options of nerfstudio's configuration, as a path with dots: {pipeline.model.field.num_features: 16}."""
    eval_images: int | None = None
    """Maximum number of test images to evaluate with this method; None for the benchmark's own limit."""
    timed_frames: int | None = None
    """Number of frames to time with this method; None for the benchmark's own number."""


@dataclass(frozen=True)
class Curve:
    """Evaluations on a few test views during training, while the training clock is stopped."""

    at: tuple[float, ...] = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0)
    """When to evaluate, as shares of the budget."""
    views: int = 3
    """Number of test views, spread over the split and the same for every evaluation and method."""
    pixels: int | None = None
    """Evaluate this many pixels of each view, so that methods with slow frames can be followed too. The pixels are
    drawn once and are the same for every method. None for whole views."""


@dataclass(frozen=True)
class Benchmark:
    """A YAML file of `eugen-bench run`: every method is trained on every scene with every seed."""

    scenes: tuple[SceneEntry, ...]
    methods: tuple[MethodEntry, ...]
    """The first method is the reference of all ratios."""
    budget: Budget
    title: str = ""
    """Title of the report."""
    seeds: tuple[int, ...] = (0,)
    """Random seeds; each row is trained once with each of them."""
    fit_schedules: bool = True
    """Stretch or compress every method's learning-rate schedule to the budget; false keeps the method's own steps."""
    overrides: Overrides = field(default_factory=dict)
    """Options for every method."""
    curve: Curve = field(default_factory=Curve)
    """When to evaluate during training."""
    target_psnr: tuple[float, ...] = ()
    """PSNR values (dB); the report gives the training time until the curve reaches them."""
    eval_images: int | None = None
    """Maximum number of test images to evaluate after training; None for all."""
    timed_frames: int = 20
    """Number of frames to time; test views are repeated if there are fewer."""
    pictures: int = 2
    """Number of test views shown in the report."""


class _UniqueKeys(yaml.SafeLoader):
    """Refuses mappings with a repeated key, of which PyYAML silently keeps the last."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:  # before "<<" merges other mappings into it
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in seen:
                    raise yaml.composer.ComposerError(None, None, f"{key.value!r} appears twice", key.start_mark)
                seen.add(key.value)
        return node


def load_benchmark(path: Path) -> Benchmark:
    """Read and check a YAML file.

    Raises:
        UserError: the file cannot be read, is not YAML, has an unknown key or an invalid value, or names a scene that
            does not exist.
    """
    try:
        data = yaml.load(path.read_text("utf8"), Loader=_UniqueKeys)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # the last two: impossible dates, deep nesting
        raise UserError(f"{path}: is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise UserError(f"{path}: must be a mapping with at least scenes, methods and budget.")
    # A string is short for an entry with nothing but this name.
    for key, lone in (("scenes", "path"), ("methods", "method")):
        if isinstance(data.get(key), list):
            data[key] = [{lone: entry} if isinstance(entry, str) else entry for entry in data[key]]
    benchmark = from_mapping(Benchmark, data, str(path))
    return _completed(benchmark, path)


def _completed(benchmark: Benchmark, file: Path) -> Benchmark:
    """Make paths absolute, fill in names, and check values."""
    scenes = []
    for scene in benchmark.scenes:
        folder = find_scene(scene.path, file.parent)
        scenes.append(SceneEntry(str(folder), scene.name or folder.name, scene.overrides))
    methods = [replace(method, name=method.name or method.method) for method in benchmark.methods]
    for kind, names in (("scenes", [s.name for s in scenes]), ("methods", [m.name for m in methods])):
        if not names:
            raise UserError(f"{file}: {kind} must name at least one.")
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise UserError(f"{file}: {kind} has two entries called {twice!r}; give each its own `name`.")
    title = benchmark.title or file.stem
    completed = replace(benchmark, title=title, scenes=tuple(scenes), methods=tuple(methods))
    _check_numbers(completed, file)
    _check_storable(completed, file)
    return completed


def _check_storable(benchmark: Benchmark, file: Path) -> None:
    """Raise UserError for values that JSON cannot represent (YAML's .inf, dates): the configuration is stored too."""
    try:
        json.dumps(dataclasses.asdict(benchmark), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(
            f"{file}: has a value that cannot be stored with the results ({error}). Numbers must be finite; put dates "
            "in quotes."
        ) from error


def _check_numbers(benchmark: Benchmark, file: Path) -> None:
    budget = benchmark.budget
    if (budget.iterations is None) == (budget.seconds is None):
        raise UserError(f"{file}: budget must have one of the keys iterations and seconds.")
    if not 0 < (budget.iterations or budget.seconds or 0) < math.inf:
        raise UserError(f"{file}: budget must be positive and finite.")
    if not all(0 <= seed < 1 << 32 for seed in benchmark.seeds):
        raise UserError(f"{file}: seeds must be from 0 to 2^32 - 1.")
    if not benchmark.seeds or len(set(benchmark.seeds)) < len(benchmark.seeds):
        raise UserError(f"{file}: seeds must name at least one, and none twice.")
    if not all(0 < share <= 1 for share in benchmark.curve.at):
        raise UserError(f"{file}: curve.at takes shares of the budget, above 0 and up to 1.")
    counts = {
        "curve.views": benchmark.curve.views,
        "curve.pixels": benchmark.curve.pixels,
        "timed_frames": benchmark.timed_frames,
        "eval_images": benchmark.eval_images,
        **{f"eval_images of {m.name}": m.eval_images for m in benchmark.methods},
        **{f"timed_frames of {m.name}": m.timed_frames for m in benchmark.methods},
    }
    for name, count in counts.items():
        if count is not None and count < 1:
            raise UserError(f"{file}: {name} must be at least 1, not {count}.")
    if benchmark.pictures < 0:
        raise UserError(f"{file}: pictures must not be negative.")


def find_scene(path: str, beside: Path) -> Path:
    """Find the folder of a scene, as an absolute path.

    Args:
        path: as given in the YAML file.
        beside: folder of the YAML file.

    Raises:
        UserError: none of the places has such a folder.
    """
    given = Path(os.path.expanduser(path))
    data = os.environ.get("EUGEN_DATA")
    places = [Path.cwd(), beside.absolute(), *([Path(os.path.expanduser(data)).absolute()] if data else [])]
    for place in places:
        if os.path.exists(place / given):  # unlike pathlib's, also False for names that no file can have
            return Path(os.path.abspath(place / given))  # unresolved: a link's own name is the scene's name
    looked = ", ".join(dict.fromkeys(str(place / given) for place in places))
    near = difflib.get_close_matches(path, _folders(places), n=1, cutoff=0.6)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    hint += "" if data else " Set EUGEN_DATA to the folder that holds your scenes."
    raise UserError(f"Scene {path!r} does not exist. Looked for {looked}.{hint}")


def _folders(places: Sequence[Path]) -> list[str]:
    found = []
    for place in places:
        with contextlib.suppress(OSError):
            found += [entry.name for entry in place.iterdir() if entry.is_dir()]
    return found


def benchmark_from_json(data: Any, where: str) -> Benchmark:
    """Rebuild a benchmark from `dataclasses.asdict` and JSON.

    Raises:
        UserError: the data are not a benchmark.
    """
    benchmark = convert(Benchmark, data, where)
    assert isinstance(benchmark, Benchmark)
    return benchmark

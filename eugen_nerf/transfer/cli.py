"""Turn a trained MLP field into an EUGen field, layer by layer in closed form, without backpropagation."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from eugen_nerf.cli_support import exit_on_user_error, make_console
from eugen_nerf.errors import UserError

# With this many samples for each unknown, overfitting hides a tenth of the unexplained variance. With fewer, the
# explained share soon becomes meaningless.
SAMPLES_PER_UNKNOWN = 10


@dataclass
class Transfer:
    """Options of eugen-transfer."""

    load_config: Path
    """config.yml of the trained run: eugen-nerf-mlp, or nerfstudio's vanilla-nerf, mipnerf, or nerfacto trained with
    --pipeline.model.implementation torch. The run is only read."""
    num_features: int
    """Number of features m, per order, of each EUGen layer; m times the order is at most the width of the layers."""
    solver: Literal["ridge", "layerwise"] = "ridge"
    """ridge: closed form, takes seconds. layerwise: also trains the projections, one layer at a time."""
    rows: Literal["teacher", "gaussian", "orthogonal"] = "teacher"
    """Source of the projections: units of the trained layers, or random numbers."""
    selection: Literal["contribution", "leverage", "random"] = "contribution"
    """How projections are chosen from the candidates: the trained layer's units, or four times as many random rows."""
    layers: tuple[str, ...] = ()
    """Layers of nerfstudio's models that become EUGen layers, as paths or shell patterns. By default those of
    eugen-vanilla-nerf, eugen-mipnerf and eugen-nerfacto. In eugen-nerf-mlp every hidden layer is converted."""
    order: int = 1
    """k, the largest number of factors in a product."""
    norm: bool = False
    """Append the norm of the input: in eugen-nerf for each network's first layer, in nerfstudio's models for every
    converted layer. With rows of a teacher it has no effect before training."""
    phi: str | None = None
    """Nonlinearity of the features. By default the activation of the trained layers."""
    ridge: float = 1e-6
    """Penalty of the closed form, relative to the mean variance of the features."""
    steps: int = 1000
    """Steps per layer of the layerwise solver."""
    learning_rate: float = 2e-3
    """Initial learning rate of the layerwise solver."""
    pixel_fraction: float = 0.01
    """Share of the training views' pixels whose rays are recorded."""
    max_samples: int = 1 << 17
    """Samples of a field after which no more rays are drawn. All samples are kept in memory."""
    views: int = 4
    """Number of test views rendered before and after, spread over the test split."""
    seed: int = 0
    """Random seed for pixels, samples and random rows."""
    output_dir: Path | None = None
    """Folder under which the new run is written, as SCENE/METHOD/TIMESTAMP; by default that of the trained run."""
    timestamp: str = "{timestamp}"
    """Name of the new run; by default the time."""


@dataclass
class Outcome:
    """The new run and its measurements."""

    run: Path
    before: dict[str, Any]
    after: dict[str, Any]
    seconds: float
    explained: dict[str, list[float]] = field(default_factory=dict)


def transfer(options: Transfer, console: Console) -> Outcome:
    """Load the teacher, record samples, fit the student, measure both, write the new run.

    Raises:
        UserError: an option, the run or its scene cannot be used. Nothing has been written then.
    """
    if not 0 < options.pixel_fraction <= 1:
        raise UserError(f"--pixel-fraction is a share above 0 and at most 1, not {options.pixel_fraction}.")
    if not 0 <= options.seed < 1 << 63:
        raise UserError(f"--seed must be a number from 0 to 2^63 - 1, not {options.seed}.")
    for name in ("num_features", "order", "max_samples", "views"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(options, name)}.")
    if options.timestamp in ("", ".", "..") or "/" in options.timestamp:
        raise UserError(
            f"--timestamp is the name of a folder, not {options.timestamp!r}; --output-dir says where it is made."
        )
    # Slow imports come after the options have been checked.
    import torch

    from eugen_nerf.layers import ACTIVATIONS, ConversionPlan
    from eugen_nerf.layers.transfer import TransferOptions
    from eugen_nerf.plugin import recording
    from eugen_nerf.plugin.evaluation import forked_rng
    from eugen_nerf.transfer import new_run, student
    from eugen_nerf.transfer.teacher import load_teacher

    if options.phi not in (None, *ACTIVATIONS):
        raise UserError(f"--phi must be one of {', '.join(ACTIVATIONS)}, not {options.phi!r}.")
    try:
        how = TransferOptions(
            options.solver,
            options.rows,
            options.selection,
            options.ridge,
            options.steps,
            options.learning_rate,
            seed=options.seed,
        )
    except ValueError as error:
        raise UserError(f"{error}.") from error
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with forked_rng(device):
        torch.manual_seed(options.seed)
        with redirect_stdout(sys.stderr):  # nerfstudio's reports while it loads
            teacher = load_teacher(options.load_config, device)
            plan = ConversionPlan(
                options.num_features,
                options.layers,
                options.order,
                options.norm,
                options.phi or teacher.phi,
                feature_bias=True,
            )
            config = student.student_config(teacher, plan)
            new_run.place_run(config, options.output_dir, options.timestamp)
            model = student.build_student(teacher, config)
            owners = student.fields(model, list(student.networks(model)))
        original = teacher.pipeline.model
        layers = sum(len(list(_eugen_layers(network))) for network in student.networks(model).values())
        with _progress(console) as progress:
            before = _measure(teacher.pipeline, options.views, _bar(progress, "teacher's test views"))
            start = time.perf_counter()
            recorded = recording.record(
                teacher.pipeline,
                owners,
                options.pixel_fraction,
                options.max_samples,
                options.seed,
                _bar(progress, "samples"),
            )
            _check_samples(recorded, options)
            bar = _bar(progress, "layers")
            done = 0
            explained: dict[str, list[float]] = {}

            def fitted(path: str, one: Any) -> None:
                nonlocal done
                done += 1
                explained.setdefault(path, []).append(one.explained)
                bar(done / layers)

            student.fit(original, model, recorded, how, fitted)
            seconds = time.perf_counter() - start
            teacher.pipeline._model = model
            after = _measure(teacher.pipeline, options.views, _bar(progress, "student's test views"))
    console.print(f"Recorded {recorded}.", markup=False, soft_wrap=True)
    run = new_run.write_run(config, teacher, model, options.load_config)
    outcome = Outcome(run, before, after, seconds, explained)
    _tell(outcome, config, console)
    return outcome


def _check_samples(recorded: Any, options: Transfer) -> None:
    """Raise UserError if so few samples were recorded that a fit meets them whatever the layers do elsewhere."""
    unknowns = options.num_features * options.order + 1
    kept = min(samples.kept for samples in recorded.fields.values())
    if kept < SAMPLES_PER_UNKNOWN * unknowns:
        raise UserError(
            f"{kept:,} samples are too few for the {unknowns:,} unknowns behind each output of a layer; at least "
            f"{SAMPLES_PER_UNKNOWN * unknowns:,} are wanted. Record more with a larger --pixel-fraction or "
            "--max-samples, or take fewer --num-features."
        )


def _eugen_layers(network: Any) -> Iterator[Any]:
    from eugen_nerf.layers import EUGen

    return (module for module in network.modules() if isinstance(module, EUGen))


def _measure(pipeline: Any, views: int, report: Any) -> dict[str, Any]:
    """PSNR of test views by the protocol of eugen-bench, and its counts of parameters and multiply-adds."""
    from eugen_nerf.bench.counting import count
    from eugen_nerf.plugin import evaluation

    order = evaluation.spread_order(evaluation.num_test_views(pipeline))[:views]
    rows = evaluation.evaluate(pipeline, order, report=report)
    with evaluation.evaluating(pipeline):
        camera = evaluation.test_view(pipeline, order[0]).camera
        # Work per sample does not depend on the size of the image.
        camera.rescale_output_resolution(min(1.0, 32 / int(camera.width)))
        return {"psnr": evaluation.mean(rows, "psnr"), **count(pipeline.model, camera)}


def _tell(outcome: Outcome, config: Any, console: Console) -> None:
    from eugen_nerf.transfer.training_command import training_command

    table = Table("", "before", "after", title="Transfer")
    for column in table.columns[1:]:
        column.justify = "right"
    before, after = outcome.before, outcome.after
    table.add_row("PSNR (dB)", f"{before['psnr']:.2f}", f"{after['psnr']:.2f}")
    for name, label in (
        ("stored_parameters", "Stored parameters"),
        ("merged_network_parameters", "Network parameters, merged"),
        ("multiply_adds_per_sample", "Multiply-adds per sample"),
    ):
        sizes = ["-" if values[name] is None else f"{values[name]:,.0f}" for values in (before, after)]
        table.add_row(label, *sizes)
    table.add_row("Seconds of transfer", "", f"{outcome.seconds:.1f}")
    console.print(table)
    for path, shares in outcome.explained.items():
        numbers = ", ".join(f"{100 * share:.2f}" for share in shares)
        console.print(f"Explained variance of the layers of {path}: {numbers} %", markup=False, soft_wrap=True)
    console.print(f"Run: {outcome.run / 'config.yml'}", markup=False, soft_wrap=True)
    command = shlex.join(training_command(config, outcome.run))
    console.print(f"To train it further:\n{command}", markup=False, soft_wrap=True)


@contextmanager
def _progress(console: Console) -> Iterator[Progress]:
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        yield progress


def _bar(progress: Progress, name: str) -> Any:
    task = progress.add_task(name, total=1.0)
    return lambda part: progress.update(task, completed=part)


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the program."""
    options = tyro.cli(Transfer, prog="eugen-transfer", args=arguments, description=__doc__)
    console = make_console()
    with exit_on_user_error(console, "Interrupted; nothing was written."):
        transfer(options, console)


if __name__ == "__main__":
    main()

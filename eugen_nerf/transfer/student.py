"""The EUGen field made from a trained field: its configuration, its model, and the fit of its layers."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
from nerfstudio.configs.method_configs import all_methods
from nerfstudio.fields.base_field import Field
from torch import Tensor, nn

from eugen_nerf.errors import UserError
from eugen_nerf.field import ChainNetwork, EugenField
from eugen_nerf.layers import ConversionPlan, EUGen, LayerStack
from eugen_nerf.layers.transfer import LayerFit, TransferOptions, transfer_network
from eugen_nerf.plugin.checkpoints import MODEL
from eugen_nerf.plugin.converted import PlanError
from eugen_nerf.plugin.model import EugenModelConfig
from eugen_nerf.plugin.recording import Recording
from eugen_nerf.transfer.teacher import Teacher


def student_config(teacher: Teacher, plan: ConversionPlan) -> Any:
    """Turn the teacher's configuration into that of a method with EUGen layers.

    Args:
        teacher: the trained run.
        plan: which layers to convert; empty `layers` for those of the student's method. In our own field all hidden
            layers are converted.

    Raises:
        UserError: the plan does not fit the model.
    """
    config = copy.deepcopy(teacher.config)
    default: Any = all_methods[teacher.method]
    if isinstance(config.pipeline.model, EugenModelConfig):
        _check_our_field(teacher, plan)
        field = config.pipeline.model.field
        field.network = "eugen"
        for name in ("num_features", "order", "norm", "phi", "trainable_projections", "feature_bias"):
            setattr(field, name, getattr(plan, name))
        field.candidate_features = 0  # eugen-transfer selects the features
        field.validate()
        config.optimizers["networks"] = copy.deepcopy(default.optimizers["networks"])
    else:
        model = default.pipeline.model
        options = {key: value for key, value in vars(config.pipeline.model).items() if key != "_target"}
        chosen = dataclasses.replace(plan, layers=plan.layers or model.eugen.layers)
        config.pipeline.model = type(model)(**{**options, "eugen": chosen})
        config.pipeline._target = default.pipeline._target
        trainer = {key: value for key, value in vars(config).items() if key != "_target"}
        config = type(default)(**trainer)
    config.method_name = teacher.method
    config.timestamp = "{timestamp}"
    config.load_dir = config.load_checkpoint = config.load_step = config.load_config = None
    return config


def _check_our_field(teacher: Teacher, plan: ConversionPlan) -> None:
    """Check a plan for our field before anything is built. Its configuration converts all hidden layers."""
    if plan.layers:
        raise UserError(
            "--layers is for nerfstudio's models; in eugen-nerf-mlp every hidden layer becomes an EUGen layer."
        )
    units = teacher.config.pipeline.model.field.hidden_features
    if plan.num_features * plan.order > units:
        raise _unfit(
            f"{plan.num_features} features of {plan.order} order(s) are more than the {units} units of a layer"
        )


def _unfit(reason: str) -> UserError:
    """Phrase an error in terms of what the user typed, without the name of our function."""
    return UserError(f"--layers, --num-features and --order do not fit the model: {reason}.")


def build_student(teacher: Teacher, config: Any) -> Any:
    """Build the student's model with all of the teacher's weights except those of the replaced layers.

    Raises:
        UserError: the plan does not fit the model, or the teacher lacks something that the student does not replace.
    """
    dataset = teacher.pipeline.datamanager.train_dataset
    try:
        model = config.pipeline.model.setup(
            scene_box=dataset.scene_box,
            num_train_data=len(dataset),
            metadata=dataset.metadata,
            device=teacher.pipeline.device,
            grad_scaler=None,
        ).to(teacher.pipeline.device)
    except PlanError as error:
        raise _unfit(error.reason) from error
    replaced = {path for path, module in model.named_modules() if isinstance(module, EUGen)}
    known = {name.removeprefix(MODEL): value for name, value in teacher.state.items() if name.startswith(MODEL)}

    def in_replaced(name: str) -> bool:
        return name.rpartition(".")[0] in replaced

    shared = {name: value for name, value in known.items() if not in_replaced(name)}
    missing, unexpected = model.load_state_dict(shared, strict=False)
    if unexpected or not all(in_replaced(name) for name in missing):
        wrong = [*unexpected, *(name for name in missing if not in_replaced(name))]
        raise UserError(f"The teacher's checkpoint and {config.method_name} differ in {', '.join(sorted(wrong)[:5])}.")
    step = int(teacher.checkpoint["step"])
    model.update_to_step(step)
    return model.eval()


def networks(model: nn.Module) -> dict[str, nn.Module]:
    """The networks of a model that contain EUGen layers, by path."""
    return {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, ChainNetwork | LayerStack) and any(isinstance(m, EUGen) for m in module.modules())
    }


def fields(model: Any, paths: list[str]) -> list[str]:
    """Paths of the fields that the networks at these paths belong to.

    Raises:
        UserError: a network does not belong to a field, or its field only proposes where to sample.
    """
    found = dict.fromkeys(path.partition(".")[0] for path in paths)
    for name in found:
        if not isinstance(model.get_submodule(name), EugenField | Field):
            belongs = ", ".join(path for path in paths if path.partition(".")[0] == name)
            raise UserError(
                f"--layers: {belongs} cannot be transferred: only fields that produce the image's colors can. Choose "
                "layers of those."
            )
    return list(found)


@torch.no_grad()
def fit(
    teacher: Any,
    student: Any,
    recording: Recording,
    options: TransferOptions,
    report: Callable[[str, LayerFit], None] = lambda path, fit: None,
) -> dict[str, list[LayerFit]]:
    """Fit every EUGen layer of the student, network by network in the order in which they run.

    Args:
        teacher: the trained model.
        student: from `build_student`; changed in place.
        recording: samples on which both are compared.
        options: how layers are fitted.
        report: called with the path of a network and one of its fits.

    Raises:
        UserError: a recorded value is not finite.
    """
    fits: dict[str, list[LayerFit]] = {}
    for path in _in_order(student, recording):
        owner = path.partition(".")[0]
        batches = list(_inputs(teacher, student, owner, path, recording.fields[owner].calls))
        try:
            fits[path] = transfer_network(
                _layers(teacher.get_submodule(path)),
                _layers(student.get_submodule(path)),
                batches,
                options,
                lambda one, path=path: report(path, one),  # type: ignore[misc]
            )
        except ValueError as error:
            raise UserError(f"{path}: {error}.") from error
    return fits


def _layers(network: nn.Module) -> nn.Module:
    return network.layers if isinstance(network, ChainNetwork) else network


def _in_order(student: Any, recording: Recording) -> list[str]:
    """Paths of the student's networks in the order in which its fields call them."""
    order: list[str] = []
    found = networks(student)
    hooks = [
        network.register_forward_pre_hook(lambda *_, path=path: order.append(path) if path not in order else None)
        for path, network in found.items()
    ]
    try:
        for owner, samples in recording.fields.items():
            _call(student.get_submodule(owner), samples.calls[0])
    finally:
        for hook in hooks:
            hook.remove()
    return order


def _inputs(teacher: Any, student: Any, owner: str, path: str, calls: list[Any]) -> Iterator[tuple[Tensor, Tensor]]:
    """The inputs of a network in the teacher and in the student, [N, d] each, call by call."""
    received: list[Tensor] = []

    def note(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        x = arguments[0].detach()
        received.append(x.reshape(-1, x.shape[-1]))

    hooks = [model.get_submodule(path).register_forward_pre_hook(note) for model in (teacher, student)]
    try:
        for arguments in calls:
            received.clear()
            for model in (teacher, student):
                _call(model.get_submodule(owner), arguments)
            yield received[0], received[1]
    finally:
        for hook in hooks:
            hook.remove()


def _call(field: nn.Module, arguments: tuple[Any, ...]) -> None:
    field(*arguments)

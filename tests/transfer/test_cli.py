"""eugen-transfer on this package's own field: quality, cost, the resulting run and the refusals."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import resource
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.scripts import eval as ns_eval
from nerfstudio.scripts import train as ns_train
from nerfstudio.utils.eval_utils import eval_setup
from rich.console import Console

from eugen_nerf import ops
from eugen_nerf.errors import UserError
from eugen_nerf.layers import EUGen
from eugen_nerf.layers.transfer import TransferOptions
from eugen_nerf.plugin.recording import random_rays
from eugen_nerf.transfer.cli import Outcome, Transfer, main, transfer
from eugen_nerf.transfer.teacher import _check_scene

pytestmark = pytest.mark.slow


def fingerprint(folder: Path) -> dict[str, str]:
    """Every file below a folder, with a hash of its content.

    TensorBoard's log is left out: the training in this process keeps it open and flushes it at some time.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file() and "tfevents" not in path.name)
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def options(run: Path, output: Path, **changes: Any) -> Transfer:
    chosen = {
        "num_features": 24,
        "views": 2,
        "pixel_fraction": 0.5,
        "max_samples": 20_000,
        "timestamp": "t",
        "output_dir": output,
    }
    return Transfer(run / "config.yml", **{**chosen, **changes})


def run_transfer(given: Transfer) -> tuple[Outcome, str]:
    console = Console(file=io.StringIO(), width=160)
    outcome = transfer(given, console)
    return outcome, console.file.getvalue()  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def transferred(mlp_run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, str, dict, dict]:
    """A transfer at half the width: outcome, printed text, and the teacher's files before and after."""
    before = fingerprint(mlp_run)
    outcome, printed = run_transfer(options(mlp_run, tmp_path_factory.mktemp("students")))
    return outcome, printed, before, fingerprint(mlp_run)


class TestResult:
    def test_quality_is_kept_at_less_than_half_the_cost(self, transferred: tuple[Outcome, str, dict, dict]) -> None:
        outcome = transferred[0]
        assert outcome.before["psnr"] > 15
        assert outcome.after["psnr"] > outcome.before["psnr"] - 0.4
        assert outcome.before["multiply_adds_per_sample"] == 16 * 64 + 64 * 16 + 31 * 64 + 64 * 64 + 64 * 3
        assert outcome.after["multiply_adds_per_sample"] == 16 * 24 + 24 * 16 + 31 * 24 + 24 * 24 + 24 * 3
        assert [len(shares) for shares in outcome.explained.values()] == [1, 2]
        assert all(share > 0.8 for shares in outcome.explained.values() for share in shares)

    def test_what_is_printed(self, transferred: tuple[Outcome, str, dict, dict]) -> None:
        outcome, printed, _, _ = transferred
        for value in (outcome.before, outcome.after):
            assert f"{value['psnr']:.2f}" in printed
            assert f"{value['multiply_adds_per_sample']:,}" in printed
            assert f"{value['merged_network_parameters']:,}" in printed
        assert f"{outcome.seconds:.1f}" in printed
        assert "% of the pixels of 16 training views" in printed
        assert "100%" in printed  # of the progress bars

    def test_the_teacher_is_never_touched(self, transferred: tuple[Outcome, str, dict, dict]) -> None:
        assert transferred[2] == transferred[3]

    def test_the_run_is_one_of_eugen_nerf(self, transferred: tuple[Outcome, str, dict, dict], mlp_run: Path) -> None:
        run = transferred[0].run
        assert run.parts[-3:] == ("ball", "eugen-nerf", "t")
        assert run.is_absolute()
        assert set(fingerprint(run)) == {
            "config.yml",
            "dataparser_transforms.json",
            "nerfstudio_models/step-000000199.ckpt",
        }
        assert list(run.parent.iterdir()) == [run]  # no temporary files are left
        umask = os.umask(0)
        os.umask(umask)
        assert run.stat().st_mode & 0o777 == 0o777 & ~umask

    def test_ns_eval_finds_the_same_quality(
        self, transferred: tuple[Outcome, str, dict, dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        outcome = transferred[0]
        result = tmp_path / "result.json"
        arguments = ["ns-eval", f"--load-config={outcome.run / 'config.yml'}", f"--output-path={result}"]
        monkeypatch.setattr(sys, "argv", arguments)
        ns_eval.entrypoint()
        assert json.loads(result.read_text())["results"]["psnr"] == pytest.approx(outcome.after["psnr"], abs=1e-3)

    def test_pictures_of_merged_and_factored_layers_agree(self, transferred: tuple[Outcome, str, dict, dict]) -> None:
        _, pipeline, _, _ = eval_setup(transferred[0].run / "config.yml", test_mode="test")
        field, camera = pipeline.model.field, pipeline.datamanager.eval_dataset.cameras[:1]
        assert sum(isinstance(module, EUGen) for module in field.modules()) == 3
        merged = pipeline.model.get_outputs_for_camera(camera)["rgb"]

        def layer_by_layer(unit: torch.Tensor, views: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            sigma, geometry = field._split(field.density_network.layers(field.encoding(unit)))
            harmonics = ops.spherical_harmonics(views)
            return sigma, torch.sigmoid(field.color_network.layers(torch.cat([harmonics, geometry], dim=-1)))

        field.evaluator = lambda: layer_by_layer
        factored = pipeline.model.get_outputs_for_camera(camera)["rgb"]
        assert merged.std() > 0.1
        assert (merged - factored).abs().max() < 1e-4

    def test_the_printed_command_trains_it_further(
        self,
        transferred: tuple[Outcome, str, dict, dict],
        tmp_path: Path,
        parse: Callable[..., Any],
    ) -> None:
        outcome, printed, _, _ = transferred
        command = printed[printed.index("ns-train") :].split()
        assert command[:2] == ["ns-train", "eugen-nerf"]
        more = ["--output-dir", tmp_path, "--timestamp=more", "--max-num-iterations=3", *command[2:]]
        ns_train.main(parse(*more))
        state = torch.load(tmp_path / "ball" / "eugen-nerf" / "more" / "nerfstudio_models" / "step-000000202.ckpt")
        before = torch.load(outcome.run / "nerfstudio_models" / "step-000000199.ckpt")["pipeline"]
        weight = "_model.field.color_network.layers.1.weight"
        assert 0 < (state["pipeline"][weight] - before[weight]).abs().max() < 0.05


def test_layerwise_with_random_rows(mlp_run: Path, tmp_path: Path) -> None:
    given = options(mlp_run, tmp_path, solver="layerwise", rows="orthogonal", num_features=16, steps=20, views=1)
    outcome, _ = run_transfer(given)
    assert outcome.after["psnr"] > 12


@pytest.mark.parametrize("phi", ["gelu", "sin"])
def test_features_have_the_activation_of_the_trained_layers(mlp_run: Path, tmp_path: Path, phi: str) -> None:
    """All units of a layer, with its activation, are the layer."""
    run = shutil.copytree(mlp_run, tmp_path / "run")
    config = run / "config.yml"
    config.write_text(config.read_text().replace("phi: relu", f"phi: {phi}"))
    outcome, _ = run_transfer(options(run, tmp_path / "out", num_features=64, ridge=1e-12))
    assert outcome.after["psnr"] == pytest.approx(outcome.before["psnr"], abs=0.1)
    for shares in outcome.explained.values():
        assert min(shares) > 0.9999
    assert f"phi: {phi}" in (outcome.run / "config.yml").read_text()


def test_rays_pass_through_the_middles_of_all_pixels() -> None:
    fx, fy, cx, cy, width, height = 10.0, 11.0, 6.0, 3.0, 12, 6
    cameras = Cameras(torch.eye(4)[None, :3].repeat(2, 1, 1), fx, fy, cx, cy, width, height)
    x, y, z = random_rays(cameras, 500, torch.Generator().manual_seed(0)).directions.unbind(dim=-1)
    for middles, size in ((cx - fx * x / z, width), (cy + fy * y / z, height)):
        pixels = (middles - 0.5).round()
        torch.testing.assert_close(pixels + 0.5, middles, atol=1e-3, rtol=0)
        assert set(pixels.int().tolist()) == set(range(size))


def test_the_seed_is_that_of_the_fits_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []

    class Noted(TransferOptions):
        def __post_init__(self) -> None:
            seeds.append(self.seed)
            raise ValueError("no more is wanted")

    monkeypatch.setattr("eugen_nerf.layers.transfer.TransferOptions", Noted)
    with pytest.raises(SystemExit):
        main([f"--load-config={tmp_path / 'config.yml'}", "--num-features=8", "--seed=5"])
    assert seeds == [5]


class TestRefusals:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            (
                {"num_features": 65},
                r"^--layers, --num-features and --order do not fit the .*: 65 features of 1 order\(s\) are more",
            ),
            ({"num_features": 0}, "--num-features must be at least 1, not 0"),
            ({"order": 0}, "--order must be at least 1, not 0"),
            ({"seed": 1 << 63}, r"--seed must be a number from 0 to 2\^63 - 1, not 9223372036854775808"),
            ({"learning_rate": float("inf")}, "learning_rate must be positive and finite, got .*, inf"),
            ({"order": 3, "num_features": 32}, r"32 features of 3 order\(s\) are more than"),
            ({"phi": "relux"}, "--phi must be one of"),
            ({"ridge": -1.0}, "ridge must be finite and not negative"),
            ({"pixel_fraction": 0.0}, "--pixel-fraction is a share above 0"),
            ({"views": 0}, "--views must be at least 1"),
            ({"layers": ("field.*",)}, "every hidden layer becomes an EUGen layer"),
            ({"timestamp": "../../../x"}, "--timestamp is the name of a folder, not '../../../x'; --output-dir says"),
            ({"timestamp": ".."}, "--timestamp is the name of a folder"),
            ({"timestamp": ""}, "--timestamp is the name of a folder"),
            (
                {"max_samples": 1, "pixel_fraction": 0.002, "views": 1},
                r"samples are too few for the 25 unknowns .* at least 250 are wanted",
            ),
        ],
    )
    def test_options(self, changes: dict[str, Any], message: str, mlp_run: Path, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=message):
            run_transfer(options(mlp_run, tmp_path, **changes))
        assert not any(tmp_path.iterdir())

    def test_a_run_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"nowhere/config\.yml: does not exist"):
            run_transfer(options(tmp_path / "nowhere", tmp_path))

    def test_a_file_that_is_no_configuration(self, tmp_path: Path) -> None:
        (tmp_path / "config.yml").write_text("method_name: [eugen")
        with pytest.raises(UserError, match="is not a configuration written by ns-train"):
            run_transfer(options(tmp_path, tmp_path / "out"))

    def test_a_run_that_is_there_already(self, mlp_run: Path, tmp_path: Path) -> None:
        there = tmp_path / "ball" / "eugen-nerf" / "t"
        there.mkdir(parents=True)
        with pytest.raises(UserError, match="exists already"):
            run_transfer(options(mlp_run, tmp_path))
        assert not any(there.iterdir())

    def test_an_output_folder_that_is_a_file_is_found_before_any_work(
        self, mlp_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "file").write_text("")
        monkeypatch.setattr("eugen_nerf.transfer.cli._measure", pytest.fail)
        with pytest.raises(UserError, match=r"/file is a file\)\. Choose another --output-dir"):
            run_transfer(options(mlp_run, tmp_path / "file"))

    def test_a_full_disk_leaves_nothing_behind(
        self, mlp_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: Any) -> None:
            raise OSError(errno.ENOSPC, "full")

        monkeypatch.setattr(Path, "write_bytes", full)
        with pytest.raises(UserError, match="t: the disk is full; nothing was written"):
            run_transfer(options(mlp_run, tmp_path, views=1))
        assert not list(tmp_path.rglob("*t*/*")) + list(tmp_path.rglob(".t*"))

    def test_a_checkpoint_that_ends_half_way_leaves_nothing_behind(self, mlp_run: Path, tmp_path: Path) -> None:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))  # files end here, as on a full disk
        try:
            with pytest.raises(UserError, match=r"t: cannot be written \(File too large\)"):
                run_transfer(options(mlp_run, tmp_path, views=1))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert not list(tmp_path.rglob("*t*/*")) + list(tmp_path.rglob(".t*"))

    @pytest.fixture
    def copied(self, mlp_run: Path, tmp_path: Path) -> Path:
        """A copy of the teacher's run, for the tests to damage."""
        run = tmp_path / "copied"
        shutil.copytree(mlp_run, run)
        return run

    def damage(self, run: Path, change: Callable[[dict], None]) -> None:
        (file,) = (run / "nerfstudio_models").glob("*.ckpt")
        checkpoint = torch.load(file)
        change(checkpoint["pipeline"])
        torch.save(checkpoint, file)

    def refused(self, run: Path, output: Path, message: str) -> None:
        with pytest.raises(UserError, match=message):
            run_transfer(options(run, output))
        assert not output.exists()

    def test_a_run_without_checkpoint(self, copied: Path, tmp_path: Path) -> None:
        shutil.rmtree(copied / "nerfstudio_models")
        self.refused(copied, tmp_path / "out", "holds no checkpoint")

    def test_a_truncated_checkpoint(self, copied: Path, tmp_path: Path) -> None:
        (file,) = (copied / "nerfstudio_models").glob("*.ckpt")
        file.write_bytes(file.read_bytes()[:1000])
        self.refused(copied, tmp_path / "out", r"step-000000199\.ckpt: cannot be read")

    def test_a_checkpoint_without_the_expected_layers(self, copied: Path, tmp_path: Path) -> None:
        self.damage(copied, lambda state: state.pop("_model.field.color_network.layers.1.weight"))
        self.refused(copied, tmp_path / "out", r"does not belong to .*missing: field\.color_network\.layers\.1\.weight")

    def test_weights_that_several_gpus_trained_have_other_names(self, copied: Path, tmp_path: Path) -> None:
        def renamed(state: dict) -> None:
            names = [name for name in state if name.startswith("_model.")]
            state.update({name.replace("_model.", "_model.module.", 1): state.pop(name) for name in names})
            state["_model.module.lpips.net.weight"] = torch.zeros(1)  # as in nerfstudio's own models

        self.damage(copied, renamed)
        outcome, _ = run_transfer(options(copied, tmp_path / "out", views=1))
        assert outcome.after["psnr"] > 12

    def test_networks_of_tiny_cuda_nn(self, copied: Path, tmp_path: Path) -> None:
        self.damage(copied, lambda state: state.update({"_model.field.mlp.tcnn_encoding.params": torch.zeros(3)}))
        self.refused(copied, tmp_path / "out", "trained by tiny-cuda-nn")

    def test_another_scene(self, copied: Path, tmp_path: Path) -> None:
        file = copied / "dataparser_transforms.json"
        world = json.loads(file.read_text())
        world["scale"] *= 2
        file.write_text(json.dumps(world))
        self.refused(copied, tmp_path / "out", "is not the scene that .*copied was trained on")

    @pytest.mark.parametrize(
        "content",
        [b"{", b"[]", b"{}", b'{"transform": {}, "scale": 1}', b'{"transform": [[1]], "scale": "x"}', b"\xff"],
    )
    def test_a_damaged_file_beside_the_teacher(self, tmp_path: Path, content: bytes) -> None:
        file = tmp_path / "dataparser_transforms.json"
        file.write_bytes(content)
        outputs = SimpleNamespace(dataparser_transform=torch.eye(4)[:3], dataparser_scale=1.0)
        pipeline = SimpleNamespace(datamanager=SimpleNamespace(train_dataparser_outputs=outputs))
        with pytest.raises(UserError, match=r"dataparser_transforms.json: cannot be read .* Restore it, or remove it"):
            _check_scene(tmp_path, pipeline)

    def test_nothing_to_see(self, copied: Path, tmp_path: Path) -> None:
        self.damage(copied, lambda state: state["_model.field.density_network.layers.1.bias"].fill_(-100))
        self.refused(copied, tmp_path / "out", "None of the samples of .* contributes to a pixel in field")

    def test_a_run_of_eugen_layers(self, transferred: tuple[Outcome, str, dict, dict], tmp_path: Path) -> None:
        self.refused(
            transferred[0].run, tmp_path / "out", "is a run of eugen-nerf. Teachers are runs of eugen-nerf-mlp"
        )

    def test_the_program_prints_one_message_and_fails(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as ended:
            main([f"--load-config={tmp_path / 'config.yml'}", "--num-features=8"])
        assert ended.value.code == 1
        assert capsys.readouterr().out.startswith("Error: ")

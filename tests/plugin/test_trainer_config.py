"""What ns-train checks and says before it trains."""

from __future__ import annotations

import copy
import errno
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from eugen_nerf.errors import UserError
from eugen_nerf.plugin import methods
from eugen_nerf.plugin.dataparsers import SceneDataParser
from eugen_nerf.plugin.trainer_config import EugenTrainerConfig, busy_machine_hint
from eugen_nerf.scenes import Scene


class TestSaveConfig:
    """The first thing that ns-train does."""

    def config(self, parse: Any, scene: Path, output: Path, *options: str) -> EugenTrainerConfig:
        config = parse("--output-dir", output, "--timestamp=now", *options)
        config.pipeline.datamanager.data = scene
        return config

    def test_test_photos_that_are_missing_are_told_of_and_not_needed(
        self, parse: Any, ball_scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        shutil.copytree(ball_scene, tmp_path / "scene", ignore=lambda folder, _: ["test"])
        config = self.config(parse, tmp_path / "scene", tmp_path)
        config.save_config()
        assert (config.get_base_dir() / "config.yml").is_file()
        told = " ".join(capsys.readouterr().out.split())
        assert "Warning: ns-eval, ns-viewer, ns-render and ns-export will fail on this run: " in told
        assert "none of the 2 images it lists exists" in told

    def test_writes_a_configuration_that_finds_the_scene_from_anywhere(
        self, parse: Any, ball_scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(ball_scene.parent)
        self.config(parse, Path(ball_scene.name), tmp_path).save_config()
        written = tmp_path / ball_scene.name / "eugen-nerf" / "now" / "config.yml"
        config = yaml.load(written.read_text(), Loader=yaml.Loader)
        assert config.pipeline.datamanager.data == ball_scene
        assert config.pipeline.datamanager.dataparser.data == ball_scene

    def test_writes_a_configuration_that_finds_its_run_from_anywhere(
        self, parse: Any, ball_scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        self.config(parse, ball_scene, Path("out")).save_config()
        run = tmp_path / "out" / "ball" / "eugen-nerf" / "now"
        config = yaml.load((run / "config.yml").read_text(), Loader=yaml.Loader)
        assert config.get_checkpoint_dir() == run / "nerfstudio_models"

    @pytest.mark.parametrize("fit", [True, False])
    def test_learning_rates_decay_over_the_steps_there_are(
        self, parse: Any, ball_scene: Path, tmp_path: Path, fit: bool
    ) -> None:
        config = self.config(parse, ball_scene, tmp_path, "--max-num-iterations=123", f"--fit-schedules={fit}")
        before = {name: group["scheduler"].max_steps for name, group in config.optimizers.items()}
        config.save_config()
        after = {name: group["scheduler"].max_steps for name, group in config.optimizers.items()}
        assert after == (dict.fromkeys(before, 123) if fit else before)

    def test_says_what_will_be_trained(
        self, parse: Any, ball_scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.config(parse, ball_scene, tmp_path).save_config()
        text = " ".join(capsys.readouterr().out.split())
        assert "Training eugen on cpu: hash grid 4 x 4 features, up to 2^11 entries per level" in text

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--pipeline.model.field.num-levels=0"], "num_levels must be at least 1"),
            (["--pipeline.model.occupancy-resolution=9"], "occupancy_resolution must be even"),
            (
                ["--pipeline.model.field.implementation=tcnn", "--pipeline.model.field.network=mlp"],
                "tiny-cuda-nn cannot be used here",
            ),
            (["--machine.seed=-1"], r"machine\.seed must be a number from 0 to 2\^32 - 1, not -1"),
            (
                ["--optimizers.encoding.optimizer.lr=nan"],
                r"encoding\.optimizer\.lr must be 0 or .*, not nan",
            ),
            (["--optimizers.networks.optimizer.lr=-1"], r"optimizers\.networks\.optimizer\.lr must be 0 or .*, not -1"),
            (["--optimizers.encoding.optimizer.betas", "1.0", "1.0"], r"encoding\.optimizer\.betas must be .* below 1"),
            (
                ["--optimizers.encoding.optimizer.eps=-1"],
                r"encoding\.optimizer\.eps must be 0 or a positive .*, not -1",
            ),
            (
                ["--fit-schedules=False", "--optimizers.networks.scheduler.max-steps=0"],
                r"networks\.scheduler\.max_steps must be at least 1, not 0",
            ),
            (
                ["--optimizers.networks.scheduler.final-fraction=-0.5"],
                r"networks\.scheduler\.final_fraction must be from 0 to 1, not -0\.5",
            ),
            (["--machine.num-devices=0"], "must be at least 1"),
            (["--machine.num-devices=99"], r"num_devices is 99, but PyTorch finds \d+ NVIDIA GPUs"),
            (["--machine.num-machines=2"], r"dist_url must name the first one: tcp://HOST:PORT"),
            (
                ["--pipeline.datamanager.patch-size=129"],
                "patch_size 129 needs 16641 rays per step, more than",
            ),
            (
                ["blender-data", "--alpha-color=black"],
                r"alpha_color must stay white, not black: .*\.eval-background",
            ),
            (["--pipeline.datamanager.camera-res-scale-factor=0"], "camera_res_scale_factor must be a positive number"),
            (
                ["--pipeline.datamanager.train-num-images-to-sample-from=0"],
                r"train_num_images_to_sample_from must be -1 \(all images\) or at least 1, not 0",
            ),
            (["--pipeline.datamanager.steps-drawn-at-once=0"], "steps_drawn_at_once must be at least 1, not 0"),
            (["--load-dir=/nowhere"], r"/nowhere: holds no checkpoint .* nerfstudio_models"),
            (["--load-checkpoint=/nowhere.ckpt"], r"/nowhere\.ckpt: does not exist"),
            (["--max-num-iterations=0"], "max_num_iterations must be at least 1, not 0"),
            (["--pipeline.max-num-samples-per-ray=0"], "max_num_samples_per_ray must be at least 1, not 0"),
            (["--pipeline.target-num-samples=0"], "target_num_samples must be at least 1, not 0"),
            (["--pipeline.selection-samples=0"], "selection_samples must be at least 1, not 0"),
            (["--pipeline.max-rays-per-batch=63"], "max_rays_per_batch must be at least 64, not 63"),
            (["--pipeline.selection-fraction=1"], r"selection_fraction must be 0 or more and below 1, not 1\.0"),
            (["--pipeline.selection-fraction=-0.1"], r"selection_fraction must be .*, not -0\.1"),
            (
                ["--pipeline.model.near=5", "--pipeline.model.far=2"],
                r"near limit of rays \(5\.0\).* below far \(2\.0\)",
            ),
            (
                ["--pipeline.model.far=inf", "--pipeline.model.contraction=True"],
                "far limit of rays must be finite in a contracted scene",
            ),
            (
                ["--pipeline.datamanager.camera-res-scale-factor=0.001"],
                r"no pixel is left of its \d+ x \d+ with camera",
            ),
            # against the scene's far limit
            (["--pipeline.model.near=1e7"], r"near limit of rays \(10000000\.0\) must .* below far \(\d"),
        ],
    )
    def test_refuses_options_before_it_writes_anything(
        self, parse: Any, ball_scene: Path, tmp_path: Path, options: list[str], message: str
    ) -> None:
        with pytest.raises(UserError, match=message):
            self.config(parse, ball_scene, tmp_path, *options).save_config()
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("inside", ["", "deeper"])
    def test_refuses_an_output_folder_that_is_a_file(
        self, parse: Any, ball_scene: Path, tmp_path: Path, inside: str
    ) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(UserError, match=r"cannot be written \(.*file is a file\)\. Choose another --output-dir"):
            self.config(parse, ball_scene, tmp_path / "file" / inside).save_config()

    def test_tells_of_a_full_disk(
        self, parse: Any, ball_scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(path: Path, content: bytes) -> None:
            raise OSError(errno.ENOSPC, "full")

        monkeypatch.setattr("eugen_nerf.files.replace_file", full)
        with pytest.raises(UserError, match="the disk is full; nothing was written"):
            self.config(parse, ball_scene, tmp_path / "out").save_config()
        assert not (tmp_path / "out").exists()

    def test_refuses_a_folder_without_a_scene(self, parse: Any, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        with pytest.raises(UserError, match="holds no scene"):
            self.config(parse, tmp_path / "empty", tmp_path / "outputs").save_config()
        assert not (tmp_path / "outputs").exists()

    def test_leaves_other_dataparsers_to_nerfstudio(self, parse: Any, ball_scene: Path, tmp_path: Path) -> None:
        config = parse("--output-dir", tmp_path, "--timestamp=now", "blender-data", "--data", ball_scene)
        config.save_config()
        assert config.pipeline.datamanager.data == ball_scene
        assert (tmp_path / "ball" / "eugen-nerf" / "now" / "config.yml").is_file()


class TestCheckpoint:
    """The checkpoints that ns-train can resume from."""

    def config(self, parse: Any, scene: Path, output: Path, *options: Any, method: str = "eugen-nerf") -> Any:
        words = ["--data", scene, "--output-dir", output, "--timestamp=now", "--max-num-iterations=100"]
        config = parse(*words, *options, method=method)
        config.pipeline.datamanager.data = scene
        return config

    def max_steps(self, config: Any) -> set[int]:
        return {group["scheduler"].max_steps for group in config.optimizers.values()}

    def test_the_decay_goes_on_over_all_steps(
        self, parse: Any, ball_scene: Path, trained_run: Path, tmp_path: Path
    ) -> None:
        file = trained_run / "nerfstudio_models" / "step-000000299.ckpt"
        for number, options in enumerate(
            (
                ["--load-dir", file.parent],
                ["--load-dir", file.parent, "--load-step=299"],
                ["--load-checkpoint", file],
            )
        ):
            config = self.config(parse, ball_scene, tmp_path / str(number), *options)
            config.save_config()
            assert self.max_steps(config) == {400}
            # By a single name, without a step that ns-eval would expect in the new run.
            assert (config.load_checkpoint, config.load_dir, config.load_step) == (file, None, None)

    def test_the_decay_begins_anew_without_a_schedule_to_go_on_with(
        self, parse: Any, ball_scene: Path, trained_run: Path, tmp_path: Path
    ) -> None:
        (file,) = (trained_run / "nerfstudio_models").iterdir()
        config = self.config(parse, ball_scene, tmp_path, "--load-checkpoint", file, "--load-scheduler=False")
        config.save_config()
        assert self.max_steps(config) == {100}
        transferred = tmp_path / "step-000000299.ckpt"
        torch.save({**torch.load(file), "optimizers": {}, "schedulers": {}}, transferred)
        config = self.config(parse, ball_scene, tmp_path, "--load-checkpoint", transferred)
        config.save_config()
        assert self.max_steps(config) == {100}

    def test_options_of_optimizers_that_it_overrules_are_told(
        self, parse: Any, ball_scene: Path, trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        load = ["--load-dir", trained_run / "nerfstudio_models"]
        told = []
        for number, options in enumerate(
            (
                [],
                ["--optimizers.networks.optimizer.lr=0.001"],
                ["--optimizers.networks.optimizer.lr=0.001", "--load-scheduler=False"],
                ["--optimizers.encoding.optimizer.betas", "0.5", "0.5", "--load-scheduler=False"],
            )
        ):
            self.config(parse, ball_scene, tmp_path / str(number), *load, *options).save_config()
            told.append(" ".join(capsys.readouterr().out.split()))
        assert ["optimizers." in text for text in told] == [False, True, False, True]
        assert "optimizers.networks.optimizer.lr keeps the checkpoint's value 0.004; 0.001 is ignored; " in told[1]
        assert "--load-scheduler False starts" in told[1]
        assert "optimizers.encoding.optimizer.betas keeps the checkpoint's value (0.9, 0.99); " in told[3]

    def test_a_learning_rate_without_a_schedule_is_the_checkpoints(
        self, parse: Any, ball_scene: Path, trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        options = ["--load-dir", trained_run / "nerfstudio_models", "--load-scheduler=False"]
        config = self.config(parse, ball_scene, tmp_path, *options)
        config.optimizers["networks"]["optimizer"].lr = 0.001
        config.optimizers["networks"]["optimizer"].weight_decay = 0.1
        config.optimizers["networks"]["scheduler"] = None
        config.fit_schedules = False
        config.save_config()
        text = " ".join(capsys.readouterr().out.split())
        assert "optimizers.networks.optimizer.lr keeps the checkpoint's value 0.004; 0.001 is ignored. " in text
        assert "optimizers.networks.optimizer.weight_decay keeps the checkpoint's value 0; 0.1 is ignored." in text

    def test_parameters_that_the_model_lacks(
        self, parse: Any, ball_scene: Path, trained_run: Path, tmp_path: Path
    ) -> None:
        (file,) = (trained_run / "nerfstudio_models").iterdir()
        loaded = torch.load(file)
        torch.save({**loaded, "optimizers": {**loaded["optimizers"], "camera_opt": {}}}, tmp_path / file.name)
        config = self.config(parse, ball_scene, tmp_path / "out", "--load-checkpoint", tmp_path / file.name)
        with pytest.raises(UserError, match="was trained with parameters of the group camera_opt"):
            config.save_config()
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        ("options", "told"),
        [
            ([], []),
            (["--pipeline.model.field.implementation=torch", "--pipeline.model.steps-per-diagonal=99"], []),
            (["--pipeline.model.field.phi=gelu"], ["pipeline.model.field.phi is gelu", "was trained with relu."]),
            (["--pipeline.model.contraction=True"], ["pipeline.model.contraction is True", "was trained with None."]),
            (
                ["eugen-scene", "--center=poses"],
                ["pipeline.datamanager.dataparser.center is poses", "was trained with None."],
            ),
            (
                ["eugen-blender"],
                ["pipeline.datamanager.dataparser.layout is blender", "was trained with auto."],
            ),
        ],
        ids=["the same", "harmless", "activation", "contraction", "world", "layout"],
    )
    def test_options_with_which_its_weights_mean_something_else_are_told(
        self,
        parse: Any,
        ball_scene: Path,
        trained_run: Path,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        options: list[str],
        told: list[str],
    ) -> None:
        self.config(
            parse, ball_scene, tmp_path, "--load-dir", trained_run / "nerfstudio_models", *options
        ).save_config()
        text = " ".join(capsys.readouterr().out.split())
        assert ("was trained with" in text) == bool(told)
        for words in told:
            assert words in text

    def test_another_scene_is_told(
        self, parse: Any, ball_scene: Path, trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        scene = shutil.copytree(ball_scene, tmp_path / "another")
        load = ["--load-dir", trained_run / "nerfstudio_models"]
        self.config(parse, scene, tmp_path / "out", *load).save_config()
        text = " ".join(capsys.readouterr().out.split())
        assert f"dataparser.data is {scene}, but step-000000299.ckpt was trained with {ball_scene}." in text

    def test_what_its_run_names_is_not_executed(
        self, parse: Any, ball_scene: Path, trained_run: Path, tmp_path: Path
    ) -> None:
        """A config.yml can name any function of Python."""
        run = shutil.copytree(trained_run, tmp_path / "run")
        text = (run / "config.yml").read_text()
        called = (
            f"!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path [{tmp_path / 'called'}]]"
        )
        (run / "config.yml").write_text(f"{text}\nrelative_model_dir_2: {called}\n")
        self.config(parse, ball_scene, tmp_path / "out", "--load-dir", run / "nerfstudio_models").save_config()
        assert not (tmp_path / "called").exists()

    def test_a_checkpoint_without_its_run_is_taken_as_it_is(
        self, parse: Any, ball_scene: Path, trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (file,) = (trained_run / "nerfstudio_models").iterdir()
        alone = shutil.copy(file, tmp_path)
        options = ["--load-checkpoint", alone, "--pipeline.model.field.phi=gelu"]
        self.config(parse, ball_scene, tmp_path / "out", *options).save_config()
        assert "Warning" not in capsys.readouterr().out

    def test_its_check_reads_the_scene_no_second_time(
        self, parse: Any, ball_scene: Path, trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        read: list[str] = []
        load = SceneDataParser.load

        def counted(self: SceneDataParser, split: str) -> Scene:
            read.append(split)
            return load(self, split)

        monkeypatch.setattr(SceneDataParser, "load", counted)
        self.config(parse, ball_scene, tmp_path, "--load-dir", trained_run / "nerfstudio_models").save_config()
        assert read == ["train", "val", "test"]

    @pytest.mark.parametrize(
        ("method", "options", "message"),
        [
            ("eugen-nerf-mlp", [], r"does not belong to eugen-nerf-mlp .*color_network.* is \[64, 16\] and should be"),
            (
                "eugen-nerf",
                ["--pipeline.model.field.num-levels=5"],
                r"encoding\.table is \[.*another method, other",
            ),
            ("eugen-vanilla-nerf", [], r"does not belong to eugen-vanilla-nerf .*missing: "),
            (
                "eugen-nerf",
                ["--load-step=7"],
                r"step-000000007\.ckpt: does not exist; .* checkpoints of load-step 299\.",
            ),
        ],
        ids=["another method", "other options", "nerfstudio's method", "another step"],
    )
    def test_what_does_not_fit_leaves_nothing_behind(
        self,
        parse: Any,
        ball_scene: Path,
        trained_run: Path,
        tmp_path: Path,
        method: str,
        options: list[str],
        message: str,
    ) -> None:
        given = ["--load-dir", trained_run / "nerfstudio_models", *options]
        if method == "eugen-vanilla-nerf":
            config = copy.deepcopy(methods.eugen_vanilla_nerf.config)
            config.output_dir, config.timestamp, config.load_dir = tmp_path / "out", "now", given[1]
            config.pipeline.datamanager.data = ball_scene
        else:
            config = self.config(parse, ball_scene, tmp_path / "out", *given, method=method)
        with pytest.raises(UserError, match=message):
            config.save_config()
        assert not (tmp_path / "out").exists()

    def test_a_damaged_one(self, parse: Any, ball_scene: Path, trained_run: Path, tmp_path: Path) -> None:
        (file,) = (trained_run / "nerfstudio_models").iterdir()
        cut = tmp_path / "step-000000299.ckpt"
        cut.write_bytes(file.read_bytes()[:20_000])
        with pytest.raises(UserError, match=r"step-000000299\.ckpt: cannot be read"):
            self.config(parse, ball_scene, tmp_path / "out", "--load-dir", tmp_path).save_config()
        cut.write_text("garbage")
        with pytest.raises(UserError, match=r"cannot be read \(damaged, or not written by ns-train\)"):
            self.config(parse, ball_scene, tmp_path / "out", "--load-dir", tmp_path).save_config()
        assert not (tmp_path / "out").exists()


class TestBusyMachine:
    @pytest.fixture(autouse=True)
    def two_threads(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
        monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
        monkeypatch.setattr(torch, "get_num_threads", lambda: 2)

    def test_is_told_what_helps(self) -> None:
        hint = busy_machine_hint(1.5, 2)
        assert hint is not None
        assert "OMP_WAIT_POLICY=passive" in hint

    def test_nothing_to_tell(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert busy_machine_hint(0.1, 2) is None
        assert busy_machine_hint(1.5, 4) is None  # the other work uses other cores
        monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
        assert busy_machine_hint(1.5, 2) is None
        monkeypatch.delenv("OMP_WAIT_POLICY")
        monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
        assert busy_machine_hint(1.5, 2) is None

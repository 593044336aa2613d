"""Finding finished runs: in place, after copying, and the messages about damaged ones."""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from nerfstudio.configs.method_configs import method_configs

from eugen_nerf.errors import UserError
from eugen_nerf.plugin.checkpoints import latest_checkpoint, read_checkpoint
from eugen_nerf.plugin.run_config import read_config
from eugen_nerf.plugin.runs import build_pipeline, load_run

BIAS = "_model.field.density_network.layers.1.bias"


@pytest.fixture
def copied(trained_run: Path, tmp_path: Path) -> Path:
    """A copy of a run with one weight changed."""
    run = tmp_path / "copied"
    shutil.copytree(trained_run, run)
    change(run, lambda state: state[BIAS].fill_(7.0))
    return run


def change(run: Path, what: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    (file,) = run.glob("*/step-*.ckpt")
    checkpoint = torch.load(file)
    what(checkpoint["pipeline"])
    torch.save(checkpoint, file)


def bias(load_config: Path) -> torch.Tensor:
    found: torch.Tensor = load_run(load_config).model.field.density_network.layers[1].bias
    return found


class TestFound:
    def test_a_copied_run_has_its_own_weights(self, copied: Path, trained_run: Path) -> None:
        assert (bias(copied / "config.yml") == 7).all()
        assert not (bias(trained_run / "config.yml") == 7).any()

    def test_from_any_folder(self, copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        config = read_config(copied / "config.yml")
        config.output_dir = Path("outputs")  # as in runs of earlier versions and of nerfstudio's methods
        (copied / "config.yml").write_text(yaml.dump(config))
        for folder, path in ((copied.parent, "copied/config.yml"), (copied, "config.yml")):
            monkeypatch.chdir(folder)
            assert (bias(Path(path)) == 7).all()

    def test_in_another_folder_of_models(self, copied: Path) -> None:
        config = read_config(copied / "config.yml")
        config.relative_model_dir = Path("weights")
        (copied / "config.yml").write_text(yaml.dump(config))
        os.rename(copied / "nerfstudio_models", copied / "weights")
        assert (bias(copied / "config.yml") == 7).all()

    def test_the_newest_checkpoint_whatever_step_the_training_began_at(self, copied: Path) -> None:
        config = read_config(copied / "config.yml")
        config.load_step = 17
        (copied / "config.yml").write_text(yaml.dump(config))
        assert (bias(copied / "config.yml") == 7).all()

    def test_the_newest_of_several_checkpoints(self, tmp_path: Path) -> None:
        (tmp_path / "models").mkdir()
        for step in (200, 2999, 1000):
            (tmp_path / "models" / f"step-{step:09d}.ckpt").write_text("")
        config = SimpleNamespace(relative_model_dir=Path("models"))
        newest = latest_checkpoint(tmp_path / "config.yml", config)
        assert newest == tmp_path / "models" / "step-000002999.ckpt"


class TestRefusals:
    def refused(self, load_config: Path, message: str) -> None:
        with pytest.raises(UserError, match=message):
            load_run(load_config)

    def test_no_run(self, tmp_path: Path) -> None:
        self.refused(tmp_path / "config.yml", r"config.yml: does not exist. Give the config.yml of a run")

    def test_a_folder(self, tmp_path: Path) -> None:
        self.refused(tmp_path, r": is a folder. Give the config.yml of a run")

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "pipeline: [",
            "!!python/object:eugen_nerf.nowhere.Config {}",
            "!!python/object/apply:types.SimpleNamespace [1, 2, 3]",
            "!!python/object/apply:pathlib.WindowsPath [C:, runs]",
            "!!python/object/apply:int [many]",
            "!!python/tuple {}",
            "!!python/object/apply:operator.getitem [[], 3]",
            "!!python/object/apply:types.SimpleNamespace {kwds: {method_name: eugen-nerf, pipeline: 3}}",
        ],
        ids=["empty", "syntax", "import", "TypeError", "Windows", "ValueError", "tuple", "IndexError", "no pipeline"],
    )
    def test_another_file(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "config.yml").write_text(text)
        self.refused(tmp_path / "config.yml", r"config\.yml: is not a configuration written by ns-train")

    def test_another_file_of_the_run(self, trained_run: Path) -> None:
        self.refused(trained_run / "dataparser_transforms.json", "is not a configuration written by ns-train")

    def test_a_scene_that_is_not_there(self, copied: Path, tmp_path: Path) -> None:
        """nerfstudio's own methods store its path as it was typed."""
        config = read_config(copied / "config.yml")
        config.method_name = "nerfacto"
        config.pipeline = copy.deepcopy(method_configs["nerfacto"].pipeline)
        config.pipeline.datamanager.data = Path("scenes/mine")
        (copied / "config.yml").write_text(yaml.dump(config))
        with pytest.raises(UserError, match=r"its scene scenes/mine cannot be read .*run this from the folder"):
            build_pipeline(read_config(copied / "config.yml"), copied / "config.yml", torch.device("cpu"))

    def test_a_method_that_is_not_there(self, copied: Path) -> None:
        config = read_config(copied / "config.yml")
        config.method_name = "no-such-method"
        (copied / "config.yml").write_text(yaml.dump(config))
        self.refused(copied / "config.yml", "is a run of no-such-method, which is not installed")

    def test_no_checkpoint(self, copied: Path) -> None:
        shutil.rmtree(copied / "nerfstudio_models")
        self.refused(copied / "config.yml", r"copied: holds no checkpoint \(nerfstudio_models/step-\*\.ckpt\)")

    @pytest.mark.parametrize("length", [0, 1, 1000, 20_000, -100])
    def test_a_truncated_checkpoint(self, copied: Path, length: int) -> None:
        (file,) = (copied / "nerfstudio_models").iterdir()
        file.write_bytes(file.read_bytes()[:length])
        self.refused(copied / "config.yml", r"step-000000299\.ckpt: cannot be read")

    @pytest.mark.parametrize("content", [b"hello", b"pipeline", b"step: 3\n", b"\x80\x02.", b"{}"])
    def test_a_file_that_is_no_checkpoint(self, tmp_path: Path, content: bytes) -> None:
        file = tmp_path / "step-000000299.ckpt"
        file.write_bytes(content)
        with pytest.raises(UserError, match=r"step-000000299\.ckpt: cannot be read \(damaged, or not written by"):
            read_checkpoint(file)

    @pytest.mark.parametrize("content", [[], {"step": 3}, {"pipeline": {}}, {"pipeline": 3, "step": 3}])
    def test_a_checkpoint_of_something_else(self, tmp_path: Path, content: Any) -> None:
        torch.save(content, tmp_path / "step-000000299.ckpt")
        with pytest.raises(UserError, match=r"step-000000299\.ckpt: is not a nerfstudio checkpoint"):
            read_checkpoint(tmp_path / "step-000000299.ckpt")

    def test_a_checkpoint_of_other_layers(self, copied: Path) -> None:
        change(copied, lambda state: state.update({BIAS: torch.zeros(3)}))
        self.refused(copied / "config.yml", r"step-000000299\.ckpt: does not belong to .*config\.yml .*density_network")

    def test_a_checkpoint_that_lacks_weights(self, copied: Path) -> None:
        change(copied, lambda state: state.pop(BIAS))
        self.refused(copied / "config.yml", r"does not belong to .*missing: field\.density_network\.layers\.1\.bias")

"""Compatibility fixes that nerfstudio needs on current PyTorch versions and on minimal systems."""

from __future__ import annotations

import inspect
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from nerfstudio.configs import external_methods

from eugen_nerf.errors import UserError
from eugen_nerf.plugin import compat


def run_python(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environment},
        check=False,
    )


class TestCheckpoints:
    def test_numpy_scalars_of_schedules_load_by_default(self, tmp_path: Path) -> None:
        path = tmp_path / "step-000000001.ckpt"
        parameter = torch.nn.Parameter(torch.ones(2))
        optimizer = torch.optim.Adam([parameter], lr=np.float64(0.25))
        state = {"step": 1, "optimizers": optimizer.state_dict(), "lrs": [np.float64(0.125)]}
        torch.save(state, path)
        compat.allow_numpy_scalars_in_checkpoints()
        loaded = torch.load(path)
        assert loaded["optimizers"]["param_groups"][0]["lr"] == 0.25
        assert loaded["lrs"] == [0.125]

    @pytest.mark.parametrize("core", [b"numpy.core", b"numpy._core"])
    def test_checkpoints_of_other_numpy_versions_load(self, tmp_path: Path, core: bytes) -> None:
        path = tmp_path / "a.ckpt"
        torch.save({"lr": np.float64(0.25)}, path, _use_new_zipfile_serialization=False, pickle_protocol=2)
        content = path.read_bytes()
        here = b"numpy._core" if b"numpy._core" in content else b"numpy.core"
        assert here in content
        path.write_bytes(content.replace(here, core))
        compat.allow_numpy_scalars_in_checkpoints()
        assert torch.load(path)["lr"] == 0.25

    def test_it_is_our_doing(self, tmp_path: Path) -> None:
        """Without the fix such a file is refused, so the test above is meaningful."""
        torch.save({"lr": np.float64(0.25)}, tmp_path / "a.ckpt")
        done = run_python(f"""
import torch
path = {str(tmp_path / "a.ckpt")!r}
try:
    torch.load(path)
except Exception as error:
    print("refused" if "weights_only" in str(error) else error)
from eugen_nerf.plugin import compat
compat.allow_numpy_scalars_in_checkpoints()
print(torch.load(path)["lr"])
""")
        assert done.stdout.split() == ["refused", "0.25"], done.stderr

    def test_code_in_checkpoints_is_still_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "evil.ckpt"
        torch.save({"run": shutil.which}, path)
        compat.allow_numpy_scalars_in_checkpoints()
        with pytest.raises(Exception, match="weights_only"):
            torch.load(path)


class TestUserErrors:
    def test_end_a_program_with_one_message_and_status_1(self) -> None:
        done = run_python("""
from eugen_nerf.plugin import compat
from eugen_nerf.errors import SceneError
compat.print_user_errors_without_traceback()
try:
    open("/nowhere/x")
except OSError as error:
    raise SceneError("scene/a.png: is cut off; copy it again") from error
""")
        assert done.returncode == 1
        assert done.stderr.strip() == "Error: scene/a.png: is cut off; copy it again"
        assert done.stdout == ""

    def test_other_errors_are_left_to_the_previous_hook(self, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[BaseException] = []
        monkeypatch.setattr(sys, "excepthook", lambda kind, error, traceback: seen.append(error))
        compat.print_user_errors_without_traceback()
        hook = sys.excepthook
        compat.print_user_errors_without_traceback()
        assert sys.excepthook is hook  # not stacked
        bug = RuntimeError("a bug")
        hook(RuntimeError, bug, None)
        hook(UserError, UserError("a mistake"), None)
        assert seen == [bug]


class TestFfmpeg:
    @pytest.fixture(autouse=True)
    def bare_system(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "bin").mkdir()
        monkeypatch.setenv("PATH", str(tmp_path / "bin"))
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def test_is_provided_where_path_has_none(self) -> None:
        assert shutil.which("ffmpeg") is None
        compat.provide_ffmpeg()
        program = shutil.which("ffmpeg")
        assert program is not None
        answer = subprocess.run([program, "-version"], capture_output=True, text=True, check=True)
        assert answer.stdout.startswith("ffmpeg version")
        compat.provide_ffmpeg()  # a second call finds the link of the first
        assert shutil.which("ffmpeg") == program

    def test_a_link_that_leads_nowhere_is_renewed(self, tmp_path: Path) -> None:
        compat.provide_ffmpeg()
        link = Path(str(shutil.which("ffmpeg")))
        link.unlink()
        link.symlink_to(tmp_path / "an environment that was deleted")
        os.environ["PATH"] = str(tmp_path / "bin")
        compat.provide_ffmpeg()
        assert shutil.which("ffmpeg") == str(link)

    def test_the_systems_own_is_left_alone(self, tmp_path: Path) -> None:
        own = tmp_path / "bin" / "ffmpeg"
        own.write_text("#!/bin/sh\n")
        own.chmod(0o755)
        before = os.environ["PATH"]
        compat.provide_ffmpeg()
        assert os.environ["PATH"] == before

    def test_another_users_folder_is_not_put_on_path(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The folder's name is predictable, so another user could have created it with their own program."""
        owner = os.getuid()
        monkeypatch.setattr(os, "getuid", lambda: owner + 1)
        before = os.environ["PATH"]
        compat.provide_ffmpeg()
        assert os.environ["PATH"] == before

    def test_nothing_breaks_without_imageio_ffmpeg(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)  # importing it fails
        compat.provide_ffmpeg()
        assert shutil.which("ffmpeg") is None


@pytest.mark.parametrize("asked_for", [False, True])
def test_remarks_on_nerfstudios_own_code_are_hidden_unless_asked_for(
    monkeypatch: pytest.MonkeyPatch, asked_for: bool
) -> None:
    monkeypatch.setattr(sys, "warnoptions", ["default"] if asked_for else [])
    remark, own = "Using a non-tuple sequence for multidimensional indexing is deprecated", "something of ours"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        compat.hide_warnings_about_nerfstudio()
        warnings.warn_explicit(remark, UserWarning, "cameras.py", 601, module="nerfstudio.cameras.cameras")
        warnings.warn_explicit(own, UserWarning, "field.py", 1, module="eugen_nerf.field")
    assert [str(warning.message) for warning in caught] == ([remark, own] if asked_for else [own])


class TestMethodsToInstall:
    """nerfstudio inspects the stack to tell whether it lists the methods or one was chosen."""

    def test_all_are_listed(self, capsys: pytest.CaptureFixture[str]) -> None:
        compat.start_sooner()
        methods, descriptions = external_methods.get_external_methods()
        assert methods.keys() == descriptions.keys()
        assert set(methods) == {name for each in external_methods.external_methods for name, _ in each.configurations}
        assert capsys.readouterr().out == ""

    def test_one_that_was_chosen_says_how_to_install_it(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        compat.start_sooner()
        monkeypatch.setattr(external_methods.Confirm, "ask", lambda *_, **__: False)
        method = external_methods.external_methods[0]
        with pytest.raises(SystemExit):
            external_methods.ExternalMethodDummyTrainerConfig(method.configurations[0][0], method)
        assert "install" in capsys.readouterr().out

    def test_callers_are_those_of_the_stack(self) -> None:
        names = [frame.function for frame in compat.callers()]
        assert names == [frame.function for frame in inspect.stack()]

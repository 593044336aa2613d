"""Compilation of the native code: cache, concurrent starts, and the behavior if compilation fails."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import shutil
import stat
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest
import torch

from eugen_nerf.ops import build, dispatch

needs_compiler = pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler")

# Encodes one position and prints which library did it; any warning goes to standard error.
PROGRAM = """
import torch
from eugen_nerf.ops import HashGridLayout, hash_encode
from eugen_nerf.ops.build import BuildError, cpu_library
layout = HashGridLayout.build(2, 2, 8, 2, 4)
for _ in range(2):
    hash_encode(torch.rand(3, 3), torch.zeros(layout.num_entries, 2), layout)
try:
    print(cpu_library()._name)
except BuildError:
    print("eager")
"""


def start(cache: Path, **environment: str) -> subprocess.Popen[str]:
    settings = {**os.environ, "EUGEN_CACHE": str(cache), **environment}
    settings.pop("EUGEN_BACKEND", None)
    command = [sys.executable, "-c", PROGRAM]
    return subprocess.Popen(command, env=settings, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str], seconds: float = 240) -> tuple[str, str]:
    out, err = process.communicate(timeout=seconds)
    assert process.returncode == 0, err
    return out.strip(), err


def first_use() -> ctypes.CDLL:
    """What `cpu_library` does at its first call in a process."""
    return build.cpu_library.__wrapped__()


@needs_compiler
def test_concurrent_first_uses_leave_one_library_and_the_next_use_compiles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A low optimization level, last on the command line, makes this fast.
    fast = {"EUGEN_CXXFLAGS": "-O0"}
    results = [finish(process) for process in [start(tmp_path, **fast) for _ in range(2)]]
    files = list(tmp_path.iterdir())
    assert [str(file) for file in files] == [results[0][0]]
    assert {out for out, _ in results} == {str(files[0])}
    assert not any("RuntimeWarning" in err for _, err in results)
    monkeypatch.setenv("EUGEN_CACHE", str(tmp_path))
    monkeypatch.setenv("EUGEN_CXXFLAGS", fast["EUGEN_CXXFLAGS"])
    with monkeypatch.context() as patch:
        patch.setattr(build, "compile_library", None)
        assert first_use()._name == str(files[0])
    # Other users may load it too, and one that a crash cut off is compiled once more: loading it would be a bus error.
    umask = os.umask(0)
    os.umask(umask)
    assert files[0].stat().st_mode & 0o444 == 0o444 & ~umask
    whole = files[0].read_bytes()
    files[0].unlink()  # this process has mapped the whole one
    files[0].write_bytes(whole[: len(whole) // 2])
    assert first_use()._name == str(files[0])
    assert len(files[0].read_bytes()) == len(whole)


@needs_compiler
def test_only_whole_libraries_are_given_to_the_loader(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "cpu.cpp").write_text('extern "C" int answer() { return 42; }\n')
    monkeypatch.setattr(build, "SOURCE", tmp_path)
    path = tmp_path / "cache" / "cpu.so"
    build.compile_library(path, build.find_compiler(), ("-shared", "-fPIC"))
    library = build._load(path)
    assert library is not None
    assert library.answer() == 42

    whole, middle = path.read_bytes(), 1000
    damaged = [whole[:size] for size in (0, 20, 3000, len(whole) // 2, len(whole) * 9 // 10, len(whole) - 1)]
    damaged += [whole[:-100] + bytes(100), whole[:middle] + bytes([255 - whole[middle]]) + whole[middle + 1 :]]
    loaded: list[str] = []
    monkeypatch.setattr(ctypes, "CDLL", loaded.append)
    other = tmp_path / "damaged.so"
    for content in damaged:
        other.write_bytes(content)
        assert build._load(other) is None
    assert build._load(tmp_path / "nothing.so") is None
    assert not loaded


def check_fallback(monkeypatch: pytest.MonkeyPatch, reason: str) -> None:
    """Two uses of an op in this process, as if it had not used any before."""
    monkeypatch.delenv("EUGEN_BACKEND", raising=False)
    monkeypatch.setattr(dispatch, "cpu_library", first_use)
    monkeypatch.setattr(dispatch, "_native_cpu_problem", functools.cache(dispatch._native_cpu_problem.__wrapped__))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert not any(dispatch.uses_native("auto", torch.zeros(3)) for _ in range(2))
    (one,) = [str(warning.message) for warning in told]  # one warning for two uses
    assert one.startswith("eugen-nerf runs on eager PyTorch")
    assert reason in one


def test_without_a_compiler_everything_runs_eagerly_with_one_warning(tmp_path: Path) -> None:
    # zig, if installed, is not found either.
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['ziglang'] = None\n")
    out, err = finish(start(tmp_path, PATH=str(tmp_path), CXX="nothing-of-this-name", PYTHONPATH=str(tmp_path)))
    assert out == "eager"
    assert err.count("RuntimeWarning: eugen-nerf runs on eager PyTorch") == 1  # one warning for two uses
    assert "no C++ compiler was found" in err


def test_a_compiler_that_fails_is_named_with_its_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = tmp_path / "broken-c++"
    compiler.write_text('#!/bin/sh\n[ "$1" = --version ] && exit 0\necho "x.cpp:1: error: out of ideas" >&2\nexit 1\n')
    compiler.chmod(compiler.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("EUGEN_CACHE", str(tmp_path / "cache"))
    check_fallback(monkeypatch, "error: out of ideas")
    assert not list((tmp_path / "cache").iterdir())


def test_a_compiler_may_speak_in_any_encoding(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler = tmp_path / "latin-c++"
    compiler.write_text(
        "#!/bin/sh\nprintf 'version \\344'\n[ \"$1\" = --version ] && exit 0\nprintf 'error: \\374' >&2\nexit 1\n"
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("EUGEN_CACHE", str(tmp_path / "cache"))
    path = build.library_path([str(compiler)], ())
    with pytest.raises(build.BuildError, match="failed: error: \N{REPLACEMENT CHARACTER}"):
        build.compile_library(path, [str(compiler)], ())


@needs_compiler
def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("EUGEN_CACHE", str(blocked / "cache"))
    check_fallback(monkeypatch, str(blocked / "cache"))


@needs_compiler
def test_name_depends_on_flags_and_compiler() -> None:
    compiler = build.find_compiler()
    paths = {build.library_path(compiler, flags) for flags in (build.FLAGS, (*build.FLAGS, "-g"), build.FLAGS[1:])}
    assert len(paths) == 3
    assert build.library_path(compiler, build.FLAGS) in paths


@needs_compiler
def test_name_depends_on_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Machines can share a cache in a home folder, and code for one may contain illegal instructions for another."""
    compiler, paths = build.find_compiler(), set()
    for processor in ("one", "another"):
        monkeypatch.setattr(build, "_processor", lambda name=processor: name)
        paths.add(build.library_path(compiler, build.FLAGS))
    assert len(paths) == 2


def test_compiled_code_gets_pytorchs_threads() -> None:
    given: list[ctypes.c_void_p] = []

    class Library:
        def eugen_use_openmp(self, *functions: ctypes.c_void_p) -> None:
            given.extend(functions)

    build.share_threads(Library())  # type: ignore[arg-type]
    work = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
    parallel = ctypes.CFUNCTYPE(None, work, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)(given[0].value)
    number, count = (ctypes.CFUNCTYPE(ctypes.c_int)(function.value) for function in given[1:])
    seen: set[tuple[int, int, int]] = set()
    parallel(work(lambda _: seen.add((threading.get_native_id(), number(), count()))), None, 2, 0)
    assert len({thread for thread, *_ in seen}) == 2
    assert {tuple(rest) for _, *rest in seen} == {(0, 2), (1, 2)}
    assert (threading.get_native_id(), 0, 2) in seen


@needs_compiler
def test_a_compiler_that_does_not_exist_is_passed_over_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "g++-0 -m64")
    with pytest.warns(RuntimeWarning, match=r"g\+\+-0, named by the environment variable CXX, does not exist"):
        assert build.find_compiler() in (["g++"], ["clang++"])


def test_zig_is_taken_where_there_is_no_other_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "ziglang")
    assert build.find_compiler() == [sys.executable, "-m", "ziglang", "c++"]


@pytest.mark.skipif(not importlib.util.find_spec("ziglang"), reason="needs a C++ compiler: pip install ziglang")
def test_zig_compiles_what_the_others_do(tmp_path: Path) -> None:
    """Takes two minutes the first time."""
    out, err = finish(start(tmp_path, PATH=str(tmp_path), CXX=""), seconds=600)
    assert Path(out).parent == tmp_path
    assert "compiles its native code with zig" in err
    assert "RuntimeWarning" not in err


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EUGEN_CACHE", str(tmp_path / "a"))
    assert build.cache_folder() == tmp_path / "a"
    monkeypatch.delenv("EUGEN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert build.cache_folder() == tmp_path / "b" / "eugen_nerf"
    monkeypatch.setenv("EUGEN_CACHE", "")
    assert build.cache_folder() == tmp_path / "b" / "eugen_nerf"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # which the XDG specification has ignored
    monkeypatch.setenv("HOME", str(tmp_path))
    assert build.cache_folder() == tmp_path / ".cache" / "eugen_nerf"
    monkeypatch.chdir(tmp_path)
    for named in (".", "~"):  # a library without a folder in its name would be looked for in the system's
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("EUGEN_CACHE", named)
        assert build.cache_folder() == tmp_path

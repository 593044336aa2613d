"""Compilation of the CPU runners' C++ source at first use, with a cache on disk."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import torch

from eugen_nerf.files import new_file_beside

SOURCE = Path(__file__).parent / "src"

# -ffast-math stays off: the code relies on comparisons with NaN being false.
FLAGS = (
    "-O3",
    "-std=c++17",
    "-march=native",
    "-fopenmp-simd",  # for SIMD loops only; threads come from PyTorch's OpenMP library, see src/parallel.h
    "-fno-math-errno",
    "-fno-trapping-math",
    "-shared",
    "-fPIC",
)


class BuildError(Exception):
    """The source could not be compiled or loaded; the message gives the reason in one line."""


def cache_folder() -> Path:
    """Return the folder of compiled code: $EUGEN_CACHE, or else eugen_nerf in the user's cache folder.

    The path is absolute, because the loader searches the system's folders for a library name without a folder.

    Raises:
        BuildError: the user has no home folder.
    """
    try:
        if named := os.environ.get("EUGEN_CACHE"):
            return Path(named).expanduser().absolute()
        named = os.environ.get("XDG_CACHE_HOME", "")
        # The XDG Base Directory Specification has relative paths ignored.
        return (Path(named) if os.path.isabs(named) else Path.home() / ".cache") / "eugen_nerf"
    except RuntimeError as error:  # a container's user without an entry in the user database
        raise BuildError(f"there is no folder for compiled code ({error}); set EUGEN_CACHE to one") from error


def find_compiler() -> list[str]:
    """Return the first of $CXX, g++, clang++ and the zig of the pip package ziglang that exists, as a command prefix.

    A $CXX that does not exist is passed over with a warning.

    Raises:
        BuildError: none of them exists.
    """
    if words := os.environ.get("CXX", "").split():
        if shutil.which(words[0]):
            return words
        message = (
            f"The C++ compiler {words[0]}, named by the environment variable CXX, does not exist; others are tried."
        )
        warnings.warn(message, RuntimeWarning, stacklevel=2)
    for name in ("g++", "clang++"):
        if shutil.which(name):
            return [name]
    if importlib.util.find_spec("ziglang"):
        return [sys.executable, "-m", "ziglang", "c++"]
    raise BuildError("no C++ compiler was found ($CXX, g++, clang++); pip install ziglang installs one")


def _processor() -> str:
    """The processor's properties that -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    wanted = ("model name", "flags", "CPU part", "Features")
    return "\n".join(dict.fromkeys(line for line in lines if line.startswith(wanted)))


def _run(command: list[str], *, check: bool, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a compiler. Its output may quote paths and sources in any encoding."""
    return subprocess.run(command, capture_output=True, text=True, errors="replace", check=check, env=env)


def library_path(compiler: list[str], flags: tuple[str, ...]) -> Path:
    """Return the library's path, which depends on the sources, flags, compiler version and processor.

    Raises:
        BuildError: the compiler does not run.
    """
    try:
        version = _run([*compiler, "--version"], check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise BuildError(f"the C++ compiler {compiler[0]} does not run ({error})") from error
    digest = hashlib.sha256()
    for file in sorted(SOURCE.iterdir()):
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    digest.update("\0".join([*compiler, *flags, version, _processor()]).encode())
    return cache_folder() / f"cpu-{digest.hexdigest()[:24]}.so"


def compile_library(path: Path, compiler: list[str], flags: tuple[str, ...]) -> None:
    """Compile to ``path`` and append the SHA-256 of the library, with which `_load` detects truncated files.

    Other processes can read or write the same path at the same time.

    Raises:
        BuildError: the folder cannot be written, or the compiler fails; the message contains its first error.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = new_file_beside(path)
    except OSError as error:
        message = f"the folder {path.parent} cannot be written ({error.strerror}); set EUGEN_CACHE to another one"
        raise BuildError(message) from error
    environment = dict(os.environ)
    if "ziglang" in compiler:
        # zig compiles the C++ standard library first and caches it in its own folders.
        zig = str(path.parent / "zig")
        environment = {"ZIG_GLOBAL_CACHE_DIR": zig, "ZIG_LOCAL_CACHE_DIR": zig, **environment}
        print("eugen-nerf compiles its native code with zig, once; that takes about two minutes.", file=sys.stderr)
    try:
        command = [*compiler, *flags, str(SOURCE / "cpu.cpp"), "-o", str(temporary)]
        result = _run(command, check=False, env=environment)
        if result.returncode:
            lines = result.stderr.strip().splitlines() or [f"exit status {result.returncode}"]
            first = next((line for line in lines if "error" in line), lines[0])
            raise BuildError(f"{compiler[0]} failed: {first}")
        with temporary.open("ab") as file:  # the loader ignores bytes after the end of a library
            file.write(hashlib.sha256(temporary.read_bytes()).digest())
        os.replace(temporary, path)
    except OSError as error:
        raise BuildError(f"{compiler[0]} could not write {path} ({error.strerror})") from error
    finally:
        temporary.unlink(missing_ok=True)


def share_threads(library: ctypes.CDLL) -> None:
    """Let the compiled code use the threads of the OpenMP library that PyTorch has loaded.

    Raises:
        BuildError: PyTorch was built without OpenMP.
    """
    loaded = ctypes.CDLL(torch._C.__file__)  # also resolves symbols of the libraries that PyTorch is linked with
    try:
        functions = [getattr(loaded, name) for name in ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")]
    except AttributeError as error:
        raise BuildError(f"PyTorch has no OpenMP library ({error})") from error
    library.eugen_use_openmp(*(ctypes.cast(function, ctypes.c_void_p) for function in functions))


@functools.cache
def cpu_library() -> ctypes.CDLL:
    """Return the compiled CPU runners. Extra compiler flags are taken from $EUGEN_CXXFLAGS.

    Raises:
        BuildError: there is no compiler, the cache cannot be written, building or loading failed, or PyTorch has no
            OpenMP library.
    """
    compiler = find_compiler()
    flags = (*FLAGS, *os.environ.get("EUGEN_CXXFLAGS", "").split())
    path = library_path(compiler, flags)
    library = _load(path)
    if library is None:  # missing, damaged, or not readable for this user
        compile_library(path, compiler, flags)
        try:
            library = ctypes.CDLL(str(path))
        except OSError as error:
            raise BuildError(f"the compiled library does not load ({error})") from error
    share_threads(library)
    return library


def _load(path: Path) -> ctypes.CDLL | None:
    """Load a library that `compile_library` wrote; None if it is missing, damaged or does not load.

    The loader maps a file without checking its length, so a truncated file would end the process with SIGBUS.
    """
    try:
        content = path.read_bytes()
        size = len(content) - hashlib.sha256().digest_size
        if size <= 0 or hashlib.sha256(content[:size]).digest() != content[size:]:
            return None
        return ctypes.CDLL(str(path))
    except OSError:
        return None

"""Compilation of CUDA C++ with NVRTC, the runtime compiler in PyTorch's own CUDA wheels. Linux only.

This needs neither nvcc nor a host compiler nor CUDA's headers. It needs no GPU either: code can be compiled for an
architecture that the machine does not have.
"""

from __future__ import annotations

import ctypes
import functools
import glob
import hashlib
import os
import re
import sys
import warnings
from dataclasses import dataclass

import torch

from eugen_nerf.files import replace_file
from eugen_nerf.ops.build import SOURCE, BuildError, cache_folder

TEGRA = (53, 62, 72, 87, 101, 110)  # architectures of Jetson and similar devices; their code runs on no other GPU
OPTIONS = ("--std=c++17", "--device-as-default-execution-space", "--ptxas-options=-v")

# Folders of the library in the pip wheels of CUDA 13, 12 and 11.8, relative to a folder of sys.path.
WHEEL_FOLDERS = ("nvidia/cu13/lib", "nvidia/cuda_nvrtc/lib", "nvidia/cu12/lib")
# Folders of CUDA toolkits that may not be on the linker's search path.
TOOLKITS = (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), sys.prefix, "/usr/local/cuda")
MAJOR_VERSIONS = (13, 12, 11)
DIGEST_SIZE = 32  # bytes of the SHA-256 that ends a cached program


@dataclass(frozen=True)
class Compiled:
    """A compiled program."""

    image: bytes  # machine code (cubin), or PTX that the driver compiles further
    log: str  # the output of ptxas about each kernel

    def resources(self) -> dict[str, tuple[int, int]]:
        """For each kernel: registers per thread, and bytes of spill stores."""
        found: dict[str, tuple[int, int]] = {}
        kernel, spilled = "", 0
        for line in self.log.splitlines():
            if match := re.search(r"entry function '(\w+)'", line):
                kernel, spilled = match[1], 0
            elif match := re.search(r"(\d+) bytes spill stores", line):
                spilled = int(match[1])
            elif (match := re.search(r"Used (\d+) registers", line)) and kernel:
                found[kernel] = int(match[1]), spilled
        return found


class Nvrtc:
    """The NVRTC library at a path, or with a name on the system's search path.

    Raises:
        BuildError: it does not load.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        folder = os.path.dirname(path)
        try:
            # Version 13.0 loads its builtins by name but does not search its own folder for them.
            for builtins in _libraries(folder, "libnvrtc-builtins.so.*") if folder else ():
                ctypes.CDLL(builtins, mode=ctypes.RTLD_GLOBAL)
            self._library = ctypes.CDLL(path)
        except OSError as error:
            raise BuildError(f"NVRTC does not load ({error})") from error
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
        self.version = major.value, minor.value

    def architectures(self) -> list[int]:
        """List the architectures it can compile for, as 10 * major + minor compute capability."""
        count = ctypes.c_int()
        self._library.nvrtcGetNumSupportedArchs(ctypes.byref(count))
        values = (ctypes.c_int * count.value)()
        self._library.nvrtcGetSupportedArchs(values)
        return list(values)

    def target(self, architecture: int) -> tuple[int, bool]:
        """Return the architecture to compile for on a given GPU, and whether to compile to PTX for the driver.

        Machine code runs on its architecture and on later ones of the same generation; machine code for Tegra runs only
        on its own architecture. Generations that are newer than this NVRTC get PTX.

        Raises:
            BuildError: the GPU is older than all architectures that this NVRTC supports.
        """
        known = [a for a in self.architectures() if a <= architecture and (a == architecture or a not in TEGRA)]
        if not known:
            raise BuildError(
                f"NVRTC {self.version[0]}.{self.version[1]} does not know compute capability {architecture / 10}"
            )
        return max(known), max(known) // 10 != architecture // 10

    def compile(
        self, source: str, architecture: int, constants: tuple[str, ...] = (), portable: bool = False
    ) -> Compiled:
        """Compile one of the sources in ops/src.

        Args:
            source: name of the file.
            architecture: 10 * major + minor compute capability.
            constants: preprocessor definitions NAME=VALUE.
            portable: compile to PTX, which also runs on newer generations. Its log does not list registers.

        Raises:
            BuildError: NVRTC rejects the program; the message has its first error.
        """
        files = sources()
        names = sorted(name for name in files if name != source)
        machine = f"{'compute' if portable else 'sm'}_{architecture}"
        options = [f"--gpu-architecture={machine}", *OPTIONS, *(f"-D{constant}" for constant in constants)]
        program = ctypes.c_void_p()
        status = self._library.nvrtcCreateProgram(
            ctypes.byref(program),
            files[source],
            source.encode(),
            len(names),
            (ctypes.c_char_p * len(names))(*(files[name] for name in names)),
            (ctypes.c_char_p * len(names))(*(name.encode() for name in names)),
        )
        if status:
            raise BuildError(f"NVRTC {self.version[0]}.{self.version[1]} cannot load {source} (status {status})")
        try:
            encoded = [option.encode() for option in options]
            status = self._library.nvrtcCompileProgram(
                program, len(encoded), (ctypes.c_char_p * len(encoded))(*encoded)
            )
            log = self._read(program, "ProgramLog").rstrip(b"\0").decode(errors="replace")
            if status:
                lines = log.strip().splitlines() or [f"status {status}"]
                first = next((line for line in lines if "error" in line), lines[0])
                raise BuildError(f"NVRTC {self.version[0]}.{self.version[1]} failed on {source}: {first}")
            return Compiled(self._read(program, "PTX" if portable else "CUBIN"), log)
        finally:
            self._library.nvrtcDestroyProgram(ctypes.byref(program))

    def _read(self, program: ctypes.c_void_p, what: str) -> bytes:
        size = ctypes.c_size_t()
        getattr(self._library, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        getattr(self._library, f"nvrtcGet{what}")(program, buffer)
        return buffer.raw


@functools.cache
def sources() -> dict[str, bytes]:
    """Contents of the CUDA source files and headers, by file name."""
    return {file.name: file.read_bytes() for file in SOURCE.iterdir() if file.suffix in (".cu", ".cuh", ".h")}


def _libraries(folder: str, pattern: str) -> list[str]:
    return [path for path in sorted(glob.glob(os.path.join(glob.escape(folder), pattern))) if ".alt." not in path]


@functools.cache
def find_nvrtc() -> Nvrtc:
    """Return the NVRTC of PyTorch's wheel, or of the system.

    If there are several, the CUDA version that PyTorch was built for is preferred, because a driver that runs PyTorch
    may be too old for the output of a later version.

    Raises:
        BuildError: there is none.
    """
    mine = (torch.version.cuda or "").split(".")[0]
    versions = sorted(map(str, MAJOR_VERSIONS), key=lambda version: version != mine)
    folders = [os.path.join(folder, below) for folder in sys.path for below in WHEEL_FOLDERS]
    folders += [os.path.join(folder, below) for folder in TOOLKITS if folder for below in ("lib64", "lib")]
    for version in versions:
        found = [path for folder in folders for path in _libraries(folder, f"libnvrtc.so.{version}*")]
        # All compilers of CUDA 11 from 11.2 on share one name.
        for path in [*found, f"libnvrtc.so.{'11.2' if version == '11' else version}"]:
            try:
                return Nvrtc(path)
            except BuildError:
                continue
    raise BuildError("NVRTC was found neither in torch's CUDA wheels nor on the system")


def compile_cached(source: str, architecture: int, constants: tuple[str, ...] = (), portable: bool = False) -> Compiled:
    """Call `Nvrtc.compile` and cache the result on disk, if possible. Several processes can do this at the same time.

    Raises:
        BuildError: there is no NVRTC, or it rejects the program.
    """
    compiler = find_nvrtc()
    digest = hashlib.sha256()
    for name, content in sorted(sources().items()):
        digest.update(name.encode() + b"\0" + content + b"\0")
    digest.update(repr((source, architecture, constants, portable, OPTIONS, compiler.version)).encode())
    path = cache_folder() / f"cuda-{digest.hexdigest()[:24]}.cubin"
    log_path = path.with_suffix(".log")
    try:
        content = path.read_bytes()
        if hashlib.sha256(content[:-DIGEST_SIZE]).digest() == content[-DIGEST_SIZE:]:
            return Compiled(content[:-DIGEST_SIZE], log_path.read_text())
    except (OSError, UnicodeDecodeError):
        pass  # missing, or not readable for this user
    compiled = compiler.compile(source, architecture, constants, portable)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # The program is written last, so that it never exists without its log.
        checked = compiled.image + hashlib.sha256(compiled.image).digest()
        for target, content in ((log_path, compiled.log.encode()), (path, checked)):
            replace_file(target, content)
    except OSError as error:
        warnings.warn(
            f"eugen-nerf cannot keep its compiled kernels in {path.parent} ({error.strerror}) and compiles them in "
            "every process; set EUGEN_CACHE to another folder.",
            RuntimeWarning,
            stacklevel=2,
        )
    return compiled

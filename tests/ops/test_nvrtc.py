"""Compilation of CUDA kernels without a GPU: every architecture, no spills, caching and error messages."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path

import pytest
from kernel_resources import Program, compile_programs, default_programs

from eugen_nerf.ops import nvrtc
from eugen_nerf.ops.build import BuildError
from eugen_nerf.ops.tiles import SHARED_MEMORY, plan


def missing() -> str | None:
    try:
        compiler = nvrtc.find_nvrtc()
    except BuildError as error:
        return str(error)
    absent = set(SHARED_MEMORY) - set(compiler.architectures())
    return f"NVRTC {compiler.version} does not know {sorted(absent)}" if absent else None


needs_nvrtc = pytest.mark.skipif(missing() is not None, reason=str(missing()))


@needs_nvrtc
def test_default_kernels_compile_for_every_architecture_without_spills() -> None:
    programs = [program for architecture in SHARED_MEMORY for program in default_programs(architecture)]
    for program, compiled in zip(programs, compile_programs(programs), strict=True):
        resources = compiled.resources()
        assert compiled.image.startswith(b"\x7fELF")
        assert resources
        for kernel, (registers, spilled) in resources.items():
            assert 0 < registers <= 255
            # On Turing, ptxas limits some kernels of MLPs to 128 registers, a few less than they need.
            most = 0 if program.architecture >= 80 else 32
            assert spilled <= most, f"{program.label}, sm_{program.architecture}, {kernel}"
        for kernel, shared in program.shared:
            assert kernel in resources
            assert shared <= SHARED_MEMORY[program.architecture]


@needs_nvrtc
@pytest.mark.parametrize(
    "spec",
    [
        (2, 31, 32, 2, 0, 1, 0, 1, 64, 32, 2, 0, 1, 1, 0, 3, 1, 31),  # order 2, norm
        (2, 32, 128, 1, 0, 1, 1, 0, 128, 128, 1, 0, 1, 1, 0, 16, 1, 32),  # 128 wide
    ],
    ids=["order-2", "width-128"],
)
def test_other_networks_do_not_spill_from_ampere_on(spec: tuple[int, ...]) -> None:
    from eugen_nerf.ops import cuda

    programs = []
    for architecture in (80, 86, 90):
        tiles = plan(spec, SHARED_MEMORY[architecture])
        assert tiles is not None
        programs.append(Program("", "network.cu", cuda.network_constants(spec, tiles, False), architecture))
    for compiled in compile_programs(programs):
        assert all(spilled == 0 for _, spilled in compiled.resources().values())


@needs_nvrtc
def test_bfloat16_and_half_rows_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    from eugen_nerf.ops import cuda

    spec = (1, 7, 12, 1, 0, 1, 1, 1, 3, 1, 7)
    tiles = plan(spec, SHARED_MEMORY[80])
    assert tiles is not None
    for precision, half_rows in (("bf16", False), ("bf16", True), ("fp16", True)):
        monkeypatch.setenv("EUGEN_PRECISION", precision)
        for architecture in (80, 90):
            nvrtc.find_nvrtc().compile("network.cu", architecture, cuda.network_constants(spec, tiles, half_rows))
    with pytest.raises(BuildError, match="bfloat16 needs compute capability"):
        nvrtc.find_nvrtc().compile("network.cu", 75, ("EUGEN_BF16=1",))


@needs_nvrtc
def test_old_compilers_are_asked_for_nothing_that_they_do_not_know() -> None:
    from eugen_nerf.ops import cuda

    spec = (1, 7, 12, 1, 0, 1, 1, 1, 3, 1, 7)
    tiles = plan(spec, SHARED_MEMORY[80])
    assert tiles is not None
    for source, constants in (
        ("network.cu", cuda.network_constants(spec, tiles, False)),
        ("grid.cu", cuda.grid_constants(2, False)),
    ):
        for architecture in (80, 90):
            texts = [
                nvrtc.find_nvrtc().compile(source, architecture, (*constants, f"EUGEN_OLD_PTX={old}"), portable=True)
                for old in (0, 1)
            ]
            unknown = [b"satfinite" in text.image or b"red.global.add.v2" in text.image for text in texts]
            assert unknown == [source == "network.cu" or architecture == 90, False]


@needs_nvrtc
def test_a_program_that_does_not_compile_is_named_with_its_first_error() -> None:
    with pytest.raises(BuildError, match=r"NVRTC 1\d\.\d+ failed on grid.cu: .*error.*EUGEN_FEATURES"):
        nvrtc.find_nvrtc().compile("grid.cu", 80)


def _compile(folder: str) -> None:
    import os

    os.environ["EUGEN_CACHE"] = folder
    nvrtc.compile_cached("adam.cu", 80)


@needs_nvrtc
def test_programs_are_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_compile, args=(str(tmp_path),)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert sorted(file.suffix for file in tmp_path.iterdir()) == [".cubin", ".log"]

    def fail(*_: object) -> None:
        raise AssertionError("compiled again")

    monkeypatch.setenv("EUGEN_CACHE", str(tmp_path))
    monkeypatch.setattr(nvrtc.Nvrtc, "compile", fail)
    assert nvrtc.compile_cached("adam.cu", 80).resources()["masked_adam"][0] > 0
    with pytest.raises(AssertionError, match="again"):
        nvrtc.compile_cached("adam.cu", 90)
    with pytest.raises(AssertionError, match="again"):
        nvrtc.compile_cached("adam.cu", 80, ("A=1",))


@needs_nvrtc
def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("EUGEN_CACHE", str(blocked / "cache"))
    with pytest.warns(RuntimeWarning, match="cannot keep its compiled kernels in .*file/cache .*EUGEN_CACHE"):
        compiled = nvrtc.compile_cached("adam.cu", 80)
    assert compiled.resources()["masked_adam"][0] > 0


@needs_nvrtc
@pytest.mark.parametrize(
    "damage", [lambda content: b"", lambda content: content[:-1], lambda content: b"x" + content[1:]]
)
def test_damaged_programs_are_compiled_anew(
    damage: Callable[[bytes], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EUGEN_CACHE", str(tmp_path))
    compiled = nvrtc.compile_cached("adam.cu", 80)
    (file,) = tmp_path.glob("*.cubin")
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert nvrtc.compile_cached("adam.cu", 80).image == compiled.image
    assert file.read_bytes() == whole


def test_without_nvrtc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvrtc.sys, "path", [])
    monkeypatch.setattr(nvrtc, "MAJOR_VERSIONS", (99,))
    nvrtc.find_nvrtc.cache_clear()
    try:
        with pytest.raises(BuildError, match="found neither"):
            nvrtc.find_nvrtc()
    finally:
        nvrtc.find_nvrtc.cache_clear()


def test_resources_are_read_from_the_log() -> None:
    log = """ptxas info    : Compiling entry function 'one' for 'sm_80'
ptxas info    : Function properties for one
    0 bytes stack frame, 12 bytes spill stores, 16 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers
ptxas info    : Compiling entry function 'two' for 'sm_80'
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 9 registers
"""
    assert nvrtc.Compiled(b"", log).resources() == {"one": (40, 12), "two": (9, 0)}


@needs_nvrtc
def test_a_gpu_between_two_architectures_runs_the_older_ones_code(monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = nvrtc.find_nvrtc()
    monkeypatch.setattr(compiler, "architectures", lambda: [75, 80, 86, 90])
    assert [compiler.target(gpu) for gpu in (75, 80, 86, 89, 90)] == [(n, False) for n in (75, 80, 86, 86, 90)]
    assert compiler.target(120) == (90, True)
    monkeypatch.setattr(compiler, "architectures", lambda: [75, 80, 86, 87, 90, 100, 101, 120])  # two of Tegra
    assert [compiler.target(gpu) for gpu in (87, 88, 89, 101, 103)] == [(n, False) for n in (87, 86, 86, 101, 100)]
    monkeypatch.setattr(compiler, "architectures", lambda: [75, 80, 86, 90])
    with pytest.raises(BuildError, match=r"does not know compute capability 7\.0"):
        compiler.target(70)


@needs_nvrtc
def test_ptx_for_gpus_to_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EUGEN_CACHE", str(tmp_path))
    compiled = nvrtc.compile_cached("rays.cu", 90, portable=True)
    assert b".target sm_90" in compiled.image
    assert compiled.image.endswith(b"\0")  # the driver expects a null-terminated string
    assert nvrtc.compile_cached("rays.cu", 90, portable=True) == compiled


def test_torchs_own_cuda_version_is_preferred(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment may contain several compiler versions, and the driver may only support PyTorch's."""
    for folder, version in (("cu13/lib", 13), ("cuda_nvrtc/lib", 12), ("cuda_nvrtc/lib", 11.2)):
        (tmp_path / "nvidia" / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / "nvidia" / folder / f"libnvrtc.so.{version}").touch()
    tried: list[str] = []

    def load(path: str) -> object:
        tried.append(path)
        return object()

    monkeypatch.setattr(nvrtc.sys, "path", [str(tmp_path)])
    monkeypatch.setattr(nvrtc, "Nvrtc", load)
    for cuda, version in (("11.8", "11.2"), ("12.6", "12"), ("13.0", "13"), (None, "13")):
        monkeypatch.setattr(nvrtc.torch.version, "cuda", cuda)
        nvrtc.find_nvrtc.cache_clear()
        nvrtc.find_nvrtc()
        assert Path(tried[-1]).name == f"libnvrtc.so.{version}"
    nvrtc.find_nvrtc.cache_clear()


def test_a_library_that_does_not_load_is_no_nvrtc(tmp_path: Path) -> None:
    for name in ("libnvrtc.so.13", "libnvrtc-builtins.so.13.0"):
        (tmp_path / name).write_text("no library")
    with pytest.raises(BuildError, match=r"NVRTC does not load .*libnvrtc-builtins"):
        nvrtc.Nvrtc(str(tmp_path / "libnvrtc.so.13"))

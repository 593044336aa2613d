"""Measure the CUDA kernels against PyTorch, tiny-cuda-nn and the limits of the GPU, in at most 8 minutes.

    python benchmarks/gpu.py [--scene DIR] [--iterations 5000] [--batch 1048576] [--minutes 8] [--markdown FILE]
                             [--only SECTION ...]

Times are CUDA events: the median of 50 interleaved runs after a warm-up. Each run has cold caches and is queued while
the GPU is still busy, so CPU time is excluded. Rows where that failed say "CPU-bound"; those of march and
select_visible, which wait for the GPU, always do. "Rays to gradients" includes all CPU time. Frames follow one another
as fast as CPU and GPU allow; "one at a time" waits for each frame, as a viewer does. "Against the machine" compares
with matrix products and copies measured in the same run.

tiny-cuda-nn is left out if it cannot be imported. Its PyTorch modules take float32 rows and return fp16, so its times
are compared with ours for fp16 rows, which move less data, and for float32 rows, which move more. It runs with and
without JIT fusion, and the faster variant is compared.

``--scene`` (a Blender scene, e.g. lego at 400 x 400) adds training with ns-train's own loop, PSNR, and frames per
second at the size of the scene and at twice that size. It needs nerfstudio; this package need not be installed. The
methods differ in rays per step, so both steps and rays are compared.

``--only tiles`` compares the ways in which the kernels of networks can divide their work: how many warps a block has,
how many rows a warp carries, where weights and sums are kept.

Each section runs in its own process, for at most its share of the time. A process that hangs is killed; after a crash
the section continues with the next measurement. Kernels that the self-check rejects are not launched. Every row is
printed, and the file rewritten, as soon as it is measured. A failure affects its own row only, and makes the exit code
1.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from gpu_processes import DONE, Gpu, Line, Lost, Row, Task, lines_of, teller
from printing import markdown_table, print_table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout without installation

HEADS = ("what", "who", "ms", "time against ours", "against the machine")
START = "start"  # runs before all others: which GPU it is, and whether the kernels can be trusted on it
# Shares of the remaining time, relative to the shares of all measured later sections. The most important come first.
SHARES = {
    "networks": 4,
    "hash-grid": 2,
    "rays": 2,
    "training": 10,
    "nerfacto": 4,
    "training-mlp": 4,
    "torch.compile": 3,
    "tiles": 3,
}
ON_REQUEST = ("tiles",)  # measured only if named
# These launch our kernels regardless of the self-check.
LAUNCHING = ("networks", "hash-grid", "rays", "torch.compile", "tiles")
WITH_SCENE = ("training", "nerfacto", "training-mlp")
START_SHARE = 1 / 3  # of the total time; a self-check that hangs would take five minutes
RESERVE = 10  # seconds to finish
TOO_LITTLE = 10  # seconds; no process gets anything done in less
PROGRAM = (sys.executable, __file__)


@dataclass
class Report:
    """Measures sections and collects their rows."""

    task: Task  # common to all sections, with what is known so far
    markdown: Path | None
    rows: list[Row] = field(default_factory=list)
    problem: str | None = None  # why the kernels are not in use
    begun: float = field(default_factory=time.monotonic)

    def start(self, seconds: float) -> None:
        """Run the start section, which describes the GPU.

        Raises:
            SystemExit: PyTorch sees none.
        """
        self.problem = "the self-check has not come to its end"
        self.measure(START, seconds)
        if self.problem:
            self.put(("self-check", "", "", "", f"failed: kernels not in use: {self.problem}"))

    def sections(self, sections: list[str], deadline: float) -> None:
        """Measure sections one after another; unused time goes to the later ones."""
        if self.problem:
            for section in filter(LAUNCHING.__contains__, sections):
                self.put(
                    (section, "", "", "", "failed: the self-check refuses its kernels; EUGEN_CUDA_CHECK=0 runs them")
                )
            sections = [section for section in sections if section not in LAUNCHING]
        for number, section in enumerate(sections):
            share = SHARES[section] / sum(SHARES[s] for s in sections[number:])
            self.measure(section, share * (deadline - time.monotonic()))

    def measure(self, section: str, seconds: float) -> None:
        """Measure a section. A measurement that its process does not finish gets a row with the reason."""
        until = time.monotonic() + seconds
        first, pieces = 0, 1
        while first < pieces:
            if time.monotonic() + TOO_LITTLE > until:
                self.put((section, "", "", "", "failed: no time is left for it"))
                return
            doing, next_one = "starting", pieces
            try:
                for line in in_a_process(replace(self.task, section=section, until=until, first=first), self.problem):
                    doing = line.get("doing", doing)
                    if "piece" in line:
                        next_one, pieces = line["piece"] + 1, line["pieces"]
                    self.learn(line)
                    if line.get("end") == DONE:
                        return
            except Lost as error:
                self.put((f"{section}, {doing}", "", "", "", f"failed: {error}"))
            first = next_one  # a new process continues after the piece that this one did not survive

    def learn(self, line: Line) -> None:
        if "row" in line:
            self.put(tuple(line["row"]))
        if "gpu" in line:
            if line["gpu"] is None:
                raise SystemExit("benchmarks/gpu.py needs an NVIDIA GPU, and PyTorch sees none here.")
            self.task = replace(self.task, gpu=Gpu(**line["gpu"]))
        if "problem" in line:
            self.problem = line["problem"]
        if "tcnn" in line:
            self.task = replace(self.task, tcnn=line["tcnn"])
        if "speed" in line:
            self.task = replace(self.task, speeds={**self.task.speeds, **line["speed"]})

    def put(self, row: Row) -> None:
        print(" | ".join(row), flush=True)
        self.rows.append(row)
        if self.markdown:
            self.markdown.parent.mkdir(parents=True, exist_ok=True)
            self.markdown.write_text("\n".join([self.title(), "", *markdown_table(HEADS, self.rows)]) + "\n")

    def title(self) -> str:
        gpu = self.task.gpu
        kernels = f"; KERNELS NOT IN USE: {self.problem}" if self.problem else ""
        return (
            f"{gpu.name}, torch {gpu.torch}, {datetime.date.today()}; batch {self.task.batch}; "
            f"{gpu.tflops:.0f} TFLOP/s and {gpu.tbytes:.2f} TB/s measured; "
            f"{time.monotonic() - self.begun:.0f} s{kernels}"
        )


def in_a_process(task: Task, problem: str | None) -> Iterator[Line]:
    """Run a section in its own process and yield the lines that it reports.

    Args:
        problem: why the kernels are not in use, or None.

    Raises:
        Lost: the process does not finish.
    """
    environment = dict(os.environ)
    if task.section != START:  # the self-check has been answered
        environment.update({"EUGEN_BACKEND": "reference"} if problem else {"EUGEN_CUDA_CHECK": "0"})
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "lines"
        command = [*PROGRAM, "--task", str(file), task.to_json()]
        yield from lines_of(command, file, task.until - time.monotonic(), environment)


def scene_folder(name: Path) -> Path:
    """Find a scene by its path, or by its name in $EUGEN_DATA."""
    for folder in (name, Path(os.environ.get("EUGEN_DATA", ".")) / name):
        if folder.is_dir():
            return folder.absolute()
    raise SystemExit(f"{name}: there is no such scene, here or in EUGEN_DATA.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scene", type=Path, help="also train and render this scene")
    parser.add_argument("--iterations", type=int, default=5000, help="iterations of each training")
    parser.add_argument("--batch", type=int, default=1 << 20, help="rows and positions per run")
    parser.add_argument("--minutes", type=float, default=8, help="time limit of the whole benchmark")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=SHARES,
        default=[section for section in SHARES if section not in ON_REQUEST],
        metavar="SECTION",
        help=f"of {', '.join(SHARES)}",
    )
    parser.add_argument("--markdown", type=Path, help="write the table to this file too")
    parser.add_argument("--task", nargs=2, help=argparse.SUPPRESS)  # used by `in_a_process`
    arguments = parser.parse_args()
    if arguments.task:
        from gpu_sections import work

        work(Task.from_json(arguments.task[1]), teller(Path(arguments.task[0])))
        return

    signal.signal(signal.SIGTERM, lambda *_: sys.exit("Stopped."))  # the running process ends with us
    scene = scene_folder(arguments.scene) if arguments.scene else None
    if scene and importlib.util.find_spec("nerfstudio") is None:
        raise SystemExit("--scene needs nerfstudio, which is not installed here; leave it out, or install nerfstudio.")
    with tempfile.TemporaryDirectory() as folder:
        task = Task(START, 0, arguments.batch, arguments.iterations, str(scene) if scene else None, folder)
        report = Report(task, arguments.markdown)
        deadline = report.begun + 60 * arguments.minutes - RESERVE
        report.start(60 * arguments.minutes * START_SHARE)
        report.sections([s for s in SHARES if s in arguments.only and (scene or s not in WITH_SCENE)], deadline)
    print_table(report.title(), HEADS, report.rows, None)
    if any(row[-1].startswith("failed") for row in report.rows):
        raise SystemExit("Not everything could be measured; rows whose last column begins with 'failed' say why.")


if __name__ == "__main__":
    main()

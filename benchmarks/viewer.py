"""Frame times of an exported page's two networks in a headless Chromium, in turns, and the work of their shaders.

    eugen-export web --load-config EUGEN/config.yml --compare MLP/config.yml --output PAGE
    python benchmarks/viewer.py PAGE

Headless Chromium draws with SwiftShader, on the processor: the ratio is what counts, and holds for such rendering.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from printing import markdown_table
from rich.console import Console

from eugen_nerf.bench.machine import describe_machine
from eugen_nerf.bench.notes import machine_line
from eugen_nerf.bench.statistics import middle, paired_ratio
from eugen_nerf.cli_support import exit_on_user_error
from eugen_nerf.export.server import check_export, make_server, url
from tests.viewer.chromium import running_chromium


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path, help="folder that eugen-export web --compare wrote")
    parser.add_argument("--size", type=int, default=128, help="side of the pictures")
    parser.add_argument("--turns", type=int, default=5, help="pictures of each network that are timed")
    options = parser.parse_args()
    with exit_on_user_error(Console()):
        check_export(options.page)
    with (
        make_server(options.page, "127.0.0.1", 0) as server,
        tempfile.TemporaryDirectory() as profile,
        running_chromium(Path(profile)) as page,
    ):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page.size(16, 16)
        page.open(url(server))
        names = page.evaluate("eugenViewer.then(viewer => viewer.scene.fields.map(field => field.name))", timeout=300)
        what = f"{{view: 0, width: {options.size}, height: {options.size}, turns: {options.turns}}}"
        measured = page.evaluate(f"eugenViewer.then(viewer => viewer.measure({what}))", timeout=600)
        work = [page.evaluate(f"eugenViewer.then(viewer => viewer.work({n}))") for n in range(len(names))]
        server.shutdown()
    rows = []
    for name, times, each in zip(names, measured, work, strict=True):
        frame, ratio = middle(times["frames"]).value, paired_ratio(times["frames"], measured[0]["frames"])
        rows.append([name, f"{each['multiplyAdds']:,}", str(each["tableFetches"]), f"{frame:.0f}", str(ratio)])
    heads = ("network", "multiply-adds a sample", "texture fetches a sample", "ms", "time against the first")
    print("\n".join(markdown_table(heads, rows)))
    print(machine_line(describe_machine(f"python benchmarks/viewer.py PAGE --size {options.size}")))


if __name__ == "__main__":
    main()

"""The HTML of a report: one file without scripts or other resources."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

from PIL import Image

from eugen_nerf.bench import plots
from eugen_nerf.bench.config import Benchmark
from eugen_nerf.bench.jobs import TrainingJob
from eugen_nerf.bench.notes import conditions, describe_machines, missing_scenes, notes, without_mean
from eugen_nerf.bench.pictures import error_map, open_picture, outlined, telling_crop
from eugen_nerf.bench.results import training_job
from eugen_nerf.bench.statistics import pareto_front
from eugen_nerf.bench.summary import MethodSummary, Rows, SceneSummary, mean_over_scenes
from eugen_nerf.bench.tables import Table, format_seconds, method_tables

NEAR = 3.0  # dB
LARGEST_SIDE = 640  # limit for whole images; crops keep their pixels

STYLE = """
:root { --ink: #1b1f24; --paper: #ffffff; --soft: #5b6570; --line: #d9dee3; --band: #f4f6f8; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ec; --paper: #15181c; --soft: #9aa4ae; --line: #343a41; --band: #1d2126; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 1400px; color: var(--ink); background: var(--paper);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: .3rem 0 .6rem; }
h2 { font-size: 1.25rem; margin: 2.2rem 0 .6rem; padding-top: .8rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
p, li { max-width: 75ch; }
code { font-size: .85em; }
.soft { color: var(--soft); font-size: .9rem; }
.failed { color: #c0392b; }
.scroll { overflow-x: auto; overflow-wrap: normal; border: 1px solid var(--line); border-radius: 6px; margin: .6rem 0; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; width: 100%; }
th, td { padding: .45rem .5rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
thead th { vertical-align: bottom; white-space: normal; font-weight: 600; background: var(--band); }
tbody tr:last-child > * { border-bottom: 0; }
th:first-child { text-align: left; position: sticky; left: 0; background: var(--band); }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 320px), 1fr));
  gap: 1rem; margin-top: 1rem; }
figure { margin: 0; }
figcaption { font-size: .85rem; color: var(--soft); text-align: center; }
svg { width: 100%; height: auto; display: block; max-width: 560px; margin: 0 auto; }
svg text { font: 12px system-ui, sans-serif; fill: var(--soft); }
svg .grid { stroke: var(--line); fill: none; }
svg .front { stroke: var(--soft); fill: none; stroke-dasharray: 4 3; }
.legend { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; margin: .8rem 0 0; padding: 0; list-style: none; }
.legend svg { display: inline-block; width: 16px; height: 16px; margin: 0 .4rem -2px 0; }
.views { display: flex; gap: .6rem; overflow-x: auto; padding-bottom: .4rem; }
.views > figure { flex: 1 0 150px; max-width: 320px; }
.views > figure:first-child { position: sticky; left: 0; z-index: 1; background: var(--paper);
  box-shadow: .6rem 0 0 var(--paper); }
.views img { width: 100%; display: block; margin-bottom: .3rem; border: 1px solid var(--line);
  image-rendering: pixelated; }
"""


def render(benchmark: Benchmark, scenes: Sequence[SceneSummary], rows: Rows, pictures: Path) -> str:
    """Render the page.

    Args:
        rows: the records of the scenes.
        pictures: folder of the rendered test views.
    """
    styles = {method.name: number for number, method in enumerate(benchmark.methods)}
    sentences = [*conditions(benchmark), *missing_scenes(benchmark, scenes)]
    body = [f"<h1>{escape(benchmark.title)}</h1>", f"<p>{escape(' '.join(sentences))}</p>"]
    body += [f'<p class="soft">Measured {_code(line)}</p>' for line in describe_machines(scenes)]
    body += [f'<p class="failed">Frame times failed: {escape(message)}</p>' for message in rows.failed_frames]
    if len(scenes) > 1:
        means = mean_over_scenes(scenes)
        body.append(f"<h2>Mean of {len(scenes)} scenes</h2>")
        body += [f'<p class="soft">{escape(sentence)}</p>' for sentence in without_mean(benchmark, means)]
        body += [_tables(means), _plots(means, styles)] if means else []
    for scene in scenes:
        body.append(f"<h2>{escape(scene.name)}</h2>")
        body += [_tables(scene.methods), _failures(scene), _plots(scene.methods, styles)]
        body.append(_views(benchmark, scene, rows, pictures))
    body.append("<h2>How to read it</h2><ul>")
    body += [f"<li>{escape(note)}</li>" for note in notes(benchmark, scenes)]
    body.append("</ul>")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(benchmark.title)}</title><style>{STYLE}</style></head><body>\n"
        + "\n".join(part for part in body if part)
        + "\n</body></html>\n"
    )


def _code(text: str) -> str:
    """Escape text; text between backticks is code."""
    parts = escape(text).split("`")
    return "".join(f"<code>{part}</code>" if i % 2 else part for i, part in enumerate(parts))


def _tables(methods: Sequence[MethodSummary]) -> str:
    return "".join(_table(table) for table in method_tables(methods))


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in table.columns)
    lines = []
    for name, *cells in table.rows:
        lines.append(f'<tr><th scope="row">{escape(name)}</th>{"".join(f"<td>{escape(c)}</td>" for c in cells)}</tr>')
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def _failures(scene: SceneSummary) -> str:
    failed = [(method.name, message) for method in scene.methods for message in method.failures]
    return "".join(f'<p class="failed">{escape(name)} failed: {escape(message)}</p>' for name, message in failed)


def _plots(methods: Sequence[MethodSummary], styles: dict[str, int]) -> str:
    charts = _charts(methods, styles)
    if not charts:
        return ""
    legend = "".join(f"<li>{_sign(styles[method.name])}{escape(method.name)}</li>" for method in methods)
    html = f'<ul class="legend">{legend}</ul><div class="plots">{charts}</div>'
    near = near_the_best(methods)
    if near:
        names = ", ".join(method.name for method in near)
        html += f'<p class="soft">Closer, those within {NEAR:g} dB of the best: {escape(names)}.</p>'
        html += f'<div class="plots">{_charts(near, styles)}</div>'
    return html


def near_the_best(methods: Sequence[MethodSummary]) -> list[MethodSummary]:
    """Methods whose points would overlap in a chart of all; empty if such a chart is enough."""
    rated = [(psnr, method) for method in methods if (psnr := method.values["psnr"]) is not None]
    best = max((psnr for psnr, _ in rated), default=0.0)
    near = [method for psnr, method in rated if psnr >= best - NEAR]
    return near if 1 < len(near) < len(rated) else []


def _charts(methods: Sequence[MethodSummary], styles: dict[str, int]) -> str:
    figures = []
    by_time, by_work = [], []
    for method in methods:
        psnr, work = method.values["psnr"], method.values["multiply_adds_per_sample"]
        if psnr is not None and method.frame:
            span = (method.frame.low, method.frame.high)
            by_time.append(plots.Point(method.name, method.frame.value, psnr, styles[method.name], span))
        if psnr is not None and work:
            by_work.append(plots.Point(method.name, work, psnr, styles[method.name]))
    if by_time:
        figures.append(_scatter(by_time, "time per frame", format_seconds))
    lines = [plots.Line(m.name, curve, styles[m.name]) for m in methods for curve in m.curves if curve]
    lines = [line for line in lines if min(time for time, _ in line.points) > 0]
    if lines:
        figures.append(plots.line_plot(lines, "training time", format_seconds))
    if by_work:
        figures.append(_scatter(by_work, "multiply-adds per sample", lambda value: f"{value:,.0f}"))
    return "".join(f"<figure>{figure}</figure>" for figure in figures)


def _sign(style: int) -> str:
    return f'<svg viewBox="0 0 16 16" aria-hidden="true">{plots.marker(style, 8, 8)}</svg>'


def _scatter(points: Sequence[plots.Point], label: str, text: Callable[[float], str]) -> str:
    front = pareto_front([(point.x, point.y) for point in points])
    return plots.scatter(points, front, label, text)


def _views(benchmark: Benchmark, scene: SceneSummary, rows: Rows, pictures: Path) -> str:
    """Test views of the first seed: ground truth and methods, whole and cropped, with error maps."""
    shown = []
    for method in benchmark.methods:
        record = rows.trainings.get((scene.name, method.name, benchmark.seeds[0]))
        if record is not None and record.result.status == "done":
            folder = _pictures_of(training_job(record), pictures)
            shown.append((method.name, folder, record.result.values["pictures"]))
    if not shown:
        return ""
    parts = []
    for view in [view for view in shown[0][2] if all(view in views for _, _, views in shown)]:
        try:
            truth = open_picture(shown[0][1] / f"{view:04d}-truth.png")
            renders = [(name, open_picture(folder / f"{view:04d}.png")) for name, folder, _ in shown]
        except OSError:
            continue  # the numbers are complete without the images
        if any(image.size != truth.size for _, image in renders):
            continue  # a note says so
        crop = telling_crop([image for _, image in renders], truth)
        figures = [_figure("Truth", [("whole", outlined(truth, crop)), ("crop", truth.crop(crop))])]
        for name, image in renders:
            error = error_map(image, truth)
            whole = outlined(image, crop)
            figures.append(_figure(name, [("whole", whole), ("crop", image.crop(crop)), ("error", error)]))
        parts.append(f'<h3>Test view {view}</h3><div class="views">{"".join(figures)}</div>')
    if not parts:
        return ""
    return "".join(parts) + (
        '<p class="soft">From top to bottom: the image, its framed square, in which the methods err most, enlarged, '
        "and the absolute error (white: none; dark red: 20 % of the range or more).</p>"
    )


def _pictures_of(job: TrainingJob, pictures: Path) -> Path:
    own = pictures / job.folder
    return own if own.is_dir() else pictures / job.slug  # of an older training, without the mark in the name


def _figure(name: str, images: Sequence[tuple[str, Image.Image]]) -> str:
    tags = "".join(f'<img alt="{escape(name)}, {kind}" src="{_data_url(image)}">' for kind, image in images)
    return f"<figure><figcaption>{escape(name)}</figcaption>{tags}</figure>"


def _data_url(image: Image.Image) -> str:
    if max(image.size) > LARGEST_SIDE:
        image = image.copy()
        image.thumbnail((LARGEST_SIDE, LARGEST_SIDE), Image.Resampling.BOX)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", lossless=True, method=6)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()

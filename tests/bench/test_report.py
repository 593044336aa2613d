"""report.html, results.md, publishing, and tables inside a README."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from PIL import Image

from eugen_nerf.bench import plots
from eugen_nerf.bench.config import SceneEntry
from eugen_nerf.bench.folder import prepare_folder, read_benchmark
from eugen_nerf.bench.jobs import Result, training_jobs, write_json
from eugen_nerf.bench.page import near_the_best
from eugen_nerf.bench.pictures import open_picture
from eugen_nerf.bench.plots import Line, Point, line_plot, linear_axis, log_axis, scatter
from eugen_nerf.bench.readme import BEGIN, END, update_readme
from eugen_nerf.bench.report import publish, write_report
from eugen_nerf.bench.results import ResultStore
from eugen_nerf.bench.summary import AVERAGED, MethodSummary
from eugen_nerf.bench.tables import format_seconds
from eugen_nerf.errors import UserError


class Outline(HTMLParser):
    """Collects tags with their attributes, and checks that every opened tag is closed."""

    VOID = ("meta", "img", "circle", "path", "polygon", "br")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


@pytest.fixture
def html(finished: Any) -> str:
    return write_report(finished[1].folder).read_text("utf8")


def test_the_page_is_well_formed_and_stands_alone(html: str) -> None:
    outline = Outline()
    outline.feed(html)
    assert outline.open == []
    sources = [attributes["src"] for tag, attributes in outline.tags if tag == "img"]
    assert sources
    assert all(source is not None and source.startswith("data:image/webp;base64,") for source in sources)
    assert not [tag for tag, _ in outline.tags if tag in ("script", "link", "iframe")]
    assert "url(" not in html
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in outline.tags


def test_the_page_shows_everything(html: str) -> None:
    assert "<title>Small</title>" in html
    assert html.count('<svg viewBox="0 0 420 300"') == 3  # Pareto by time, curve, Pareto by work
    assert "Broken failed: Field option num_levels must be at least 1, not 0." in html
    # Truth: image and crop; two methods: image, crop and error map.
    assert html.count("<img ") == 2 + 2 * 3
    assert "How to read it" in html
    assert "LPIPS is left out" in html
    assert "Frames of few views were timed with EUGen; MLP:" in html


def test_methods_near_the_best_are_shown_closer_where_one_is_far_off() -> None:
    def method(name: str, psnr: float | None) -> MethodSummary:
        return MethodSummary(name, False, {**dict.fromkeys(AVERAGED), "psnr": psnr})

    good, better, poor, failed = method("a", 30.0), method("b", 32.0), method("c", 11.0), method("d", None)
    assert near_the_best([good, better, poor, failed]) == [good, better]
    assert near_the_best([good, better]) == []
    assert near_the_best([better, poor]) == []
    assert near_the_best([failed]) == []


def test_charts_are_valid_svg(html: str) -> None:
    charts = re.findall(r'<svg viewBox="0 0 420 300".*?</svg>', html)
    assert charts
    for chart in charts:
        ElementTree.fromstring(chart)


def test_markdown(finished: Any) -> None:
    folder = finished[1].folder
    write_report(folder)
    text = (folder / "results.md").read_text("utf8")
    assert text.startswith("# Small\n\nEvery method was trained for 12 iterations, 2 seeds each.\n")
    assert re.search(r"^\| EUGen \| \d+\.\d\d ± \d+\.\d\d \| 0\.\d{4} \|", text, re.MULTILINE)
    assert "| Broken | failed |" in text
    assert "Measured 20" in text
    assert str(folder) not in text


def test_a_folder_without_results_is_refused(finished: Any, tmp_path: Path) -> None:
    prepare_folder(tmp_path / "new", finished[0])
    with pytest.raises(UserError, match="holds no results yet"):
        write_report(tmp_path / "new")
    with pytest.raises(UserError, match="holds no benchmark"):
        write_report(tmp_path)


def test_published_results_name_no_path_of_the_machine(finished: Any, tmp_path: Path) -> None:
    folder = finished[1].folder
    write_report(folder)
    publish(folder, tmp_path / "results")
    names = sorted(path.name for path in (tmp_path / "results").iterdir())
    assert names == ["benchmark.json", "report.html", "results.jsonl", "results.md"]
    for name in names:
        assert str(folder) not in (tmp_path / "results" / name).read_text("utf8")
        assert finished[0].scenes[0].path not in (tmp_path / "results" / name).read_text("utf8")


def test_results_are_not_published_onto_themselves(finished: Any) -> None:
    folder = finished[1].folder
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    with pytest.raises(UserError, match="is the folder of the results itself"):
        publish(folder, folder / "." / "jobs" / "..")
    assert {path: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


def test_an_earlier_publication_of_the_same_benchmark_is_replaced(finished: Any, tmp_path: Path) -> None:
    """The title identifies the benchmark; the measured methods and scenes may have changed."""
    folder, results = finished[1].folder, tmp_path / "results"
    write_report(folder)
    publish(folder, results)
    (results / "results.md").write_text("old")
    old = read_benchmark(results)
    write_json(results / "benchmark.json", dataclasses.asdict(dataclasses.replace(old, seeds=(5,))))
    publish(folder, results)
    assert read_benchmark(results).seeds == (0, 1)
    assert (results / "results.md").read_text("utf8").startswith("# Small")


def _another_benchmark(folder: Path, finished: Any) -> None:
    publish(finished[1].folder, folder)
    other = dataclasses.replace(read_benchmark(folder), title="Large")
    write_json(folder / "benchmark.json", dataclasses.asdict(other))


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (_another_benchmark, "holds the results of another benchmark, 'Large', not of 'Small'. Publish to another"),
        (
            lambda folder, finished: prepare_folder(folder, finished[0]),
            "is the --out folder of a run; publish to anoth",
        ),
        (
            lambda folder, _: (folder / "results.md").write_text("by hand"),
            "results.md: is not of a benchmark and would",
        ),
    ],
    ids=["another", "out", "by hand"],
)
def test_nothing_else_is_lost_to_a_publication(
    finished: Any, tmp_path: Path, prepare: Callable[[Path, Any], object], message: str
) -> None:
    write_report(finished[1].folder)
    prepare(tmp_path, finished)
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    with pytest.raises(UserError, match=message):
        publish(finished[1].folder, tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_a_destination_that_cannot_be(finished: Any, tmp_path: Path) -> None:
    write_report(finished[1].folder)
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / ("x" * 300)):
        with pytest.raises(UserError, match=rf"{place}: cannot be (read|written)"):
            publish(finished[1].folder, place)


def test_pictures_of_a_run_from_before_folders_had_a_mark_are_shown(finished: Any, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    shutil.copytree(finished[1].folder, folder, ignore=shutil.ignore_patterns("runs"))
    for pictures in (folder / "pictures").iterdir():
        pictures.rename(pictures.with_name(pictures.name.rpartition("-")[0]))
    assert (folder / "pictures" / "ball-EUGen-seed-0").is_dir()
    assert "<img " in write_report(folder).read_text("utf8")


def test_pictures_of_different_sizes_are_said_to_be_so(finished: Any, tmp_path: Path) -> None:
    store = finished[1]
    folder = tmp_path / "out"
    shutil.copytree(store.folder, folder, ignore=shutil.ignore_patterns("runs"))
    lines = [json.loads(line) for line in (folder / "results.jsonl").read_text("utf8").splitlines()]
    for record in lines:
        if record["job"].get("name") == "MLP" and record["result"]["status"] == "done":
            record["result"]["values"]["picture_size"] = [7, 5]
    (folder / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for picture in (folder / "pictures").glob("ball-MLP*/*.png"):
        Image.new("RGB", (7, 5)).save(picture)
    assert list((folder / "pictures").glob("ball-MLP*/*.png"))
    html = write_report(folder).read_text("utf8")
    size = " x ".join(map(str, open_picture(next((folder / "pictures").glob("ball-EUGen*/*.png"))).size))
    assert f"images differ in size (EUGen {size}, MLP 7 x 5)" in html
    assert "<img " not in html
    assert "differ in size" not in write_report(store.folder).read_text("utf8")


def test_images_of_a_published_report_are_kept(finished: Any, tmp_path: Path) -> None:
    write_report(finished[1].folder)
    publish(finished[1].folder, tmp_path)
    before = (tmp_path / "report.html").read_bytes()
    assert b"<img " in before
    (tmp_path / "results.md").unlink()
    assert write_report(tmp_path).name == "results.md"
    assert (tmp_path / "report.html").read_bytes() == before
    assert (tmp_path / "results.md").read_text() == (finished[1].folder / "results.md").read_text()


def test_readme_tables_come_from_published_results(finished: Any, tmp_path: Path) -> None:
    write_report(finished[1].folder)
    publish(finished[1].folder, tmp_path / "results")
    readme = tmp_path / "README.md"
    readme.write_text(f"# Title\n\n{BEGIN}\nold\n{END}\n\nrest\n")
    update_readme(readme, [tmp_path / "results"])
    once = readme.read_text()
    command = f"<!-- eugen-bench readme README.md {tmp_path / 'results'} -->"
    assert once.startswith(f"# Title\n\n{BEGIN}\n{command}\n\n**Small** (ball). Every method was trained for 12 ")
    assert once.endswith(f"{END}\n\nrest\n")
    assert "| EUGen |" in once
    assert "old" not in once
    update_readme(readme, [tmp_path / "results"])
    assert readme.read_text() == once


def test_methods_without_results_on_every_scene_are_named_and_have_no_mean(
    finished: Any, ball_scene: Path, tmp_path: Path
) -> None:
    benchmark, store = finished[:2]
    folder = tmp_path / "two"
    two = dataclasses.replace(benchmark, scenes=(*benchmark.scenes, SceneEntry(str(ball_scene), "again")))
    prepare_folder(folder, two)
    (folder / "results.jsonl").write_bytes((store.folder / "results.jsonl").read_bytes())
    other = ResultStore(folder)
    job = next(job for job in training_jobs(two) if (job.scene, job.name) == ("again", "Broken"))
    other.append(job, Result("failed", "out of luck"))
    write_report(folder)
    text = (folder / "results.md").read_text("utf8")
    assert "## Mean of 2 scenes\n\nWithout results on every scene: all methods.\n\n## ball" in text
    assert "Without results on every scene: all methods." in (folder / "report.html").read_text("utf8")
    readme = tmp_path / "README.md"
    readme.write_text(f"{BEGIN}\n{END}\n")
    with pytest.raises(UserError, match="no method has results on every scene yet"):
        update_readme(readme, [folder])


def test_line_ends_of_the_readme_stay(finished: Any, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_bytes(f"# Title\r\n{BEGIN}\r\n{END}\r\nrest\r\n".encode())
    for _ in range(2):
        update_readme(readme, [finished[1].folder])
        content = readme.read_bytes()
        assert content.count(b"\r\n") == content.count(b"\n") > 10
        assert b"\r\r" not in content


def test_a_readme_in_another_encoding_is_left_alone(finished: Any, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    content = f"# Größe\n{BEGIN}\n{END}\n".encode("latin-1")
    readme.write_bytes(content)
    with pytest.raises(UserError, match=r"README.md: is not in UTF-8 .* Save it in that encoding"):
        update_readme(readme, [finished[1].folder])
    assert readme.read_bytes() == content


def test_readme_without_markers_is_left_alone(finished: Any, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("# Title\n")
    with pytest.raises(UserError, match="lacks the lines <!-- eugen-bench:begin -->"):
        update_readme(readme, [finished[1].folder])
    assert readme.read_text() == "# Title\n"
    with pytest.raises(UserError, match="cannot be read"):
        update_readme(tmp_path / "absent.md", [])


class TestPlots:
    def test_linear_axis_has_round_ticks_inside(self) -> None:
        axis = linear_axis([19.3, 27.8])
        assert axis.ticks == (20, 22, 24, 26, 28)
        assert axis.low < 19.3 < 27.8 < axis.high
        assert axis.place(axis.low, 100, 0) == 100
        assert axis.place(axis.high, 100, 0) == 0

    @pytest.mark.parametrize("values", [[5.0], [5.0, 5.0], [0.0, 0.0], [1e-3, 1e5], [3.0, 3.1]])
    def test_axes_cope_with_any_range(self, values: list[float]) -> None:
        for axis in [linear_axis(values), log_axis([value + 1e-3 for value in values])]:
            assert axis.low < axis.high
            assert axis.ticks
            assert all(axis.low <= tick <= axis.high for tick in axis.ticks)

    def test_log_axis_is_logarithmic(self) -> None:
        axis = log_axis([0.01, 1.0])
        assert axis.ticks == (0.01, 0.1, 1.0)
        places = [axis.place(tick, 0, 1) for tick in axis.ticks]
        assert places[1] - places[0] == pytest.approx(places[2] - places[1])

    def test_points_stand_where_their_values_are(self) -> None:
        points = [Point("slow & good", 2.0, 30.0, 0, (1.5, 3.0)), Point("fast", 0.5, 25.0, 1)]
        tree = ElementTree.fromstring(scatter(points, [1, 0], "time", format_seconds))
        namespace = {"s": "http://www.w3.org/2000/svg"}
        titles = [title.text for title in tree.findall(".//s:title", namespace)]
        assert titles == ["slow & good: 30.00 dB, 2 s", "fast: 25.00 dB, 500 ms"]
        slow, fast = tree.findall(".//s:circle", namespace)
        assert float(slow.get("cx", "")) > float(fast.get("cx", ""))
        assert float(slow.get("cy", "")) < float(fast.get("cy", ""))  # better is higher
        assert tree.find(".//s:path[@class='front']", namespace) is not None

    def test_labels_do_not_run_into_each_other(self) -> None:
        points = [Point("a", 3648.0, 15.7, 0), Point("b", 11424.0, 16.9, 1)]
        tree = ElementTree.fromstring(scatter(points, [0, 1], "multiply-adds", lambda value: f"{value:,.0f}"))
        labels = [text for text in tree.iter("{http://www.w3.org/2000/svg}text") if "," in (text.text or "")]
        assert len(labels) >= 2
        spans = [(float(label.get("x", "")), 7 * len(label.text or "") / 2) for label in labels]
        for (left, half), (right, other) in itertools.pairwise(spans):
            assert left + half < right - other

    def test_more_methods_than_colors_get_other_shapes(self) -> None:
        signs = {plots.marker(style, 0, 0) for style in range(20)}
        assert len(signs) == 20

    def test_lines(self) -> None:
        tree = ElementTree.fromstring(line_plot([Line("a", [(1.0, 10.0), (2.0, 20.0)], 0)], "time", format_seconds))
        assert len(tree.findall(".//{http://www.w3.org/2000/svg}circle")) == 2

"""From records to the rows of the tables."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from eugen_nerf.bench.config import Benchmark, Budget, MethodEntry, SceneEntry
from eugen_nerf.bench.jobs import FramesJob, Result, TrainingJob, training_jobs
from eugen_nerf.bench.notes import doubts, missing_scenes
from eugen_nerf.bench.results import ResultStore, frames_jobs
from eugen_nerf.bench.summary import AVERAGED, MethodSummary, collect, mean_over_scenes, summarize
from eugen_nerf.bench.tables import Table, chosen, format_seconds, method_table, method_tables, transposed
from tests.bench.conftest import done

BENCHMARK = Benchmark(
    scenes=(SceneEntry("/data/a", "a"), SceneEntry("/data/b", "b")),
    methods=(MethodEntry("eugen-nerf", "E"), MethodEntry("eugen-nerf-mlp", "M")),
    budget=Budget(iterations=10),
    seeds=(0, 1),
    target_psnr=(15.0, 40.0),
)

TEXTS = ("gpu", "cuda", "cpu", "python", "torch", "nerfstudio", "eugen_nerf", "git_revision", "date", "command")
MACHINE = {**dict.fromkeys(TEXTS, "x"), "cpu_cores": 2, "threads": 1, "memory_gib": 23.5}


def training(psnr: float, views: int = 2, **changes: Any) -> Result:
    rows = [{"view": view, "psnr": psnr + view, "ssim": 0.9} for view in range(views)]
    curve = [{"step": 1, "seconds": 1.0, "psnr": 10.0}, {"step": 9, "seconds": 3.0, "psnr": 20.0}]
    values = {"psnr": sum(row["psnr"] for row in rows) / views, "views": rows, "num_test_views": 2, "curve": curve}
    return done(**{**values, "machine": MACHINE, **changes})


def frames(job: FramesJob, times: dict[str, list[float]]) -> Result:
    rows = {name: [{"view": i, "seconds": t} for i, t in enumerate(row)] for name, row in times.items()}
    return Result("done", values={"frames": rows, "machine": MACHINE})


def timing(trained: list[TrainingJob]) -> FramesJob:
    names = tuple(job.name for job in trained)
    digests = tuple(job.digest for job in trained)
    return FramesJob(trained[0].scene, trained[0].seed, names, names, (3,) * len(names), digests)


@pytest.fixture
def store(tmp_path: Path) -> ResultStore:
    """Scene a: both methods, two seeds, frame times; scene b: E complete, M failed with seed 1."""
    store = ResultStore(tmp_path)
    jobs = {(job.scene, job.name, job.seed): job for job in training_jobs(BENCHMARK)}
    for (scene, name, seed), job in jobs.items():
        failed = (scene, name, seed) == ("b", "M", 1)
        psnr = 20.0 + seed + (2 if name == "M" else 0)
        store.append(job, Result("failed", "out of luck") if failed else training(psnr))
    for seed in (0, 1):
        job = timing([jobs["a", "E", seed], jobs["a", "M", seed]])
        store.append(job, frames(job, {"E": [1.0, 2.0, 4.0], "M": [2.0, 4.0]}))
    return store


def test_lines_of_a_scene(store: ResultStore) -> None:
    a, b = summarize(BENCHMARK, store)
    assert (a.name, b.name) == ("a", "b")
    e, m = a.methods
    assert (e.name, e.rows, e.evaluated, e.available) == ("E", 2, 2, 2)
    assert e.values["psnr"] == pytest.approx(21.0)
    assert e.psnr_spread == pytest.approx(0.5**0.5)
    assert e.frame is not None
    assert e.frame.value == 2.0
    assert e.ratio is None
    assert e.is_reference
    assert m.ratio is not None
    assert (m.ratio.value, m.ratio.low, m.ratio.high) == (2.0, 2.0, 2.0)  # over the frames that both methods rendered
    assert e.reach == {15.0: 2.0, 40.0: None}
    assert e.reached == {15.0: 2, 40.0: 0}
    assert len(e.curves) == 2
    assert len(a.machines) == 6
    assert b.methods[1].failures == ("out of luck",)
    assert b.methods[1].rows == 1
    assert b.methods[0].frame is None


def test_methods_with_other_test_photos_are_not_compared(tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    benchmark = dataclasses.replace(BENCHMARK, scenes=BENCHMARK.scenes[:1], seeds=(0,))
    e, m = training_jobs(benchmark)
    store.append(e, training(20, test_split="a"))
    for split, comparable in (("b", False), ("a", True)):
        store.append(m, training(21, test_split=split))
        job = timing([e, m])
        store.append(job, frames(job, {"E": [1.0] * 3, "M": [2.0] * 3}))
        (scene,) = summarize(benchmark, store)
        assert scene.common_split is comparable
        assert (scene.methods[1].ratio is not None) is comparable
        assert (scene.methods[1].psnr_common is not None) is comparable
        sentence = "On a the methods were tested on different photos"
        assert any(text.startswith(sentence) for text in doubts(benchmark, [scene])) is not comparable


def test_scenes_without_results_are_named(store: ResultStore) -> None:
    scenes = summarize(BENCHMARK, store)
    assert missing_scenes(BENCHMARK, scenes) == []
    more = dataclasses.replace(BENCHMARK, scenes=(*BENCHMARK.scenes, SceneEntry("/data/c", "c")))
    assert missing_scenes(more, scenes) == ["Without results yet: c."]


def test_mean_over_scenes(store: ResultStore) -> None:
    e, m = mean_over_scenes(summarize(BENCHMARK, store))
    assert (e.rows, m.rows) == (4, 3)
    assert e.values["psnr"] == pytest.approx(21.0)
    assert m.values["psnr"] == pytest.approx((23.0 + 22.5) / 2)
    assert e.frame is None  # scene b has none
    assert e.reach[15.0] == 2.0


def test_mean_leaves_out_methods_without_results_on_a_scene(store: ResultStore) -> None:
    lost = dataclasses.replace(BENCHMARK, methods=(*BENCHMARK.methods, MethodEntry("nerfacto", "N")))
    assert [method.name for method in mean_over_scenes(summarize(lost, store))] == ["E", "M"]


def test_a_value_that_one_seed_lacks_has_no_mean(tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    benchmark = dataclasses.replace(BENCHMARK, scenes=BENCHMARK.scenes[:1], methods=BENCHMARK.methods[:1])
    first, second = training_jobs(benchmark)
    store.append(first, training(20, lpips=0.25))
    store.append(second, training(20, lpips=None))
    ((e,),) = (scene.methods for scene in summarize(benchmark, store))
    assert e.values["lpips"] is None
    assert e.values["ssim"] == 1.0


def test_mean_frame_time_is_geometric_and_ratios_keep_their_uncertainty(tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    benchmark = dataclasses.replace(BENCHMARK, seeds=(0,))
    jobs = {(job.scene, job.name): job for job in training_jobs(benchmark)}
    for job in jobs.values():
        store.append(job, training(20))
    for scene, scale in (("a", 1.0), ("b", 4.0)):
        job = timing([jobs[scene, "E"], jobs[scene, "M"]])
        store.append(job, frames(job, {"E": [scale] * 3, "M": [scale, 2 * scale, 4 * scale]}))
    a, b = (scene.methods[1] for scene in summarize(benchmark, store))
    e, m = mean_over_scenes(summarize(benchmark, store))
    assert e.frame is not None
    assert e.frame.value == pytest.approx(2.0)
    assert a.ratio is not None
    assert b.ratio is not None
    assert m.ratio is not None
    assert m.ratio.value == pytest.approx(2.0)
    # The mean of two independent ratios of equal width is narrower by the square root of two.
    assert m.ratio.high / m.ratio.value == pytest.approx((a.ratio.high / a.ratio.value) ** (1 / 2**0.5))
    assert a.ratio.low < a.ratio.value
    assert m.ratio.value / m.ratio.low == pytest.approx((a.ratio.value / a.ratio.low) ** (1 / 2**0.5))


def test_views_that_only_some_methods_rendered_are_told_apart(tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    benchmark = dataclasses.replace(BENCHMARK, seeds=(0,), scenes=BENCHMARK.scenes[:1])
    first, second = training_jobs(benchmark)
    store.append(first, training(20, views=2))
    store.append(second, training(25, views=1))
    (scene,) = summarize(benchmark, store)
    assert not scene.common_views
    assert [method.values["psnr"] for method in scene.methods] == [20.5, 25.0]
    assert [method.psnr_common for method in scene.methods] == [20.0, 25.0]
    assert "PSNR, common views" in method_table(scene.methods).columns


def test_records_of_another_configuration_do_not_count(store: ResultStore) -> None:
    longer = dataclasses.replace(BENCHMARK, budget=Budget(iterations=11))
    assert summarize(longer, store) == []
    assert collect(longer, store).frames == {}


def test_a_timing_of_runs_that_were_trained_anew_does_not_count(store: ResultStore) -> None:
    changed = dataclasses.replace(BENCHMARK, methods=(BENCHMARK.methods[0], MethodEntry("nerfacto", "M")))
    assert collect(changed, store).frames == {}


def test_a_timing_of_fewer_methods_does_not_hide_that_of_all(store: ResultStore) -> None:
    """A method is removed from the configuration, frames are timed again, and the method is added back."""
    alone = dataclasses.replace(BENCHMARK, methods=BENCHMARK.methods[:1])
    for benchmark, times in ((BENCHMARK, {"E": [5.0], "M": [10.0]}), (alone, {"E": [9.0]})):
        for job in frames_jobs(benchmark, store):
            if job.scene == "a":
                store.append(job, frames(job, times))
    for benchmark, value in ((BENCHMARK, 5.0), (alone, 9.0)):
        frame = summarize(benchmark, store)[0].methods[0].frame
        assert frame is not None
        assert frame.value == value
    ratio = summarize(BENCHMARK, store)[0].methods[1].ratio
    assert ratio is not None
    assert ratio.value == 2.0


def test_tables(store: ResultStore) -> None:
    a, b = summarize(BENCHMARK, store)
    outcome, cost = method_tables(a.methods)
    assert outcome.columns[:3] == ("Method", "PSNR (dB)", "SSIM")
    assert "To 15 dB" in outcome.columns
    assert {row[outcome.columns.index("To 40 dB")] for row in outcome.rows} == {"not reached"}
    row = dict(zip(outcome.columns, outcome.rows[1], strict=True))
    assert row["PSNR (dB)"] == "23.00 ± 0.71"
    assert row["Time ratio [95 %]"] == "2.000 [2.000, 2.000]"
    assert row["FPS"] == "0.33"
    assert dict(zip(cost.columns, cost.rows[0], strict=True))["Multiply-adds per sample"] == "1"
    failed = MethodSummary("X", False, dict.fromkeys(AVERAGED), failures=("no",))
    assert method_table([*b.methods, failed]).rows[2][1] == "failed"


def test_tables_tell_which_rows_lack_trainings(store: ResultStore) -> None:
    a, b = summarize(BENCHMARK, store)
    assert "Trainings" not in method_table(a.methods).columns
    for methods, cells in ((b.methods, ["2 of 2", "1 of 2"]), (mean_over_scenes([a, b]), ["4 of 4", "3 of 4"])):
        table = method_table(methods)
        assert [row[table.columns.index("Trainings")] for row in table.rows] == cells


def test_a_target_that_some_seeds_missed(tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    benchmark = dataclasses.replace(BENCHMARK, scenes=BENCHMARK.scenes[:1], methods=BENCHMARK.methods[:1])
    first, second = training_jobs(benchmark)
    store.append(first, training(20))
    store.append(second, training(20, curve=[{"step": 9, "seconds": 3.0, "psnr": 12.0}]))
    (scene,) = summarize(benchmark, store)
    (e,) = scene.methods
    assert (e.reach, e.reached) == ({15.0: None, 40.0: None}, {15.0: 1, 40.0: 0})
    table = method_table([e])
    row = dict(zip(table.columns, table.rows[0], strict=True))
    assert (row["To 15 dB"], row["To 40 dB"]) == ("1 of 2 reached", "not reached")


def test_only_views_that_the_reference_was_timed_on_count(tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    benchmark = dataclasses.replace(BENCHMARK, seeds=(0,), scenes=BENCHMARK.scenes[:1])
    jobs = training_jobs(benchmark)
    for job in jobs:
        store.append(job, training(20))
    timed = timing(jobs)
    store.append(timed, frames(timed, {"E": [1.0], "M": [2.0, 2.0, 2.0]}))
    (scene,) = summarize(benchmark, store)
    assert [method.timed_views for method in scene.methods] == [1, 1]


def test_table_shapes() -> None:
    table = Table(("Method", "x", "y"), (("a|b", "1", "2"), ("c", "3", "4")))
    assert table.markdown() == "| Method | x | y |\n| :-- | --: | --: |\n| a\\|b | 1 | 2 |\n| c | 3 | 4 |\n"
    assert chosen(table, ("y", "absent")).columns == ("Method", "y")
    assert transposed(table).rows == (("x", "1", "3"), ("y", "2", "4"))
    assert transposed(table).columns == ("", "a|b", "c")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.01234, "12.3 ms"),
        (0.9996, "1 s"),
        (2.5, "2.5 s"),
        (300.2, "300 s"),
        (999.6, "16.7 min"),
        (1500, "25.0 min"),
        (7200, "2.00 h"),
    ],
)
def test_durations(value: float | None, text: str) -> None:
    assert format_seconds(value) == text

"""A benchmark from its YAML file to its records: pairing, failures, resuming and interruption."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from rich.console import Console

from eugen_nerf.bench import runner
from eugen_nerf.bench.config import Benchmark, load_benchmark
from eugen_nerf.bench.folder import prepare_folder
from eugen_nerf.bench.jobs import Result, TrainingJob, read_json, write_json
from eugen_nerf.bench.methods import row_config
from eugen_nerf.bench.results import ResultStore, frames_job, frames_jobs, training_job
from eugen_nerf.bench.runner import Outcome, check_rows
from eugen_nerf.bench.scene_files import camera_fingerprint
from eugen_nerf.bench.schema import from_mapping
from eugen_nerf.errors import UserError
from tests.bench.conftest import InProcessEngine, WriteConfig, done

Finished = tuple[Benchmark, ResultStore, Outcome, str]


class ScriptedEngine(InProcessEngine):
    """Writes results made by a function instead of running the jobs."""

    def __init__(self, results: Any) -> None:
        super().__init__()
        self.results = results
        self.stopped = False

    def start(self, folder: Path) -> None:
        self.folders.append(folder.name)
        result = self.results(folder.name)
        if result is not None:
            write_json(folder / "result.json", dataclasses.asdict(result))

    def stop(self) -> None:
        self.stopped = True


def invented(name: str) -> Result:
    if "frames" in name:
        return Result("done", values={"frames": {"EUGen": [{"view": 0, "seconds": 1.0}]}})
    return done(psnr=20.0, steps=3, training_seconds=1.0, load_config=f"runs/{name}")


def test_every_row_leaves_a_record(finished: Finished) -> None:
    _, store, outcome, printed = finished
    assert outcome == Outcome(finished=6, failed=2)  # two methods and a timing, with two seeds; one method fails
    rows = [(training_job(r).name, r.result.status) for r in store.read() if r.kind == "training"]
    assert sorted(rows) == sorted([("EUGen", "done"), ("MLP", "done"), ("Broken", "failed")] * 2)
    assert "ball · Broken · seed 0: FAILED: Field option num_levels must be at least 1, not 0." in printed
    assert "[8/8]" in printed


def test_frames_of_the_methods_alternate_over_the_same_views(finished: Finished) -> None:
    _, store, _, _ = finished
    records = [record for record in store.read() if record.kind == "frames"]
    assert [frames_job(record).seed for record in records] == [0, 1]
    for record in records:
        frames = record.result.values["frames"]
        assert set(frames) == {"EUGen", "MLP"}
        assert [f["view"] for f in frames["EUGen"]] == [f["view"] for f in frames["MLP"]] == [0, 1, 0, 1]
        assert all(f["seconds"] > 0 for entries in frames.values() for f in entries)


def test_values_of_a_row(finished: Finished, ball_scene: Path) -> None:
    _, store, _, _ = finished
    values = store.read()[0].result.values
    assert values["steps"] == 12
    assert [point["step"] for point in values["curve"]] == [6, 12]
    assert values["curve"][0]["seconds"] < values["curve"][1]["seconds"] == values["training_seconds"]
    assert values["psnr"] == pytest.approx(sum(row["psnr"] for row in values["views"]) / 2)
    assert values["num_test_views"] == len(values["views"]) == 2
    assert (
        len({record.result.values["test_split"] for record in store.read() if "test_split" in record.result.values})
        == 1
    )
    assert values["cameras"] == camera_fingerprint(ball_scene)
    assert values["rays_per_second"] > 0
    assert values["merged_network_parameters"] < values["stored_parameters"]
    assert values["peak_resident_bytes"] > 10**7
    assert values["peak_device_bytes"] is None or values["peak_device_bytes"] > 0
    assert values["machine"]["command"] == "eugen-bench run small.yaml"
    assert values["checkpoint_bytes"] == sum(
        path.stat().st_size for path in (store.folder / values["load_config"]).parent.rglob("*.ckpt")
    )


def test_a_run_is_an_ordinary_nerfstudio_run(finished: Finished) -> None:
    """ns-eval, ns-render and ns-viewer start with eval_setup."""
    from nerfstudio.utils.eval_utils import eval_setup

    _, store, _, _ = finished
    _, pipeline, _, step = eval_setup(store.folder / store.read()[0].result.values["load_config"])
    assert step == 11
    assert len(pipeline.datamanager.eval_dataset) == 2  # type: ignore[attr-defined]


def test_resuming_does_what_is_missing_only(small_data: dict[str, Any], tmp_path: Path, quiet: Console) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(yaml.safe_dump(small_data))
    benchmark = load_benchmark(path)
    store = prepare_folder(tmp_path / "out", benchmark)
    failing = ScriptedEngine(lambda name: Result("failed", "no luck") if "MLP" in name else invented(name))
    assert runner.run(benchmark, store, failing, quiet) == Outcome(finished=2, failed=1)
    again = ScriptedEngine(invented)
    assert runner.run(benchmark, store, again, quiet) == Outcome(finished=3, failed=0)
    # The failed row, and the timing, which can now compare two runs.
    assert again.folders == ["ball-MLP-seed-0", "ball-frames-seed-0"]
    nothing = ScriptedEngine(invented)
    assert runner.run(benchmark, store, nothing, quiet) == Outcome(finished=3, failed=0)
    assert nothing.folders == []
    more = dataclasses.replace(benchmark, seeds=(0, 1))
    grown = ScriptedEngine(invented)
    assert runner.run(more, store, grown, quiet) == Outcome(finished=6, failed=0)
    assert grown.folders == ["ball-MLP-seed-1", "ball-EUGen-seed-1", "ball-frames-seed-1"]


def test_other_data_under_the_same_name_is_not_continued(
    small_data: dict[str, Any], ball_scene: Path, tmp_path: Path, quiet: Console
) -> None:
    first, second = tmp_path / "1" / "ball", tmp_path / "2" / "ball"
    for folder in (first, second):
        shutil.copytree(ball_scene, folder)

    def benchmark(scene: Path, **changes: Any) -> Any:
        path = tmp_path / "x.yaml"
        path.write_text(yaml.safe_dump({**small_data, "scenes": [{"path": str(scene), "name": "ball", **changes}]}))
        return load_benchmark(path)

    store = prepare_folder(tmp_path / "out", benchmark(first))
    cameras = {"cameras": camera_fingerprint(first)}
    engine = ScriptedEngine(lambda name: Result("done", values={**invented(name).values, **cameras}))
    trained = runner.run(benchmark(first), store, engine, quiet)
    assert runner.run(benchmark(second), store, engine, quiet) == trained  # moved or copied: the same data
    listing = second / "transforms_train.json"
    listing.write_text(listing.read_text().replace("0.7", "0.8", 1))
    with pytest.raises(UserError, match=r"2/ball: its cameras are not those that the finished trainings in .*out had"):
        runner.run(benchmark(second), store, engine, quiet)
    assert runner.run(benchmark(second, name="new"), store, engine, quiet).failed == 0


def test_a_file_that_is_changed_and_changed_back_has_its_own_runs_again(
    write_config: WriteConfig, quiet: Console
) -> None:
    """A finished run is kept: the run of another configuration is stored beside it and does not replace it."""
    store = prepare_folder(write_config().parent / "out", load_benchmark(write_config()))

    def results(name: str) -> Result:
        job = read_json(store.folder / "jobs" / name / "job.json")["job"]
        if "frames" in name:
            trained = [(store.folder / path).read_text() for path in job["load_configs"]]
            return Result("done", values={"frames": {name: [] for name in job["names"]}, "trained": trained})
        row = from_mapping(TrainingJob, job, "job")
        run = row_config(row, store.folder / "runs", "cpu").get_base_dir()
        run.mkdir(parents=True, exist_ok=True)
        (run / "config.yml").write_text(str(row.budget))
        return done(steps=1, load_config=str((run / "config.yml").relative_to(store.folder)))

    for iterations, frames, trainings in ((30, 1, 1), (15, 1, 1), (30, 2, 0)):
        path = write_config(methods=["eugen-nerf"], budget={"iterations": iterations}, timed_frames=frames)
        engine = ScriptedEngine(results)
        runner.run(load_benchmark(path), store, engine, quiet)
        assert len(engine.folders) == trainings + 1
        assert store.read()[-1].result.values["trained"] == [f"{iterations} iterations"]


@pytest.mark.parametrize(("free", "message"), [(1 << 30, "ended."), (4096, "ended; the disk is full.")])
def test_a_worker_that_dies_without_a_result_is_a_failed_row(
    write_config: WriteConfig, quiet: Console, monkeypatch: pytest.MonkeyPatch, free: int, message: str
) -> None:
    monkeypatch.setattr(runner.shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    path = write_config()
    benchmark = load_benchmark(path)
    store = prepare_folder(path.parent / "out", benchmark)
    engine = ScriptedEngine(lambda name: None)
    assert runner.run(benchmark, store, engine, quiet) == Outcome(finished=0, failed=2)
    assert {record.result.message for record in store.read()} == {message}
    assert frames_jobs(benchmark, store) == []


def test_ctrl_c_ends_the_jobs_and_keeps_finished_rows(write_config: WriteConfig, quiet: Console) -> None:
    path = write_config()
    benchmark = load_benchmark(path)
    store = prepare_folder(path.parent / "out", benchmark)

    def interrupted(name: str) -> Result:
        if "MLP" in name:
            raise KeyboardInterrupt
        return invented(name)

    engine = ScriptedEngine(interrupted)
    engine.has_room = lambda: len(engine.folders) == len(store.read())  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        runner.run(benchmark, store, engine, quiet)
    assert engine.stopped
    assert [training_job(record).name for record in store.read()] == ["EUGen"]
    rest = ScriptedEngine(invented)
    runner.run(benchmark, store, rest, quiet)
    assert rest.folders == ["ball-MLP-seed-0", "ball-frames-seed-0"]


def test_mistakes_come_to_light_before_anything_is_trained(write_config: WriteConfig) -> None:
    with pytest.raises(UserError, match=r"Unknown method 'nerfact'. Did you mean 'nerfacto'"):
        check_rows(load_benchmark(write_config(methods=["eugen-nerf", "nerfact"])))
    with pytest.raises(UserError, match=r"eugen-nerf on ball: Override pipeline.model.feld"):
        check_rows(load_benchmark(write_config(methods=["eugen-nerf"], overrides={"pipeline.model.feld": 1})))
    for option, value in (("pipeline.model.field.num_features", 0), ("pipeline.selection_fraction", 1.0)):
        with pytest.raises(UserError, match=rf"eugen-nerf on ball: .*{option.split('.')[-1]} must be .*, not {value}"):
            check_rows(load_benchmark(write_config(methods=["eugen-nerf"], overrides={option: value})))
    unfit = {"pipeline.model.eugen.num_features": 257}
    with pytest.raises(UserError, match=r"eugen-vanilla-nerf on ball: pipeline\.model\.eugen: .*257 features"):
        check_rows(load_benchmark(write_config(methods=["eugen-vanilla-nerf"], overrides=unfit)))
    twins = [{"method": "eugen-nerf", "name": name} for name in ("EUGen 2", "EUGen-2")]
    with pytest.raises(UserError, match=r"'EUGen-2' on 'ball' and 'EUGen 2' on 'ball' would both have the folder"):
        check_rows(load_benchmark(write_config(methods=twins)))

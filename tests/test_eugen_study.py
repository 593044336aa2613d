"""The tables of docs/eugen-study.md, and how its results are read."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import eugen_study_report as report
import pytest
from eugen_study_plans import PLANS, Network, Trial

ROOT = Path(__file__).parents[1]


def test_tables_are_those_of_the_results(tmp_path: Path) -> None:
    document = tmp_path / "study.md"
    written = (ROOT / "docs" / "eugen-study.md").read_text("utf8")
    document.write_text(written, "utf8")
    report.put_into(document, report.tables(ROOT / "docs" / "results" / "eugen_study" / "study.jsonl"))
    assert document.read_text("utf8") == written


def test_every_result_belongs_to_a_plan() -> None:
    lines = (ROOT / "docs" / "results" / "eugen_study" / "study.jsonl").read_text("utf8").splitlines()
    planned = {trial.key for plan in PLANS.values() for trial in plan()}
    assert {json.loads(line)["key"] for line in lines} <= planned


def result(kind: str, width: int, seed: int, psnr: float | None, rate: float = 1e-2, **network: Any) -> dict[str, Any]:
    trial = Trial("lego", Network(kind, width, **network), rate, 100, seed)  # type: ignore[arg-type]
    cost = 100 * (network.get("features") or width)
    return {**dataclasses.asdict(trial), "psnr": psnr, "multiply_adds": cost}


def test_best_rate_and_cost_of_an_equal_mlp() -> None:
    results = [
        *(result("mlp", 16, seed, 20.0 + seed) for seed in (0, 1)),
        *(result("mlp", 64, seed, 22.0 + seed) for seed in (0, 1)),
        result("mlp", 64, 1, None, rate=2e-2),  # diverged
        result("mlp", 64, 0, 30.0, rate=5e-3),  # tried with one seed only
        *(result("eugen", 64, seed, 21.0 + seed, features=16) for seed in (0, 1)),
        *(result("eugen", 64, seed, 15.0, features=16, rate=5e-3) for seed in (0, 1)),
        result("eugen", 64, 1, 25.0, features=32),
    ]
    rows = report.rows(results)
    curve = [row for row in rows if row.plain_mlp]
    found = {
        row.name: (row.rate, row.mean, report.equal_mlp(row, curve), report.against_twice(row, curve))
        for row in rows
        if not row.plain_mlp
    }
    assert found == {
        "eugen 64, m=16, relu": (1e-2, 21.5, "2.00x", "+0.00"),  # 32 is halfway from 16 to 64 in the logarithm
        "eugen 64, m=32, relu": (1e-2, 25.0, "> 2.0x", "+2.00"),
    }
    assert [(row.multiply_adds, row.mean) for row in curve] == [(1600, 20.5), (6400, 22.5)]


def test_a_document_without_marks_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("no tables")
    with pytest.raises(SystemExit, match="study:begin"):
        report.put_into(tmp_path / "a.md", "text")

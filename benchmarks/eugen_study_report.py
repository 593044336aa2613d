"""Tables from the results of benchmarks/eugen_study.py."""

from __future__ import annotations

import itertools
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eugen_study_plans import Network, described
from printing import markdown_table


@dataclass(frozen=True)
class Row:
    """A network with its best learning rate: that of the highest mean PSNR over the most seeds."""

    task: str
    name: str
    phi: str
    plain_mlp: bool  # from scratch, with the usual initial weights
    steps: int  # those of a teacher included
    multiply_adds: int
    rate: float
    rates: int  # how many were tried
    psnr: dict[int, float]  # by seed

    @property
    def mean(self) -> float:
        return statistics.mean(self.psnr.values())


def rows(results: Iterable[dict[str, Any]]) -> list[Row]:
    """Results with learning rates and seeds gathered, but for those that diverged."""
    groups: dict[tuple, dict[tuple, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for result in results:
        if result["psnr"] is None:
            continue
        teacher = result["teacher"]
        network = Network(**result["network"])
        color = result.get("color")
        name = described(network, Network(**color) if color else None)
        steps = result["steps"] + (teacher["steps"] if teacher else 0)
        if teacher:
            name += f" <- MLP {teacher['width']} (rate {teacher['rate']:g}), {teacher['rows']} rows"
            name += f" by {teacher['selection']}"
            name += f", then {result['steps']} steps" if result["steps"] else ""
        plain = network == Network("mlp", network.width, phi=network.phi) and not teacher
        if result["network"]["candidates"]:
            name += f", after {result['selection_at']:.0%} of the steps"
            name += ", restart" if result["restart"] else ""
            name += ", then dense" if result["dense_after"] else ""
        rate = (result["rate"], result["projection_rate"], result["table_rate"])
        groups[result["task"], name, network.phi, plain, steps, result["multiply_adds"]][rate].append(result)
    found = []
    for key, by_rate in groups.items():
        most = max(len(group) for group in by_rate.values())
        complete = {rate: group for rate, group in by_rate.items() if len(group) == most}
        rate, group = max(complete.items(), key=lambda item: statistics.mean(r["psnr"] for r in item[1]))
        found.append(Row(*key, rate[0], len(by_rate), {r["seed"]: r["psnr"] for r in group}))
    return sorted(found, key=lambda row: (row.task, row.steps, row.multiply_adds, -row.mean))


def mlp_curve(row: Row, curve: list[Row]) -> list[tuple[int, float]]:
    """(multiply-adds, PSNR) of MLPs trained from scratch for as many steps, by cost.

    They are taken with the row's seeds and its Phi as activation, or ReLU where none of that kind were trained.
    """
    rivals = [
        mlp for mlp in curve if (mlp.task, mlp.steps) == (row.task, row.steps) and mlp.psnr.keys() >= row.psnr.keys()
    ]
    phi = row.phi if any(mlp.phi == row.phi for mlp in rivals) else "relu"
    return sorted(
        (mlp.multiply_adds, statistics.mean(mlp.psnr[seed] for seed in row.psnr)) for mlp in rivals if mlp.phi == phi
    )


def equal_mlp(row: Row, curve: list[Row]) -> str:
    """How many times the multiply-adds such an MLP needs for the same PSNR.

    Between two measured widths the logarithm of the cost is interpolated; beyond them there is a bound.
    """
    points = mlp_curve(row, curve)
    if not points:
        return "-"
    if row.mean > max(psnr for _, psnr in points):
        return f"> {points[-1][0] / row.multiply_adds:.1f}x"
    for (low, below), (high, above) in itertools.pairwise(points):
        if below <= row.mean <= above:
            part = (row.mean - below) / (above - below) if above > below else 0.0
            return f"{math.exp(math.log(low) + part * math.log(high / low)) / row.multiply_adds:.2f}x"
    return f"< {points[0][0] / row.multiply_adds:.1f}x"


def against_twice(row: Row, curve: list[Row]) -> str:
    """PSNR against that of such an MLP of twice the cost, interpolated likewise."""
    cost = 2 * row.multiply_adds
    for (low, below), (high, above) in itertools.pairwise(mlp_curve(row, curve)):
        if low <= cost <= high:
            return f"{row.mean - below - (above - below) * math.log(cost / low) / math.log(high / low):+.2f}"
    return "-"


HEADS = (
    "network",
    "multiply-adds",
    "learning rate (tried)",
    "PSNR (dB)",
    "seeds",
    "cost of an equal MLP",
    "against MLP of twice the cost",
)
BEGIN, END = "<!-- study:begin -->", "<!-- study:end -->"


def tables(path: Path) -> str:
    """One Markdown table for each task and number of steps."""
    found = rows(json.loads(line) for line in path.read_text().splitlines())
    curve = [row for row in found if row.plain_mlp]
    lines = []
    for task, steps in sorted({(row.task, row.steps) for row in found}):
        cells = []
        for row in found:
            if (row.task, row.steps) != (task, steps):
                continue
            low, high = min(row.psnr.values()), max(row.psnr.values())
            spread = f", {low:.2f}-{high:.2f}" if len(row.psnr) > 1 else ""
            compared = ("", "") if row.plain_mlp else (equal_mlp(row, curve), against_twice(row, curve))
            rate = f"{row.rate:g} ({row.rates})" if row.rate else "none"
            psnr, seeds = f"{row.mean:.2f}{spread}", str(len(row.psnr))
            cells.append((row.name, f"{row.multiply_adds:,}", rate, psnr, seeds, *compared))
        lines += [f"### {task}, {steps:,} steps", "", *markdown_table(HEADS, cells), ""]
    return "\n".join(lines)


def put_into(document: Path, text: str) -> None:
    """Replace what stands between the marks in a document."""
    before, _, rest = document.read_text("utf8").partition(BEGIN)
    _, mark, after = rest.partition(END)
    if not mark:
        raise SystemExit(f"{document}: has no lines {BEGIN} and {END}")
    document.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{after}", "utf8")

"""Tables for the terminal, Markdown and HTML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.markup import escape
from rich.table import Table as RichTable

from eugen_nerf.bench.summary import MethodSummary

MISSING = "–"


@dataclass(frozen=True)
class Table:
    """Cells of text; the first column names the rows."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    title: str = ""

    def markdown(self) -> str:
        """The table in Markdown, with numbers aligned right."""
        lines = [self.columns, (":--", *["--:"] * (len(self.columns) - 1)), *self.rows]
        return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"

    def rich(self) -> RichTable:
        """The table for the terminal."""
        table = RichTable(title=escape(self.title) if self.title else None)
        for number, column in enumerate(self.columns):
            table.add_column(escape(column), justify="right" if number else "left", no_wrap=not number)
        for row in self.rows:
            table.add_row(*map(escape, row))
        return table


def format_number(value: float | None, digits: int = 0, unit: str = "") -> str:
    """Format a number with thousands separators, or a dash."""
    return MISSING if value is None else f"{value:,.{digits}f}{unit}"


def format_seconds(value: float | None) -> str:
    """Format a duration with three significant digits."""
    if value is None:
        return MISSING
    # Three digits of what is a bit less than 1000 would be 1e+03.
    if value < 0.9995:
        return f"{1000 * value:.3g} ms"
    if value < 999.5:
        return f"{value:.3g} s"
    return f"{value / 60:.1f} min" if value < 6000 else f"{value / 3600:.2f} h"


def format_mebibytes(value: float | None) -> str:
    """Format bytes in units of 2^20."""
    return MISSING if value is None else f"{value / 2**20:,.0f} MiB"


def method_tables(methods: Sequence[MethodSummary]) -> tuple[Table, Table]:
    """Two tables, quality with speed and cost, with a row for each method. Columns without any value are left out."""
    reach = next((method.reach for method in methods if method.reach), {})
    partial = len({(method.evaluated, method.available) for method in methods if method.rows}) > 1
    unfinished = any(method.rows < method.planned for method in methods)
    outcome = {
        "PSNR (dB)": [_psnr(method) for method in methods],
        **({"PSNR, common views": [format_number(method.psnr_common, 2) for method in methods]} if partial else {}),
        "SSIM": [format_number(method.values["ssim"], 4) for method in methods],
        "LPIPS": [format_number(method.values["lpips"], 4) for method in methods],
        "Frame time": [_frame(method) for method in methods],
        "Middle 80 % of frames": [_spread(method) for method in methods],
        "Time ratio [95 %]": [_ratio(method) for method in methods],
        "FPS": [format_number(1 / method.frame.value if method.frame else None, 2) for method in methods],
        "Training": [format_seconds(method.values["training_seconds"]) for method in methods],
        **{f"To {target:g} dB": [_time_to(target, method) for method in methods] for target in reach},
        "Views": [f"{m.evaluated} of {m.available}" if m.rows else MISSING for m in methods],
        **({"Trainings": [f"{m.rows} of {m.planned}" for m in methods]} if unfinished else {}),
    }
    cost = {
        "Multiply-adds per sample": [format_number(method.values["multiply_adds_per_sample"]) for method in methods],
        "Merged network parameters": [format_number(method.values["merged_network_parameters"]) for method in methods],
        "Stored parameters": [format_number(method.values["stored_parameters"]) for method in methods],
        "Samples per ray": [format_number(method.values["samples_per_ray"], 1) for method in methods],
        "Training rays/s": [format_number(method.values["rays_per_second"]) for method in methods],
        "Peak memory": [format_mebibytes(method.values["peak_resident_bytes"]) for method in methods],
        "Peak on device": [format_mebibytes(method.values["peak_device_bytes"]) for method in methods],
    }
    return _of_columns(methods, outcome), _of_columns(methods, cost)


def method_table(methods: Sequence[MethodSummary], title: str = "") -> Table:
    """Both tables as one."""
    first, second = method_tables(methods)
    rows = tuple(row + more[1:] for row, more in zip(first.rows, second.rows, strict=True))
    return Table(first.columns + second.columns[1:], rows, title)


def _of_columns(methods: Sequence[MethodSummary], columns: dict[str, list[str]]) -> Table:
    shown = {name: cells for name, cells in columns.items() if set(cells) != {MISSING}}
    return Table(("Method", *shown), tuple(zip([method.name for method in methods], *shown.values(), strict=True)))


def chosen(table: Table, columns: Sequence[str]) -> Table:
    """Select the first column and the named columns that the table has."""
    places = [0, *(table.columns.index(name) for name in columns if name in table.columns)]
    rows = (table.columns, *table.rows)
    picked = [tuple(row[place] for place in places) for row in rows]
    return Table(picked[0], tuple(picked[1:]), table.title)


def transposed(table: Table, corner: str = "") -> Table:
    """Exchange rows and columns."""
    lines = list(zip(table.columns, *table.rows, strict=True))
    return Table((corner, *lines[0][1:]), tuple(lines[1:]), table.title)


def _psnr(method: MethodSummary) -> str:
    if not method.rows and method.failures:
        return "failed"
    spread = f" ± {method.psnr_spread:.2f}" if method.psnr_spread is not None else ""
    return format_number(method.values["psnr"], 2) + spread


def _time_to(target: float, method: MethodSummary) -> str:
    if not method.rows or method.reach.get(target) is not None:
        return format_seconds(method.reach.get(target))
    return f"{number} of {method.rows} reached" if (number := method.reached.get(target)) else "not reached"


def _frame(method: MethodSummary) -> str:
    return format_seconds(method.frame.value if method.frame else None)


def _spread(method: MethodSummary) -> str:
    return f"{format_seconds(method.frame.low)} to {format_seconds(method.frame.high)}" if method.frame else MISSING


def _ratio(method: MethodSummary) -> str:
    if method.frame is not None and method.is_reference:
        return "1 (reference)"
    return MISSING if method.ratio is None else str(method.ratio)

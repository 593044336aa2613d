"""How benchmarks print what they measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table


def markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table."""
    first, *others = (f"| {' | '.join(line)} |" for line in (heads, *rows))
    return [first, "|" + "---|" * len(heads), *others]


def print_table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]], markdown: Path | None) -> None:
    """Print a table, and write it as Markdown too where a file is named."""
    table = Table(*heads, title=title)
    for row in rows:
        table.add_row(*row)
    Console(width=160).print(table)
    if markdown:
        markdown.write_text("\n".join([title, "", *markdown_table(heads, rows)]) + "\n")

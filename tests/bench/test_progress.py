"""Progress in a log without a terminal, and on a terminal."""

from __future__ import annotations

import io
import re
import time

import pytest
from rich.console import Console

from eugen_nerf.bench.jobs import Progress
from eugen_nerf.bench.progress import SECONDS_BETWEEN_LINES, Display


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_a_log_gets_a_line_now_and_then(clock: list[float]) -> None:
    console = Console(file=io.StringIO(), width=40)
    with Display(4, console) as display:
        for tenth in range(100):
            clock[0] = 0.6 * tenth
            display.update({"row 1": Progress("training", tenth / 100, 10 * tenth, 20.0), "row 2": Progress()})
        display.finish("row 1", "done")
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert len(lines) == 1 + int(59.4 // SECONDS_BETWEEN_LINES) + 1  # one at the start, and complete lines only
    assert lines[1].startswith("15 s  6 % of all, about 3 min 45 s left | row 1: training step 250, 20.0 dB, 25 %")
    assert "row 2" not in "".join(lines)  # it is waiting
    assert lines[-1] == "[1/4] row 1: done"


def test_a_terminal_gets_bars() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with Display(2, console) as display:
        display.update({"row 1": Progress("training", 0.5, 10)})
        display.finish("row 1", "done")
        display.update({"row [2]": Progress("loading", 0.1)})
        assert display._bars is not None
        descriptions = [task.description for task in display._bars.tasks]
        assert descriptions == ["all", "row [2]"]
        assert display._bars.tasks[0].completed == pytest.approx(1.1)
    printed = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue())  # type: ignore[attr-defined]
    assert "[1/2] row 1: done" in printed
    assert "row [2]" in printed  # a name, not markup

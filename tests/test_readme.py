"""The Python examples of README.md and examples/ run, and print what they say they print."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def examples(file: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / file).read_text(), re.DOTALL)


EXAMPLES = examples("README.md")


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_example(example: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(example, {})
    printed = capsys.readouterr().out.split("\n")
    if "convert(" in example:
        assert printed[0] == re.findall(r"^# (.*)$", example, re.MULTILINE)[0]
        assert re.findall(r"  # (\d+);", example) == [printed[1]]


def test_training_without_nerfstudio(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(ROOT / "examples" / "train_without_nerfstudio.py"))
    printed = re.fullmatch(r"([\d.]+) dB on black\n", capsys.readouterr().out)
    assert printed
    assert float(printed[1]) > 20  # an empty scene has 8

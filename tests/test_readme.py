"""The Python examples of README.md run, and print what they say they print."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_example(example: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(example, {})
    printed = capsys.readouterr().out.split("\n")
    if "convert(" in example:
        assert printed[0] == re.findall(r"^# (.*)$", example, re.MULTILINE)[0]
        assert re.findall(r"  # (\d+);", example) == [printed[1]]

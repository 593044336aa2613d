"""Tables from the results of benchmarks/eugen_study.py."""

from __future__ import annotations
import json, collections, statistics
from pathlib import Path


def report(path: Path) -> None:
    rows = [json.loads(l) for l in path.read_text().splitlines()]
    for r in rows:
        print(r)

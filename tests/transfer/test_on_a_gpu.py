"""eugen-transfer with tensors on a GPU: no operation mixes them with tensors on the CPU."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from eugen_nerf.transfer.cli import Transfer, transfer
from tests.pretended_gpu import pretended_gpu

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("how", [{}, {"solver": "layerwise", "rows": "gaussian", "steps": 20}])
def test_transfer(how: dict[str, Any], mlp_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = Transfer(
        mlp_run / "config.yml",
        num_features=16,
        views=1,
        pixel_fraction=0.5,
        max_samples=5000,
        output_dir=tmp_path,
        **how,
    )
    with pretended_gpu(monkeypatch):
        outcome = transfer(given, Console(file=io.StringIO()))
    assert outcome.after["psnr"] > 10

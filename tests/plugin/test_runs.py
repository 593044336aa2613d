"""Finished runs, found again."""

from __future__ import annotations

from pathlib import Path

import pytest

from eugen_nerf.errors import UserError
from eugen_nerf.plugin.runs import load_run


def test_load_run_names_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config.yml: does not exist. Give the config.yml of a run"):
        load_run(tmp_path / "config.yml")
    (tmp_path / "config.yml").write_text("")
    with pytest.raises(UserError, match="holds no checkpoint"):
        load_run(tmp_path / "config.yml")

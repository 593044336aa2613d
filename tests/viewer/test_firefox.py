"""The page in Firefox."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from eugen_nerf.plugin.runs import load_run
from tests.viewer.conftest import expected, psnr, rendered
from tests.viewer.firefox import find_firefox, has_display, running_firefox

SIDE = 96


@pytest.mark.slow
@pytest.mark.skipif(find_firefox() is None, reason="no Firefox (apt install firefox-esr)")
@pytest.mark.skipif(not has_display(), reason="Firefox has WebGL only with a display (apt install xvfb)")
def test_pictures_are_those_of_python(
    demo_run: Path, page_folder: Path, serve: Callable[[Path], str], tmp_path: Path
) -> None:
    pipeline = load_run(demo_run)
    with running_firefox(tmp_path) as page:
        page.open(serve(page_folder))
        if not page.evaluate("document.createElement('canvas').getContext('webgl2') !== null"):
            pytest.skip("Firefox has no WebGL 2 here (apt install libgl1 libgl1-mesa-dri)")
        for view in (0, 8):
            truth = expected(pipeline, view, SIDE)["rgb"]
            assert truth.std() > 10  # the image is not empty
            quality = psnr(rendered(page, view, SIDE)[..., :3], truth)
            assert quality >= 38, f"view {view}: {quality:.2f} dB"
        assert page.evaluate("document.getElementById('message').hidden")
        assert page.console == []

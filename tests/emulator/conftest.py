from __future__ import annotations

import pytest

from tests.emulator.device import have_compiler


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not have_compiler():
        for item in items:
            if "emulator" in item.path.parts:
                item.add_marker(pytest.mark.skip(reason="no C++ compiler that knows _Float16"))

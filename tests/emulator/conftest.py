from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.emulator.device import have_compiler


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """Fill the results of torch.empty with NaN, so that they never contain an earlier, correct result."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not have_compiler():
        for item in items:
            if "emulator" in item.path.parts:
                item.add_marker(pytest.mark.skip(reason="no C++ compiler that knows _Float16"))

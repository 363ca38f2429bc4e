"""All tensors here are small."""

import pytest


@pytest.fixture(autouse=True, scope="module")
def _small(one_thread):
    pass

"""Generated files and a small model, made once for all tests of the benchmarks."""

from __future__ import annotations

import pytest

from pipeline import config as configuration
from pipeline.bench.quick import QUICK_SETTINGS
from pipeline.bench.rivals import Files
from pipeline.bench.workloads import QUICK_LONG, QUICK_SHORT, make
from tests.bench.samples import quiet


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    cache = tmp_path_factory.mktemp("workloads")
    return Files(long=make(QUICK_LONG, cache, say=quiet), short=make(QUICK_SHORT, cache, say=quiet))


@pytest.fixture(scope="session")
def small() -> configuration.Config:
    """A model of small networks, in this process."""
    settings = {**QUICK_SETTINGS, "model.untrained": True, "run.executor": "inline"}
    return configuration.parse({**settings, "compute.precision": "fp32", "compute.compile": "off"})

"""One cache folder for all tests of datasets, so that each dataset is prepared once."""

import pytest


@pytest.fixture(scope="session")
def cache_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _cache(cache_folder, monkeypatch):
    monkeypatch.setenv("FOLDAX_CACHE", str(cache_folder))

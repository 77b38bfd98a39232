"""Random models, each built once for all tests that ask for them."""

from __future__ import annotations

import pytest

from tests.export.runtime.cases import MODELS, Pair


@pytest.fixture(scope="session", params=MODELS, ids=lambda model: f"seed{model[0]}-heat{model[1]}")
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A bundle of a random model and transformers' model of it."""
    return Pair.make(tmp_path_factory.mktemp("pair"), *request.param)


@pytest.fixture(scope="session")
def unsure(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Return a pair whose likeliest token is seldom likely, for tests of sampling."""
    return Pair.make(tmp_path_factory.mktemp("unsure"), 14, 0.15)

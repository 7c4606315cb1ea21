"""The watershed separator passes the tests of all separators."""

from __future__ import annotations

import pickle

import pytest

from fcnpipe.science.merge_tree import Criterion
from fcnpipe.separators import Separator, Watershed
from fcnpipe.testing.separation import SeparatorTests


@pytest.mark.parametrize("criterion", [Criterion(), Criterion(10, 3)], ids=["all", "some"])
class TestWatershed(SeparatorTests):
    @pytest.fixture
    def separator(self, criterion: Criterion) -> Separator:
        return pickle.loads(pickle.dumps(Watershed(criterion)))

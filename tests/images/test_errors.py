"""Warnings of the libraries that read image files."""

from __future__ import annotations

import warnings

import pytest

from fcnpipe.images.errors import silence_warnings


def test_warnings_are_silenced_only_inside_the_block() -> None:
    with silence_warnings():
        warnings.warn("unheard", UserWarning, stacklevel=1)
    with pytest.warns(UserWarning, match="heard"):
        warnings.warn("heard", UserWarning, stacklevel=1)

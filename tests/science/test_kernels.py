"""Cached kernels depend on their own file only.

Numba recompiles a cached kernel only if its own file has changed. A kernel that used a function, a record
or a constant of another file would keep the old compiled code after a change of that file, and
compute wrong numbers without a warning.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import fcnpipe.core
from fcnpipe.core.records import PixelFlag, SourceFlag

FILES = sorted(
    path
    for path in Path(fcnpipe.core.__file__).parents[1].rglob("*.py")
    if re.search(r"^@(numba\.njit|njit|kernel)\b", path.read_text(), re.M)
)
STORED = {"PixelFlag", "SourceFlag", "NEIGHBOURS"}
"""Names that kernels may use although they are imported: stores contain their values, which never change."""


def foreign_names(tree: ast.Module) -> set[str]:
    """Return the module's names that are imported from fcnpipe or computed from such names."""
    found = {
        alias.asname or alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fcnpipe")
        for alias in node.names
    } - STORED
    for node in tree.body:
        if isinstance(node, ast.Assign) and found & names(node.value):
            found |= {name for target in node.targets for name in names(target)}
    return found


def names(node: ast.AST) -> set[str]:
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}


def kernels(tree: ast.Module) -> Iterator[ast.FunctionDef]:
    """Yield functions decorated with numba's njit, or with ``kernel``, which is njit with options."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and any(
            re.match(r"(numba\.njit|njit|kernel)\b", ast.unparse(decorator))
            for decorator in node.decorator_list
        ):
            yield node


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_kernels_use_nothing_of_another_file(path):
    tree = ast.parse(path.read_text())
    foreign = foreign_names(tree)
    assert {
        kernel.name: used
        for kernel in kernels(tree)
        if (used := set().union(*map(names, kernel.body)) & foreign)
    } == {}


@pytest.mark.parametrize("decorator", ["njit(cache=True)", "kernel"])
def test_names_of_another_file_are_found(decorator):
    tree = ast.parse(
        "from fcnpipe.science.sums import FLUX_LIMIT, add\n"
        "LIMIT = FLUX_LIMIT + 1\n"
        f"@{decorator}\n"
        "def kernel(x):\n"
        "    return add(x, LIMIT)\n"
    )
    assert set().union(*map(names, next(kernels(tree)).body)) & foreign_names(tree) == {
        "add",
        "LIMIT",
    }


def test_flag_bits_are_those_of_stored_images_and_catalogues():
    assert {flag.name: flag.value for flag in PixelFlag} == {
        "NO_DATA": 1,
        "MASKED": 2,
        "SATURATED": 4,
    }
    assert {flag.name: flag.value for flag in SourceFlag} == {
        "NEIGHBOURS": 1,
        "DEBLENDED": 2,
        "SATURATED": 4,
        "TRUNCATED": 8,
        "APERTURE_INCOMPLETE": 16,
        "ISOPHOTE_INCOMPLETE": 32,
    }

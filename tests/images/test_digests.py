"""Digests of files, computed from parts."""

from pathlib import Path

import pytest

from fcnpipe.images import digests
from fcnpipe.images.digests import hash_file


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(digests, "_PART_BYTES", 10)
    monkeypatch.setattr(digests, "_READ_BYTES", 4)
    path = tmp_path / "file"
    path.write_bytes(bytes(range(47)))
    return path


def test_the_digest_covers_exactly_the_given_bytes(path: Path) -> None:
    before, data = hash_file(str(path), 3, 41), bytearray(path.read_bytes())
    for i in range(len(data)):
        changed = data.copy()
        changed[i] ^= 1
        path.write_bytes(changed)
        assert (hash_file(str(path), 3, 41) != before) == (3 <= i < 41)


def test_the_order_of_parts_matters(path: Path) -> None:
    data = path.read_bytes()
    before = hash_file(str(path))
    path.write_bytes(data[10:20] + data[:10] + data[20:])
    assert hash_file(str(path)) != before


def test_the_default_end_is_that_of_the_file(path: Path) -> None:
    assert hash_file(str(path)) == hash_file(str(path), 0, 47)
    assert hash_file(str(path)) != hash_file(str(path), 0, 46)
    assert hash_file(str(path)) != hash_file(str(path), prefix="cards")


def test_an_empty_file_has_a_digest(path: Path) -> None:
    path.write_bytes(b"")
    assert len(hash_file(str(path))) == 64

"""The digest of a file, part by part."""

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


def test_every_byte_counts_and_no_other(path: Path) -> None:
    before, data = hash_file(str(path), 3, 41), bytearray(path.read_bytes())
    for i in range(len(data)):
        changed = data.copy()
        changed[i] ^= 1
        path.write_bytes(changed)
        assert (hash_file(str(path), 3, 41) != before) == (3 <= i < 41)


def test_parts_in_another_order_are_another_file(path: Path) -> None:
    data = path.read_bytes()
    before = hash_file(str(path))
    path.write_bytes(data[10:20] + data[:10] + data[20:])
    assert hash_file(str(path)) != before


def test_without_an_end_all_of_it_counts(path: Path) -> None:
    assert hash_file(str(path)) == hash_file(str(path), 0, 47)
    assert hash_file(str(path)) != hash_file(str(path), 0, 46)
    assert hash_file(str(path)) != hash_file(str(path), prefix="cards")


def test_an_empty_file_has_a_digest(path: Path) -> None:
    path.write_bytes(b"")
    assert len(hash_file(str(path))) == 64

"""Scratch records: `read_record` returns what numpy reads from the same file."""

from pathlib import Path

import numpy as np
import pytest

from fcnpipe.core.errors import StoreError
from fcnpipe.stores.scratch_records import read_record, remove_damaged_records, write_record


def test_a_record_is_read_as_numpy_reads_its_file(tmp_path: Path) -> None:
    wide = np.arange(12, dtype=np.float32).reshape(3, 4)
    arrays = {
        "rows": np.arange(5),
        "columns": np.asfortranarray(wide),
        "every_other": wide[:, ::2],
        "none": np.zeros((0, 4), np.uint16),
        "number": np.asarray(2.5),
        "words": np.array(["", "gap", "\u03c3"]),
        "truth": np.array([True, False]),
        "swapped": np.arange(3, dtype=">i4"),
    }
    write_record(tmp_path, "r000c000", arrays)
    found = read_record(tmp_path, "r000c000")
    with np.load(tmp_path / "r000c000.npz") as expected:
        assert list(found) == expected.files
        for name in expected.files:
            np.testing.assert_array_equal(found[name], expected[name], strict=True)
            assert found[name].flags.writeable
    assert list(read_record(tmp_path, "r000c000", ["words"])) == ["words"]
    with pytest.raises(KeyError):
        read_record(tmp_path, "r000c000", ["absent"])


def test_no_changed_byte_is_read_as_data(tmp_path: Path) -> None:
    """Each byte in turn is changed: the record is refused, or the byte is none of its contents."""
    arrays = {"rows": np.arange(40), "flux": np.linspace(0, 1, 7)}
    write_record(tmp_path / "rows", "r000c000", arrays)
    file = tmp_path / "rows" / "r000c000.npz"
    content, refused = file.read_bytes(), 0
    for place in range(len(content)):
        file.write_bytes(content[:place] + bytes([content[place] ^ 0x41]) + content[place + 1 :])
        try:
            found = read_record(file.parent, file.stem)
        except StoreError:
            refused += 1
            assert remove_damaged_records(tmp_path) == [("rows", "r000c000")]
            continue
        assert {name: values.tolist() for name, values in found.items()} == {
            name: values.tolist() for name, values in arrays.items()
        }
        assert remove_damaged_records(tmp_path) == []
    assert refused > len(content) / 2


def test_records_that_are_cut_short_or_empty_are_removed(tmp_path: Path) -> None:
    write_record(tmp_path / "rows", "intact", {"rows": np.arange(4)})
    whole = (tmp_path / "rows" / "intact.npz").read_bytes()
    for name, content in {"cut": whole[:-9], "empty": b"", "zeros": bytes(len(whole))}.items():
        (tmp_path / "rows" / f"{name}.npz").write_bytes(content)
    removed = remove_damaged_records(tmp_path)
    assert sorted(removed) == [("rows", "cut"), ("rows", "empty"), ("rows", "zeros")]
    assert [path.stem for path in (tmp_path / "rows").iterdir()] == ["intact"]

"""Scratch records: `read_record` returns what numpy reads from the same file."""

from pathlib import Path

import numpy as np
import pytest

from fcnpipe.stores.scratch_records import read_record, write_record


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

"""Records of arrays: what is read is what numpy reads of the same file."""

from pathlib import Path

import numpy as np
import pytest

from fcnpipe.stores.scratch_records import get_record, put_record


def test_a_record_is_what_numpy_makes_of_its_file(tmp_path: Path) -> None:
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
    put_record(tmp_path, "r000c000", arrays)
    found = get_record(tmp_path, "r000c000")
    with np.load(tmp_path / "r000c000.npz") as expected:
        assert list(found) == expected.files
        for name in expected.files:
            np.testing.assert_array_equal(found[name], expected[name], strict=True)
            assert found[name].flags.writeable
    assert list(get_record(tmp_path, "r000c000", ["words"])) == ["words"]
    with pytest.raises(KeyError):
        get_record(tmp_path, "r000c000", ["absent"])

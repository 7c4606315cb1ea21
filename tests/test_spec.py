"""The spec: one line for every mistake, and a science part that ignores how a run is done."""

import os
from pathlib import Path

import pytest

from fcnpipe.errors import SpecError
from fcnpipe.spec import load_spec, make_spec


def test_a_wrong_value_is_named_with_its_limit() -> None:
    with pytest.raises(SpecError, match=r"option window=3: .*greater than or equal to 64"):
        make_spec(image=("a.fits",), out="o.zarr", window=3)


def test_an_unknown_option_is_named() -> None:
    with pytest.raises(SpecError, match="windw"):
        make_spec(image=("a.fits",), out="o.zarr", windw=512)


@pytest.mark.parametrize("name", ["thresh", "satur_level", "gain", "mag_zeropoint", "fwhm"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_is_refused(name: str, value: float) -> None:
    with pytest.raises(SpecError, match=rf"option {name}={value}: "):
        make_spec(image=("a.fits",), out="o.zarr", **{name: value})


@pytest.mark.parametrize("out", [".", "..", "/", "x/.."])
def test_an_output_without_a_name_is_refused(out: str) -> None:
    with pytest.raises(SpecError, match="names no store"):
        make_spec(image=("a.fits",), out=out)


def test_a_name_that_stores_cannot_keep_is_refused() -> None:
    with pytest.raises(SpecError, match=r"'a\\udcff.fits': .* not UTF-8"):
        make_spec(image=(os.fsdecode(b"a\xff.fits"),), out="o.zarr")


def test_how_a_run_is_done_is_no_part_of_its_science() -> None:
    one = make_spec(image=("a.fits",), out="o.zarr", engine="serial", tile=512, window=512)
    two = make_spec(
        image=("b.fits",), out="p.zarr", engine="dask", workers=7, tile=1024, window=512
    )
    assert one.science() == two.science()
    assert make_spec(image=("a.fits",), out="o.zarr", window=256).science() != one.science()


def test_a_file_and_flags_merge_and_flags_win(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("image: a.fits\nwindow: 256\nthresh: 0.4\n")
    spec = load_spec(path, out="o.zarr", window=512)
    assert (spec.image, spec.window, spec.thresh) == (("a.fits",), 512, 0.4)


@pytest.mark.parametrize("text", [b"- 1\n", b"a: [\n", b"mask: \xff\n"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(text)
    with pytest.raises(SpecError, match="config"):
        load_spec(path)


def test_names_of_files_mean_the_same_in_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"mask": "m.fits[a/../b]", "prior": "s3://sky/p.zarr", "weight": "~/w.fits"}
    spec = make_spec(image=("a.fits", "../b.fits"), out="o.zarr", model="net.pt2", **given)
    (tmp_path / "deep").mkdir()
    monkeypatch.chdir(tmp_path / "deep")
    monkeypatch.setenv("HOME", "/nowhere/me")
    found = spec.anchored()
    assert found.image == (f"{tmp_path}/deep/a.fits", f"{tmp_path}/b.fits")
    assert found.mask == f"{tmp_path}/deep/m.fits[a/../b]"
    assert (found.prior, found.weight) == ("s3://sky/p.zarr", "/nowhere/me/w.fits")
    assert found.model == f"{tmp_path}/deep/net.pt2"
    for name in ("none", "default"):
        assert spec.model_copy(update={"model": name}).anchored().model == name

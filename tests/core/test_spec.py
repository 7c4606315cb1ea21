"""RunSpec: each mistake is reported in one line; result options exclude the runtime options."""

import os
from pathlib import Path

import pytest

from fcnpipe.core.errors import SpecError
from fcnpipe.core.spec import load_spec, make_spec


def test_a_wrong_value_is_named_with_its_limit() -> None:
    with pytest.raises(SpecError, match=r"option window=3: .*greater than or equal to 64"):
        make_spec(image=("a.fits",), out="o.zarr", window=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"windw": 512}, r"option windw=512: no such option; did you mean window\?"),
        ({"keep-image": True}, r"no such option; did you mean keep_image\?"),
        ({"xyz": 1}, "option xyz=1: no such option$"),
        ({"image": 5}, "option image=5: use a name, or a list of names"),
        ({"image": ("a.fits", 5)}, "option image=5: Input should be a valid string"),
        ({"hdu": [1]}, r"option hdu=\[1\]: Input should be a valid integer"),
        ({"minarea": 2**63}, "option minarea=9223372036854775808: Input .* less"),
        ({"dynamics": 1.5}, "option dynamics=1.5: Input .* less"),
        ({"mask_bits": 2**63, "mask": "m.fits"}, "mask_bits=9223372036854775808: Input .* less"),
    ],
)
def test_an_impossible_option_is_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        make_spec(**{"image": ("a.fits",), "out": "o.zarr", **options})


@pytest.mark.parametrize(
    "name", ["image", "out", "model", "weight", "mask", "prior", "scheduler", "scratch", "log_file"]
)
@pytest.mark.parametrize(("value", "message"), [("", "is empty"), ("a\0b", "not UTF-8")])
def test_empty_and_undecodable_names_are_refused(name: str, value: str, message: str) -> None:
    given = {"image": ("a.fits",), "out": "o.zarr", name: (value,) if name == "image" else value}
    with pytest.raises(SpecError, match=message):
        make_spec(**given)


@pytest.mark.parametrize(
    ("option", "value", "partner"),
    [("stride", 4, "halo"), ("mask_bits", 4, "mask"), ("weight_type", "rms", "weight")],
)
def test_an_option_without_its_partner_is_refused(option: str, value: object, partner: str) -> None:
    with pytest.raises(
        SpecError, match=f"option {option}={value} has no effect without option {partner}"
    ):
        make_spec(image=("a.fits",), out="o.zarr", **{option: value})


@pytest.mark.parametrize("name", ["thresh", "satur_level", "gain", "mag_zeropoint", "fwhm"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_is_refused(name: str, value: float) -> None:
    with pytest.raises(SpecError, match=rf"option {name}={value}: "):
        make_spec(image=("a.fits",), out="o.zarr", **{name: value})


@pytest.mark.parametrize("out", [".", "..", "/", "x/.."])
def test_an_output_without_a_name_is_refused(out: str) -> None:
    with pytest.raises(SpecError, match="is not the name of a store"):
        make_spec(image=("a.fits",), out=out)


def test_a_name_that_is_not_utf8_is_refused() -> None:
    with pytest.raises(SpecError, match=r"'a\\udcff.fits' is not UTF-8"):
        make_spec(image=(os.fsdecode(b"a\xff.fits"),), out="o.zarr")


def test_runtime_options_are_not_part_of_the_result_options() -> None:
    one = make_spec(image=("a.fits",), out="o.zarr", engine="serial", tile=512, window=512)
    two = make_spec(
        image=("b.fits",), out="p.zarr", engine="dask", workers=7, tile=1024, window=512
    )
    assert one.result_options() == two.result_options()
    assert (
        make_spec(image=("a.fits",), out="o.zarr", window=256).result_options()
        != one.result_options()
    )


def test_flags_take_precedence_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("image: a.fits\nwindow: 256\nthresh: 0.4\n")
    spec = load_spec(path, out="o.zarr", window=512)
    assert (spec.image, spec.window, spec.thresh) == (("a.fits",), 512, 0.4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"- 1\n", "holds a list, not a mapping"),
        (b"a: 1\nb: [\n", "line 3: expected the node content"),
        (b"mask: \xff\n", "can't decode byte"),
        (b"1: 2\n", "1 is not an option"),
        (b"null: 2\n", "None is not an option"),
    ],
)
def test_a_file_without_a_mapping_is_refused(tmp_path: Path, text: bytes, message: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(text)
    with pytest.raises(SpecError, match=rf"config .*run\.yaml.*{message}"):
        load_spec(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"none\.yaml cannot be read: No such file or directory$"):
        load_spec(tmp_path / "none.yaml")


def test_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"mask": "m.fits[a/../b]", "prior": "s3://sky/p.zarr", "weight": "~/w.fits"}
    spec = make_spec(image=("a.fits", "../b.fits"), out="o.zarr", model="net.pt2", **given)
    (tmp_path / "deep").mkdir()
    monkeypatch.chdir(tmp_path / "deep")
    monkeypatch.setenv("HOME", "/nowhere/me")
    found = spec.with_absolute_paths()
    assert found.image == (f"{tmp_path}/deep/a.fits", f"{tmp_path}/b.fits")
    assert found.mask == f"{tmp_path}/deep/m.fits[a/../b]"
    assert (found.prior, found.weight) == ("s3://sky/p.zarr", "/nowhere/me/w.fits")
    assert found.model == f"{tmp_path}/deep/net.pt2"
    for name in ("none", "default"):
        assert spec.model_copy(update={"model": name}).with_absolute_paths().model == name

"""Images of a survey from paths, globs, tables and YAML files, and names of their stores."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.table import Table
from hypothesis import given
from hypothesis import strategies as st

from fcnpipe.core.errors import SpecError
from fcnpipe.remote import RemoteError
from fcnpipe.survey import image_list, result_table
from fcnpipe.survey.image_list import list_images, safe_stem
from fcnpipe.survey.result_table import SurveyRow, write_table
from tests.conftest import Bucket
from tests.remote.servers import Site, intermittent_faults


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.fits", "b.fits", "night/a.fits", "night/c[1].fits"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def outs(*args: object, **kwargs: object) -> dict[str, str]:
    """Return the store of each image, by the file name of the image."""
    found = list_images(*args, **kwargs)  # type: ignore[arg-type]
    return {os.path.basename(e.name): e.out for e in found}


def test_paths_and_globs_list_each_image_once(folder: Path) -> None:
    assert outs(f"{folder}/*.fits", "out") == {"a.fits": "out/a.zarr", "b.fits": "out/b.zarr"}
    assert outs([f"{folder}/b.fits", f"{folder}/*.fits"], "out/") == {
        "b.fits": "out/b.zarr",
        "a.fits": "out/a.zarr",
    }
    found = list_images(f"{folder}/**/*.fits", "out")
    assert [os.path.relpath(e.name, folder) for e in found] == [
        "a.fits", "b.fits", "night/a.fits", "night/c[1].fits",
    ]  # fmt: skip


def test_an_existing_file_with_brackets_in_its_name_is_not_a_glob(folder: Path) -> None:
    (entry,) = list_images(f"{folder}/night/c[1].fits", "out")
    assert entry.name.endswith("c[1].fits")
    assert entry.out.startswith("out/c_1-")


def test_an_hdu_in_brackets_is_not_a_glob(folder: Path) -> None:
    found = list_images([f"{folder}/a.fits[{hdu}]" for hdu in ("1", "SCI,2")], "out")
    assert [os.path.basename(e.name) for e in found] == ["a.fits[1]", "a.fits[SCI,2]"]
    assert len({e.out for e in found}) == 2
    found = list_images(f"{folder}/*.fits[SCI,2]", "out")
    assert [os.path.basename(e.name) for e in found] == ["a.fits[SCI,2]", "b.fits[SCI,2]"]


@pytest.mark.parametrize("url", ["https://x/a.fits[SCI]", "https://x/a?id=7", "s3://b/a?.fits"])
def test_the_url_of_one_file_is_not_listed_unless_it_is_a_glob(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = []
    monkeypatch.setattr(image_list, "match_objects", lambda url: listed.append(url) or 1 / 0)
    if url.startswith("s3"):
        with pytest.raises(ZeroDivisionError):
            list_images(url, "out")
    else:
        assert [e.spec.image for e in list_images(url, "out")] == [(url,)]
        assert not listed


def test_images_with_the_same_name_have_different_stores_in_any_order(folder: Path) -> None:
    first = [e.out for e in list_images(f"{folder}/**/a.fits", "out")]
    again = [e.out for e in list_images([f"{folder}/night/a.fits", f"{folder}/a.fits"], "out")]
    assert len(set(first)) == 2
    assert first == again[::-1]


def test_remote_images_are_listed_through_their_file_system() -> None:
    import fsspec

    system = fsspec.filesystem("memory")
    for name in ("survey/x.fits", "survey/y.fits", "survey/notes.txt"):
        system.pipe(f"/{name}", b"1")
    assert outs("memory://survey/*.fits", "out") == {
        "x.fits": "out/x.zarr", "y.fits": "out/y.zarr",
    }  # fmt: skip
    hdus = list_images(["memory://survey/x.fits[1]", "memory://survey/*.fits[SCI]"], "out")
    assert [e.name for e in hdus] == [
        "memory://survey/x.fits[1]",
        "memory:///survey/x.fits[SCI]",
        "memory:///survey/y.fits[SCI]",
    ]


def test_a_yaml_file_has_options_of_all_images_and_of_one(folder: Path) -> None:
    path = folder / "survey.yaml"
    path.write_text(
        "options: {model: none, thresh: 3}\n"
        "images:\n"
        "  - a.fits\n"
        "  - {image: [a.fits, b.fits], out: two.zarr, thresh: 4, mask: m.fits}\n"
        "  - {image: 'night/*.fits', hdu: 1}\n"
    )
    entries = list_images(str(path), "out", {"model": "default", "window": 128})
    assert [e.out for e in entries][1] == "out/two.zarr"
    one, two, three, four = (e.spec for e in entries)
    assert one.image == (str(folder / "a.fits"),)
    assert (one.model, one.thresh, one.window) == ("none", 3, 128)
    assert two.image == (str(folder / "a.fits"), str(folder / "b.fits"))
    assert (two.thresh, two.mask) == (4, str(folder / "m.fits"))
    assert (three.hdu, four.hdu) == (1, 1)


def test_a_common_option_may_belong_to_a_map_that_only_some_images_have(folder: Path) -> None:
    shared = {"weight_type": "rms", "mask_bits": 4}
    with_map = {"image": str(folder / "a.fits"), "weight": "w.fits"}
    first, second = list_images([with_map, str(folder / "b.fits")], "out", shared)
    assert (first.spec.weight_type, first.spec.mask_bits) == ("rms", None)
    assert (second.spec.weight_type, second.spec.mask_bits) == ("weight", None)
    with pytest.raises(SpecError, match="mask_bits=0"):
        list_images(str(folder / "a.fits"), "out", {"mask_bits": 0})


@pytest.mark.parametrize("suffix", [".csv", ".ecsv", ".parquet"])
def test_a_table_has_a_column_of_images_and_columns_of_options(folder: Path, suffix: str) -> None:
    columns = {"file": ["a.fits", "b.fits"], "gain": [2.5, float("nan")], "seeing": [1, 2],
               "minarea": [7, 9], "mask": ["m.fits", ""]}  # fmt: skip
    path = folder / f"table{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.table(columns), path)
    else:
        Table(columns).write(path, format=f"ascii{suffix}")
    one, two = (e.spec for e in list_images(str(path), "out", {"gain": 1.0}, column="file"))
    assert (one.gain, one.minarea, one.mask) == (2.5, 7, str(folder / "m.fits"))
    assert (two.gain, two.minarea, two.mask) == (1.0, 9, None)


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        ("nothing/*.fits", {}, "matches no file"),
        ([], {}, "the survey has no images"),
        ("absent.yaml", {}, "absent.yaml cannot be read"),
        ("absent.csv", {}, "absent.csv cannot be read"),
        ("x.fits", {"window": 1}, "window=1"),
        ("x.fits", {"out": "o.zarr"}, "option out belongs to one image"),
        (
            [{"image": n, "out": "x.zarr"} for n in ("x.fits", "y.fits")],
            {},
            "x.fits and y.fits have the same store",
        ),
        (
            [{"image": "x.fits", "out": "x.zarr"}, {"image": "y.fits", "out": "./x.zarr"}],
            {},
            "x.fits and y.fits have the same store",
        ),
        (
            [{"image": "x.fits", "out": "x.zarr"}, {"image": "y.fits", "out": "x.zarr/labels/y"}],
            {},
            "y.fits, lies within out/x.zarr, the store of x.fits",
        ),
        ([{"thresh": 3}], {}, "has no image: add"),
        ("http://user:secret@[x/a.fits", {}, r"URL of an image \(http://\.\.\.\) is malformed"),
    ],
)
def test_errors_have_one_line(images: object, options: object, message: str) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        list_images(images, "out", options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("images: []", "has no images"),
        ("{", "cannot be read"),
        ("images: [3]", "neither a path nor a mapping"),
        ("images: [a.fits]\noptions: [1]", "not a mapping"),
        ("images: [a.fits]\noptions: {window: 1}", "window=1"),
        ("images: [a.fits]\noptions: {1: 2}", "1 is not an option"),
        ("images: [{image: a.fits, 1: 2}]", "1 is not an option"),
        ("images: [{image: 3}]", "image 3 is not a path"),
        ("images: [{image: [a.fits, 3]}]", "not a path"),
        ("images: [{image: {a: b}}]", "not a path"),
        ("images: [{image: &a [*a]}]", "not a path"),
        ("images: [!!timestamp x]", "cannot be read"),
        ("images: [!!bool x]", "cannot be read"),
        ("[" * 5000, "cannot be read"),
    ],
)
def test_a_broken_yaml_file_is_an_error(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "m.yaml").write_text(text)
    with pytest.raises(SpecError, match=message):
        list_images(str(tmp_path / "m.yaml"), "out")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_yaml_file_may_have_a_byte_order_mark(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "m.yaml").write_text("images: [ä.fits]", encoding)
    assert list(outs(str(tmp_path / "m.yaml"), "out")) == ["ä.fits"]


def test_names_that_are_not_utf8_are_listed_for_their_own_run(folder: Path) -> None:
    """Such a file is found by a glob, or by the name that messages show; only its own run is refused."""
    name = os.fsdecode(os.fsencode(folder) + b"/\xff.fits")
    Path(name).touch()
    found = list_images([f"{folder}/*.fits", f"{folder}/\\udcff.fits"], "out")
    assert [e.name for e in found] == [str(folder / "a.fits"), str(folder / "b.fits"), name]
    assert found[2].out.isascii()
    with pytest.raises(SpecError, match="is not UTF-8"):
        _ = found[2].spec
    (folder / "\\udcff.fits").touch()
    assert list_images(f"{folder}/\\udcff.fits", "out")[0].name == f"{folder}/\\udcff.fits"


@pytest.mark.usefixtures("short_retry_pauses")
@pytest.mark.parametrize("fault", ["drop", "503"])
def test_tables_behind_urls_are_requested_again_after_faults(
    fault: str, web: tuple[str, Site]
) -> None:
    url, site = web
    Table({"image": ["a.fits"]}).write(site.folder / "night.csv", format="ascii.csv")
    (site.folder / "night.yaml").write_text("images: [b.fits]")
    site.traffic.fault = intermittent_faults(fault)
    found = list_images([f"{url}/night.csv", f"{url}/night.yaml"], "out")
    assert [e.name for e in found] == [f"{url}/a.fits", f"{url}/b.fits"]
    assert site.traffic.faults == 2
    with pytest.raises(RemoteError, match=rf"^{url}/no\.csv does not exist"):
        list_images(f"{url}/no.csv", "out")


def test_the_options_of_one_image_are_validated_when_its_run_starts() -> None:
    wrong = [{"image": "y.fits", "window": 1}, {"image": "z.fits", "mask": 3}]
    good, bad, worse = list_images(["x.fits", *wrong], "out")
    assert good.spec.window == 1024
    with pytest.raises(SpecError, match="window=1"):
        _ = bad.spec
    with pytest.raises(SpecError, match="mask=3"):
        _ = worse.spec


@given(st.text(min_size=1, max_size=300))
def test_a_stem_is_one_path_component_and_not_an_option(name: str) -> None:
    stem = safe_stem(name)
    assert stem
    assert os.path.basename(stem) == stem
    assert stem[0] not in ".-_"
    assert len(stem) <= 120
    assert stem.isascii()


def test_different_names_have_different_stems() -> None:
    assert safe_stem("a b.fits") != safe_stem("a/a_b.fits") != safe_stem("a?b.fits")
    assert safe_stem("x" * 300 + "1.fits") != safe_stem("x" * 300 + "2.fits")
    assert "secret" not in safe_stem("https://host/field.fits?token=secret")


@pytest.mark.usefixtures("short_retry_pauses")
def test_images_and_result_table_may_be_in_a_bucket(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images are listed and the table is written despite server faults; no local file is written."""
    monkeypatch.chdir(tmp_path)
    root = f"{bucket.url}/{tmp_path.name}"
    for name in ("b", "a"):
        bucket.put(f"{tmp_path.name}/{name}.fits", b"1")
    bucket.traffic.fault = intermittent_faults("503", "drop")
    assert outs(f"{root}/*.fits", f"{root}/out") == {
        "a.fits": f"{root}/out/a.zarr", "b.fits": f"{root}/out/b.zarr",
    }  # fmt: skip
    rows = [SurveyRow(f"{root}/{name}.fits", f"{root}/out/{name}.zarr", "done") for name in "ab"]
    started = result_table.mark_started(f"{root}/out/survey.ecsv")
    assert started == result_table.mark_started(f"{root}/out/survey.ecsv") != ""
    write_table(rows, f"{root}/out/survey.ecsv")
    result_table.mark_finished(f"{root}/out/survey.ecsv")
    assert bucket.traffic.faults >= 2
    bucket.traffic.clear()
    (found,) = bucket.read_all(f"{tmp_path.name}/out").values()
    table = Table.read(found.decode(), format="ascii.ecsv")
    assert table["image"].tolist() == [row.image for row in rows]
    assert list(tmp_path.iterdir()) == []

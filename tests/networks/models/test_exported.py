"""Exported programs: loading, sidecar files, declared halos, and refusal of archives that hold code."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from astropy.io import fits
from torch import nn

import fcnpipe
from fcnpipe.cli import commands
from fcnpipe.core.errors import ModelError
from fcnpipe.core.spec import RunSpec
from fcnpipe.networks import load_model
from fcnpipe.networks.base import ModelHeader, Reach
from fcnpipe.pipeline.plan import make_plan
from fcnpipe.simulation.scenes import draw
from tests.networks import small_networks as small
from tests.networks.conftest import OUTPUTS, small_unet

# torch warns about its own code when a program is saved.
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")

SIDECAR = {
    "outputs": [output.model_dump(include={"name", "role"}) for output in OUTPUTS],
    "elevation": {"heat": 0.75, "blob": 0.25},
    "scaling": {"softening": 2.0},
    "defaults": {"minarea": 7},
    "licence": "MIT",
}


def export(network: nn.Module, path: Path, step: int | None = 1, **limits: int) -> Path:
    """Save a program that accepts sizes in multiples of ``step``, or only one size if it is None."""
    dims = [torch.export.Dim(name, min=8, **limits) for name in "yx"]
    sizes = {2 + i: step * dims[i] for i in range(2)} if step else None
    example = (torch.zeros(1, 1, 64, 96),)
    program = torch.export.export(network.eval(), example, dynamic_shapes=(sizes,))
    torch.export.save(program, path)
    return path


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(small_unet(), tmp_path_factory.mktemp("exported") / "net.pt2", 4)


def draw_field(path: Path, side: int) -> Path:
    fits.writeto(path, draw("cluster", (side, side), 3).image)
    return path


def copied(program: Path, folder: Path, **sidecar: object) -> Path:
    path = folder / "net.pt2"
    path.write_bytes(program.read_bytes())
    if sidecar:
        path.with_suffix(".json").write_text(json.dumps(sidecar))
    return path


def refusal(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(path)
    message = str(caught.value)
    assert "\n" not in message
    assert ": " in message
    return message


# --- loading --------------------------------------------------------------------------------------


def test_a_program_is_analysed_and_proven_as_its_network_is(
    program: Path, small_header: ModelHeader
) -> None:
    model = load_model(program)
    assert model.header.reach == small_header.reach
    assert model.header.certificate is not None
    assert (model.header.certificate.kind, model.header.certificate.probed) == ("proven", True)
    assert model.header.bytes_per_pixel == small_header.bytes_per_pixel
    assert (model.halo, model.stride) == (24, 4)
    assert load_model(program) is model


def test_without_a_sidecar_the_first_output_is_the_source(program: Path) -> None:
    header = load_model(program).header
    assert (header.name, header.architecture, header.bands) == ("net", "exported", 1)
    assert header.classes == ("source", "output1", "output2")
    assert {name: share.weight for name, share in header.elevation.items()} == {"source": 1.0}


def test_the_sidecar_sets_fields_of_the_header(program: Path, tmp_path: Path) -> None:
    model = load_model(copied(program, tmp_path, **SIDECAR))
    header = model.header
    assert header.outputs == OUTPUTS
    assert (header.scaling.softening, header.defaults.minarea, header.licence) == (2.0, 7, "MIT")
    assert model.digest != load_model(program).digest


def test_a_program_predicts_what_its_network_predicts(program: Path) -> None:
    snr = np.random.default_rng(0).normal(0, 3, (1, 36, 44)).astype(np.float32)
    model = load_model(program)
    maps = model.predictor(device="cpu")(snr)
    with torch.no_grad():
        expected = torch.sigmoid(small_unet()(torch.asinh(torch.from_numpy(snr[None]))))[0].numpy()
    np.testing.assert_allclose(maps.probability, expected, atol=2e-6)
    with pytest.raises(ModelError, match="not a multiple of stride 4"):
        model.predictor(device="cpu")(snr[:, :35])


def test_labels_are_those_of_the_same_network_in_a_bundle(
    program: Path, small_file: Path, tmp_path: Path
) -> None:
    field = draw_field(tmp_path / "field.fits", 150)
    sidecar = {key: SIDECAR[key] for key in ("outputs", "elevation")}
    models = {"bundle": small_file, "program": copied(program, tmp_path, **sidecar)}
    options = ["--window", "64", "--engine", "serial", "--thresh", "0.45", "--quiet"]
    labels = {}
    for name, model in models.items():
        out = tmp_path / f"{name}.zarr"
        with pytest.raises(SystemExit) as leave:
            commands.main(["segment", str(field), str(out), "--model", str(model), *options])
        assert leave.value.code == 0
        tree = xr.open_datatree(out, engine="zarr")
        labels[name] = tree["image/0/label"].values
        assert tree.attrs["tiling"] == "proven exact with a halo of 24 px"
    assert labels["program"].max() > 1
    np.testing.assert_array_equal(labels["program"], labels["bundle"])


# --- smallest image -------------------------------------------------------------------------------


def export_from(path: Path, least: tuple[int, int], step: int = 1) -> Path:
    """Save a network of reach 2 that accepts images from ``least`` steps."""
    torch.manual_seed(0)
    network = nn.Sequential(small.conv(3, 1, 2), nn.ReLU(), small.conv(3, 2, 1))
    sizes = {2 + i: step * torch.export.Dim("yx"[i], min=n) for i, n in enumerate(least)}
    example = (torch.zeros(1, 1, 1280, 1280),)
    program = torch.export.export(network.eval(), example, dynamic_shapes=(sizes,))
    torch.export.save(program, path)
    return path


@pytest.mark.parametrize("least", [(3, 3), (16, 16), (200, 200), (16, 330), (512, 20)])
def test_the_smallest_size_is_taken_into_account(tmp_path: Path, least: tuple[int, int]) -> None:
    model = load_model(export_from(tmp_path / "net.pt2", least))
    certificate = model.header.certificate
    assert certificate is not None
    assert (certificate.kind, certificate.halo, certificate.probed) == ("proven", 2, True)
    assert (model.header.minimum_size, model.halo) == (least, 2)


def test_the_smallest_size_of_a_network_with_a_stride(tmp_path: Path) -> None:
    path = tmp_path / "net.pt2"
    dims = {2 + i: 4 * torch.export.Dim(name, min=15) for i, name in enumerate("yx")}
    example = (torch.zeros(1, 1, 64, 96),)
    program = torch.export.export(small_unet().eval(), example, dynamic_shapes=(dims,))
    torch.export.save(program, path)
    model = load_model(path)
    assert (model.header.minimum_size, model.halo, model.stride) == ((60, 60), 24, 4)


def test_windows_at_the_border_have_the_smallest_size(tmp_path: Path) -> None:
    """Each 64th pixel begins a window, and the last window has a core of one pixel."""
    field = draw_field(tmp_path / "field.fits", 257)
    path = export_from(tmp_path / "net.pt2", (90, 120))
    found = []
    for window, halo in (("64", 119), ("320", 2)):
        spec = RunSpec(image=(str(field),), out="o.zarr", model=str(path), window=int(window))
        assert make_plan(spec, command="predict").halo == halo
        out = tmp_path / f"{window}.zarr"
        options = ["--model", str(path), "--engine", "serial", "--window", window, "--quiet"]
        with pytest.raises(SystemExit) as leave:
            commands.main(["predict", str(field), str(out), *options])
        assert leave.value.code == 0
        found.append(xr.open_datatree(out, engine="zarr")["image/0/source"].values)
    assert found[0].std() > 0
    np.testing.assert_array_equal(*found)


def test_an_image_below_the_smallest_size_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    field = draw_field(tmp_path / "field.fits", 150)
    path = export_from(tmp_path / "net.pt2", (16, 200))
    with pytest.raises(SystemExit) as leave:
        commands.main(["plan", str(field), str(tmp_path / "o.zarr"), "--model", str(path)])
    assert leave.value.code == 2
    error = capsys.readouterr().err
    assert "accepts images of at least 16 x 200 px, and the image has 150 x 150 px" in error
    assert error.count("\n") == 1
    with pytest.raises(ModelError, match="at least 16 x 200 px"):
        load_model(path).predictor(device="cpu")(np.zeros((1, 64, 64), np.float32))


def test_a_report_names_the_smallest_size(tmp_path: Path) -> None:
    report = fcnpipe.reach(export_from(tmp_path / "net.pt2", (16, 200)))
    assert report.exactness == "exact"
    assert report.sizes is not None
    assert [rule.minimum for rule in report.sizes] == [16, 200]


@pytest.mark.parametrize(
    ("sizes", "images", "shown"),
    [
        ({2: "s", 3: "s"}, 1, "related heights and widths only"),
        ({2: 600, 3: 10}, 1, "at least 600 px, above 512: export it without a minimum"),
        ({0: 4, 2: 10, 3: 10}, 4, "takes 4 images at once: export it with a batch of 1"),
    ],
)
def test_other_limits_are_refused(
    tmp_path: Path, sizes: dict[int, object], images: int, shown: str
) -> None:
    shared = torch.export.Dim("s")
    dims = {
        axis: torch.export.Dim(f"n{axis}", min=least) if isinstance(least, int) else shared
        for axis, least in sizes.items()
    }
    example = (torch.zeros(images, 1, 640, 640),)
    program = torch.export.export(small.conv(3, 1, 1).eval(), example, dynamic_shapes=(dims,))
    torch.export.save(program, tmp_path / "net.pt2")
    assert shown in refusal(tmp_path / "net.pt2")


# --- declared halos -------------------------------------------------------------------------------


def test_a_declared_halo_is_used_and_marked_unproven(tmp_path: Path) -> None:
    path = export(
        small.after_conv(nn.Sequential(nn.GroupNorm(1, 2), small.conv(3, 2, 1))),
        tmp_path / "net.pt2",
    )
    assert "1.0 (GroupNorm) normalises" in refusal(path)
    path.with_suffix(".json").write_text('{"declared_halo": 12, "declared_stride": 4}')
    model = load_model(path)
    assert model.header.reach == Reach(12, 12, 12, 12, 4, 4)
    assert model.header.certificate is not None
    assert (model.header.certificate.kind, model.halo, model.stride) == ("declared", 12, 4)
    out = tmp_path / "out.zarr"
    field = draw_field(tmp_path / "field.fits", 128)
    fcnpipe.segment(field, out, model=str(path), window=64, engine="serial", quiet=True)
    assert (
        "unproven: a halo of 12 px is declared"
        in xr.open_datatree(out, engine="zarr").attrs["tiling"]
    )
    found = fcnpipe.reach(path)
    assert (found.exactness, found.halo) == ("declared", 12)
    assert "not proven" in found.reason


def test_a_halo_is_declared_on_the_command_line(tmp_path: Path, program: Path) -> None:
    path = export(
        small.after_conv(nn.Sequential(small.Flip(), small.conv(1, 2, 1))), tmp_path / "net.pt2"
    )
    assert "declare its halo (--halo and --stride" in refusal(path)
    field = draw_field(tmp_path / "field.fits", 128)
    options = ["--window", "64", "--engine", "serial", "--quiet", "--halo", "8", "--stride", "4"]
    out = tmp_path / "out.zarr"
    assert run("segment", field, out, "--model", path, *options) == 0
    attributes = xr.open_datatree(out, engine="zarr").attrs
    assert attributes["tiling"] == "unproven: a halo of 8 px is declared, seams may show"
    assert json.loads(attributes["spec"])["halo"] == 8


@pytest.mark.parametrize(
    ("model", "options", "reason"),
    [
        ("net.pt2", ["--halo", "10", "--stride", "4"], "declared_halo=10 is not a multiple"),
        ("net.pt2", ["--stride", "4"], "stride=4 has no effect without option halo"),
        ("default", ["--halo", "10"], "halo of model default is known: leave it out"),
        ("none", ["--halo", "10"], "halo of model none is known"),
    ],
)
def test_a_halo_that_cannot_be_declared_is_refused(
    program: Path, tmp_path: Path, capsys: Any, model: str, options: list[str], reason: str
) -> None:
    copied(program, tmp_path)
    field = draw_field(tmp_path / "field.fits", 64)
    name = tmp_path / model if model.endswith(".pt2") else model
    assert run("segment", field, tmp_path / "out.zarr", "--model", name, "--quiet", *options) == 2
    assert reason in capsys.readouterr().err


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as leave:
        commands.main([str(argument) for argument in arguments])
    return int(leave.value.code or 0)


@pytest.mark.parametrize(
    "sidecar", [{"declared_halo": 10, "declared_stride": 4}, {"declared_halo": "far"}]
)
def test_an_invalid_declaration_in_the_sidecar_is_refused(
    program: Path, tmp_path: Path, sidecar: dict[str, object]
) -> None:
    assert "declared_halo=" in refusal(copied(program, tmp_path, **sidecar))


# --- refused programs -----------------------------------------------------------------------------


def test_programs_that_cannot_run_are_refused_with_a_fix(tmp_path: Path) -> None:
    fixed = export(small.conv(3, 1, 1), tmp_path / "fixed.pt2", None)
    assert "accepts images of 64 px only: export it with dynamic height and width" in refusal(fixed)
    capped = export(small.conv(3, 1, 1), tmp_path / "capped.pt2", max=512)
    assert "at most 512 px: export it without a maximum" in refusal(capped)
    shrinking = export(nn.Conv2d(1, 1, 5), tmp_path / "shrinking.pt2")
    assert "pad inside it" in refusal(shrinking)
    two = export(small.TwoOutputs(), tmp_path / "two.pt2")
    assert "must take one" in refusal(two)


def test_errors_in_the_sidecar_are_named(program: Path, tmp_path: Path) -> None:
    assert "reach is computed from" in refusal(copied(program, tmp_path, reach=1))
    assert "colour" in refusal(copied(program, tmp_path, colour="red"))
    few = [{"name": "a", "role": "source"}]
    assert "names 1 outputs: name them all" in refusal(copied(program, tmp_path, outputs=few))
    (tmp_path / "net.json").write_text("[1")
    assert "not a JSON object" in refusal(tmp_path / "net.pt2")


def test_onnx_and_other_files_are_refused(tmp_path: Path) -> None:
    assert "convert it to .pt2" in refusal(tmp_path / "net.onnx")
    assert "cannot be read: No such file or directory; check" in refusal(tmp_path / "absent.pt2")
    (tmp_path / "text.pt2").write_text("hello")
    assert "not an exported program" in refusal(tmp_path / "text.pt2")
    torch.save(nn.Conv2d(1, 1, 1), tmp_path / "pickle.pt2")
    assert "can run any code" in refusal(tmp_path / "pickle.pt2")


def tampered(program: Path, path: Path, part: str, change: Callable[[bytes], bytes]) -> Path:
    """Copy an archive, with one of its parts changed or added."""
    with zipfile.ZipFile(program) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as new:
        names = old.namelist()
        root = names[0].partition("/")[0]
        for name in names:
            data = old.read(name)
            new.writestr(name, change(data) if name == f"{root}/{part}" else data)
        if f"{root}/{part}" not in names:
            new.writestr(f"{root}/{part}", change(b""))
    return path


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("boom"),)


def bomb(_: bytes) -> bytes:
    import io

    file = io.BytesIO()
    torch.save(Bomb(), file)
    return file.getvalue()


GRAPH, WEIGHTS = "models/model.json", "data/weights/model_weights_config.json"
ATTACKS: dict[str, tuple[str, Callable[[bytes], bytes], str]] = {
    "pickled weight": (
        WEIGHTS,
        lambda b: b.replace(b'"use_pickle": false', b'"use_pickle": true', 1),
        "a pickle (down",
    ),
    "pickled object": (WEIGHTS, lambda b: b.replace(b"weight_0", b"opaque_obj_0", 1), "a pickle"),
    "pickled example": ("data/sample_inputs/model.pt", bomb, "a pickle of more than tensors"),
    "compiled library": ("data/aotinductor/model/net.so", lambda b: b"ELF", "data/aotinductor"),
    "old pickle": ("data/weights/model.pt", bomb, "data/weights/model.pt"),
    "call": (
        GRAPH,
        lambda b: b.replace(b"torch.ops.aten.cat.default", b"torch.serialization.os.system"),
        "a call of torch.serialization.os",
    ),
    "expression": (GRAPH, lambda b: b.replace(b"Integer(2)", b"exec(chr(97))"), "the expression"),
    "range": (GRAPH, lambda b: b.replace(b'"4*s', b'"breakpoint() or 4*s'), "the expression"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_program_that_could_run_code_is_refused_before_torch_reads_it(
    program: Path, tmp_path: Path, attack: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    part, change, reason = ATTACKS[attack]
    path = tampered(program, tmp_path / "evil.pt2", part, change)
    assert path.read_bytes() != program.read_bytes()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.export, "load", lambda *_: pytest.fail("torch read it"))
    assert reason in refusal(path)
    assert not (tmp_path / "boom").exists()


def test_guards_are_not_compiled(program: Path, tmp_path: Path) -> None:
    evil = tampered(
        program,
        tmp_path / "net.pt2",
        GRAPH,
        lambda b: b.replace(b"(L['x'].size()[3] // 2) != 1", b"open('boom', 'w') or True"),
    )
    assert evil.read_bytes() != program.read_bytes()
    assert load_model(evil).header.reach == load_model(program).header.reach
    assert not Path("boom").exists()

"""Model files of fcnpipe: saving, loading, and refusal of broken or foreign files."""

from __future__ import annotations

import hashlib
import json
import pickle
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from fcnpipe.core.errors import ModelError
from fcnpipe.networks import list_architectures, list_models, load_model, read_header, save_model
from fcnpipe.networks.architectures.registry import architecture_name
from fcnpipe.networks.base import ModelHeader, Reach, check_bands, parse_header, threshold_of
from fcnpipe.networks.models import loading
from fcnpipe.networks.models.bundle import Bundle
from tests.networks.conftest import small_unet


def fields(header: ModelHeader, **changes: object) -> dict[str, object]:
    return {**header.model_dump(mode="json"), **changes}


def changed(header: ModelHeader, **changes: object) -> ModelHeader:
    return ModelHeader.model_validate(fields(header, **changes))


def test_a_saved_model_is_loaded(small_file: Path, small_header: ModelHeader) -> None:
    model = load_model(small_file)
    assert isinstance(model, Bundle)
    assert model.header == small_header == read_header(small_file)
    assert (model.stride, model.halo, model.classes) == (4, 24, ("source", "star"))
    state = small_unet().state_dict()
    assert all(torch.equal(state[k], v) for k, v in model.module().state_dict().items())


def test_the_digest_is_that_of_the_bytes(small_file: Path) -> None:
    expected = hashlib.blake2b(small_file.read_bytes(), digest_size=16).hexdigest()
    assert load_model(small_file).digest == expected


def test_saving_twice_writes_the_same_bytes(
    small_file: Path, small_header: ModelHeader, tmp_path: Path
) -> None:
    again = save_model(tmp_path / "again.safetensors", small_unet().state_dict(), small_header)
    assert again.read_bytes() == small_file.read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["again.safetensors"]


def test_bundled_models_are_loaded_by_name(
    small_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "default.safetensors").write_bytes(small_file.read_bytes())
    monkeypatch.setattr(loading, "WEIGHTS", tmp_path)
    assert list_models() == ("default", "none")
    assert load_model("default").digest == load_model(small_file).digest


def test_all_bundled_models_load() -> None:
    for name in list_models():
        model = load_model(name)
        assert model.header.certificate is not None
        assert model.header.certificate.kind == "proven"


def test_the_folder_is_the_registry(small_header: ModelHeader) -> None:
    assert "unet" in list_architectures()
    assert architecture_name(small_unet()) == small_header.architecture == "unet"
    with pytest.raises(ModelError, match="add a module for it"):
        architecture_name(nn.Conv2d(1, 1, 1))


def refusal(path: object) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(str(path))
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_an_unknown_name_lists_the_known_ones() -> None:
    assert "none" in refusal("unheard")
    assert "does not exist: check" in refusal("/no/such/file.safetensors")


def test_pickles_are_refused_without_being_loaded(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    path.write_bytes(pickle.dumps({"a": 1}))
    assert "pickle" in refusal(path)
    disguised = tmp_path / "net.safetensors"
    torch.save({"a": torch.zeros(1)}, disguised)
    assert "not a safetensors file" in refusal(disguised)


def test_a_truncated_file_is_refused(small_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.safetensors"
    path.write_bytes(small_file.read_bytes()[:-100])
    assert "not a safetensors file" in refusal(path)


def test_a_file_without_header_is_refused(small_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "bare.safetensors"
    save_file(load_file(small_file), path)
    assert "no fcnpipe header" in refusal(path)


def write(path: Path, source: Path, header: object, drop: str = "") -> Path:
    tensors = {name: t for name, t in load_file(source).items() if name != drop}
    save_file(tensors, path, {"fcnpipe": json.dumps(header)})
    return path


def test_a_broken_header_is_refused_by_field(
    small_file: Path, small_header: ModelHeader, tmp_path: Path
) -> None:
    path = tmp_path / "broken.safetensors"
    assert "bands" in refusal(write(path, small_file, fields(small_header, bands=-1)))
    assert "colour" in refusal(write(path, small_file, fields(small_header, colour="red")))
    unknown = fields(small_header, architecture="bundle")
    assert "unet" in refusal(write(path, small_file, unknown))
    registry = fields(small_header, architecture="registry")
    assert "is not one of" in refusal(write(path, small_file, registry))
    foreign = fields(small_header, architecture="os.path")
    assert "is not one of" in refusal(write(path, small_file, foreign))
    more = fields(small_header, arguments={"bands": 1, "colour": 2})
    assert "refuses its arguments" in refusal(write(path, small_file, more))


def test_weights_of_another_shape_are_refused(
    small_file: Path, small_header: ModelHeader, tmp_path: Path
) -> None:
    wide = {**small_header.arguments, "base": 8}
    path = tmp_path / "wide.safetensors"
    assert "down.0.0.bias" in refusal(write(path, small_file, fields(small_header, arguments=wide)))
    lacking = write(path, small_file, fields(small_header), drop="head.bias")
    assert "head.bias is missing" in refusal(lacking)
    with pytest.raises(ModelError, match="its architecture"):
        save_model(path, small_unet(), changed(small_header, arguments=wide))


def test_another_suffix_is_refused(small_header: ModelHeader, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="must end in"):
        save_model(tmp_path / "net.pt", small_unet(), small_header)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"elevation": {"nothing": 1.0}}, "not among the outputs"),
        ({"outputs": [{"name": "heat", "role": "centre"}] * 2}, "share a name"),
        (
            {"outputs": [{"name": "heat", "role": "source"}, {"name": "blob", "role": "source"}]},
            "source",
        ),
    ],
)
def test_inconsistent_outputs_are_refused(
    small_header: ModelHeader, changes: dict[str, object], reason: str
) -> None:
    with pytest.raises(ModelError, match=reason):
        parse_header(json.dumps(fields(small_header, **changes)), "here")


def test_the_source_is_the_first_class(small_header: ModelHeader) -> None:
    outputs = [
        {"name": "g", "role": "class:galaxy"},
        {"name": "heat", "role": "centre"},
        {"name": "blob", "role": "source"},
    ]
    header = changed(small_header, outputs=outputs)
    assert header.classes == ("source", "galaxy")
    assert header.class_channels == (2, 0)


def test_thresholds_are_checked(small_header: ModelHeader) -> None:
    assert threshold_of(small_header) == 0.5
    assert threshold_of(small_header, 0.7) == 0.7
    with pytest.raises(ModelError, match=r"outside \(0, 1\]"):
        threshold_of(small_header, 1.5)


def test_bands_are_checked(small_header: ModelHeader) -> None:
    check_bands(small_header, 1)
    check_bands(load_model("none").header, 7)
    with pytest.raises(ModelError, match=r"takes 1 band\(s\) but the image has 3"):
        check_bands(small_header, 3)


def test_the_halo_covers_the_furthest_side_in_steps_of_the_stride() -> None:
    reach = Reach(3, 9, 4, 17, 2, 3, cell=12)
    assert (reach.stride, reach.halo, reach.minimum_halo) == (6, 18, 12)


def test_reading_a_header_does_not_import_torch(small_file: Path) -> None:
    code = (
        "import sys; from fcnpipe.networks import read_header;"
        f"read_header({str(small_file)!r}); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- networks that are too large ------------------------------------------------------------------


def write_header(path: Path, header: ModelHeader, **changes: object) -> Path:
    """Write the weights of the small network under a header with other fields."""
    text = json.dumps(fields(header, **changes))
    save_file(small_unet().state_dict(), path, {"fcnpipe": text})
    return path


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"base": 10**6, "depth": 30}, "base = 1000000 exceeds the"),
        ({"base": 10**400}, "base = more than 10**18 exceeds the"),
        ({"depth": 10**9}, "depth = 1000000000 exceeds the"),
        ({"depth": 3000}, "depth = 3000: the U-Net takes at most 16"),
        ({"base": 1000, "depth": 16}, "needs more"),
        ({"base": 16}, "needs more"),
        ({"bands": float("nan")}, "bands = nan exceeds the"),
    ],
)
def test_a_header_that_asks_for_a_huge_network_is_refused(
    small_header: ModelHeader, tmp_path: Path, changes: dict[str, object], shown: str
) -> None:
    arguments = {**small_header.arguments, **changes}
    path = write_header(tmp_path / "huge.safetensors", small_header, arguments=arguments)
    start = time.perf_counter()
    assert shown in refusal(path)
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize(
    ("architecture", "arguments"),
    [
        ("ciresan", {"members": 3000, "maps": 1, "hidden": 1}),
        ("ciresan", {"maps": 2000, "hidden": 2000}),
        ("fcn", {"width": 1000.0}),
        ("segnet", {"width": 500.0}),
    ],
)
def test_all_architectures_are_limited_to_the_weights_of_the_file(
    small_header: ModelHeader, tmp_path: Path, architecture: str, arguments: dict[str, object]
) -> None:
    changes = {"architecture": architecture, "arguments": arguments}
    path = write_header(tmp_path / "huge.safetensors", small_header, **changes)
    assert f"architecture '{architecture}' with its arguments needs more" in refusal(path)

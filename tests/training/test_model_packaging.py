"""A training ends in a model file that is proven to tile exactly and states its origin."""

import json

import pytest
import yaml
from typer.testing import CliRunner

from fcnpipe.cli.commands import app
from fcnpipe.core.errors import ModelError
from fcnpipe.networks import Bundle, load_model
from fcnpipe.training.model_packaging import pack

RECIPE = {
    "name": "tiny", "kind": "crowded", "network": {"base": 2, "depth": 1}, "steps": 4,
    "cooldown": 2, "warmup": 1, "batch": 1, "crop": 16, "scene_side": 64, "pool": 2, "opening": 2,
    "validation": 1, "precision": "bf16",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("training")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    return folder


def test_training_ends_in_a_model_file(folder):
    result = CliRunner().invoke(app, ["train", str(folder / "recipe.yaml"), str(folder)])
    assert result.exit_code == 0, result.output
    assert "4 tasks" in result.stderr
    model = load_model(result.stdout.strip())
    assert isinstance(model, Bundle)
    assert model.header.name == "tiny"
    assert model.header.certificate.kind == "proven"
    assert model.header.recipe["steps"] == model.header.recipe["step"] == 4
    assert model.header.recipe["pixels_seen"] == 4 * 16**2
    assert model.header.scores["validation_loss"] > 0


def test_a_training_can_start_from_the_weights_of_a_model(folder):
    again = RECIPE | {"begin": str(folder / "tiny.safetensors"), "rate": 0.0, "decay": 0.0}
    (folder / "again.yaml").write_text(yaml.safe_dump(again))
    arguments = ["train", str(folder / "again.yaml"), str(folder / "again"), "--quiet"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    first, second = (load_model(path).module() for path in (again["begin"], result.stdout.strip()))
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert one.equal(other)


def test_another_file_ending_is_refused(folder):
    assert json.loads((folder / "best.json").read_text())["validation"] > 0
    with pytest.raises(ModelError, match="safetensors"):
        pack(folder, folder / "tiny.pt")

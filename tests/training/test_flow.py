"""The Prefect flow of a training: its tasks, and that it resumes.

No server is used. What Prefect records of a task is tested in tests/flows.
"""

import logging

import pytest
import yaml

pytest.importorskip("prefect")

from fcnpipe.networks import load_model
from flows import train as flow

RECIPE = {
    "name": "tiny", "kind": "crowded", "network": {"base": 2, "depth": 1}, "steps": 4,
    "cooldown": 2, "warmup": 1, "batch": 1, "crop": 16, "scene_side": 64, "pool": 2, "opening": 2,
    "validation": 1,
}  # fmt: skip


@pytest.fixture
def tasks(monkeypatch):
    """Run tasks as plain functions; return (name, retries) of each, and (artifact, percent) of each progress report."""
    done: list[tuple[str, object]] = []

    def run_as_task(name, call, patience):
        done.append((name, patience.retries))
        call()

    monkeypatch.setattr(flow, "run_as_task", run_as_task)
    monkeypatch.setattr(flow, "create_progress_artifact", lambda *a, **k: "artifact")
    monkeypatch.setattr(flow, "update", lambda artifact, percent: done.append((artifact, percent)))
    monkeypatch.setattr(flow, "create_markdown_artifact", lambda *a, **k: done.append(("model", a)))
    monkeypatch.setattr(flow, "get_run_logger", lambda: logging.getLogger("test"))
    return done


def test_the_flow_trains_and_packs(tmp_path, tasks):
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(RECIPE))
    path = flow.train.fn(str(tmp_path / "r.yaml"), str(tmp_path), flow.Patience(retries=3))
    assert load_model(path).header.name == "tiny"
    assert [name for name, _ in tasks if name != "artifact"] == ["train", "pack", "model"]
    assert ("train", 3) in tasks
    assert [percent for name, percent in tasks if name == "artifact"][-1] == 100.0

"""The command line: what it makes of its arguments, what it says, and how it ends."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fcnpipe.cli import commands, options
from fcnpipe.core.errors import SpecError, TilesFailed
from fcnpipe.core.spec import RunSpec
from fcnpipe.pipeline import run

RESULT = run.Result("out.zarr", "out.parquet", sources=7, seconds=1.5, resumed=False)


@pytest.fixture
def invoke(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run the command as a user does: exit code, standard output, standard error."""

    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as leave:
            commands.main(arguments)
        captured = capsys.readouterr()
        assert isinstance(leave.value.code, int)
        return leave.value.code, captured.out, captured.err

    return call


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[RunSpec]:
    """Specs that reached the pipeline, which does nothing."""
    specs: list[RunSpec] = []

    def segment(spec: RunSpec, observer: Any) -> run.Result:
        specs.append(spec)
        return RESULT

    monkeypatch.setattr(run, "segment", segment)
    return specs


def fail(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def segment(spec: RunSpec, observer: Any) -> run.Result:
        raise error

    monkeypatch.setattr(run, "segment", segment)


# --- options --------------------------------------------------------------------------------------


def test_every_field_of_the_spec_is_an_option(invoke: Any) -> None:
    code, out, _ = invoke("segment", "--help")
    assert code == 0
    for name in set(RunSpec.model_fields) - {"image", "out"}:
        assert f"--{name.replace('_', '-')}" in out


def test_flags_reach_the_spec(invoke: Any, given: list[RunSpec]) -> None:
    code, out, _ = invoke(
        *("segment", "g.fits", "r.fits", "o.zarr", "--engine", "dask", "--workers", "3"),
        *("--thresh", "0.4", "--hdu", "2", "--keep-image", "--weight", "w.fits", "--tile", "2048"),
    )
    assert code == 0
    assert given == [
        RunSpec(
            image=("g.fits", "r.fits"),
            out="o.zarr",
            engine="dask",
            workers=3,
            thresh=0.4,
            hdu=2,
            keep_image=True,
            weight="w.fits",
            tile=2048,
        )
    ]
    assert "7 sources" in out


def test_a_wcs_that_is_no_use_is_told(invoke: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    told = replace(RESULT, no_sky="no such projection")
    monkeypatch.setattr(run, "segment", lambda spec, observer: told)
    code, out, err = invoke("segment", "a.fits", "out.zarr")
    assert (code, "7 sources" in out) == (0, True)
    assert err.splitlines()[-1].endswith(
        "ra and dec are NaN, the WCS is no use: no such projection"
    )
    assert "NaN" not in invoke("segment", "a.fits", "out.zarr", "--quiet")[2]


@pytest.mark.parametrize(("text", "value"), [("0", 0), ("12", 12), ("SCI", "SCI"), ("N2", "N2")])
def test_an_hdu_is_a_number_or_a_name(text: str, value: int | str) -> None:
    assert options.collect_options(hdu=text) == {"hdu": value}


def test_flags_win_over_the_file(invoke: Any, given: list[RunSpec], tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("image: a.fits\nout: a.zarr\nminarea: 9\nthresh: 0.7\nquiet: true\n")
    code, out, _ = invoke("segment", "--config", str(config), "--thresh", "0.2", "--no-quiet")
    assert code == 0
    assert (given[0].minarea, given[0].thresh, given[0].quiet) == (9, 0.2, False)
    assert given[0].image == ("a.fits",)
    assert out


def test_a_cluster_is_a_file(tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text("cluster_class: distributed.LocalCluster\ncluster_kwargs: {n_workers: 2}\n")
    found = options.collect_options(cluster=str(file))["cluster"]
    assert found == {
        "cluster_class": "distributed.LocalCluster",
        "cluster_kwargs": {"n_workers": 2},
    }


def test_predict_has_no_options_of_sources(invoke: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    specs: list[RunSpec] = []

    def predict(spec: RunSpec, observer: Any) -> run.Prediction:
        specs.append(spec)
        return run.Prediction("o.zarr", ("bulge", "disk"), seconds=1.5, resumed=False)

    monkeypatch.setattr(run, "predict", predict)
    code, out, _ = invoke("predict", "g.fits", "o.zarr", "--model", "m", "--prior", "p.fits")
    assert (code, out.splitlines()[-1]) == (0, "o.zarr: bulge, disk in 1.5 s")
    assert specs == [RunSpec(image=("g.fits",), out="o.zarr", model="m", prior="p.fits")]
    assert "--minarea" not in invoke("predict", "--help")[1]
    code, _, err = invoke("predict", "g.fits", "o.zarr", "--thresh", "3")
    assert (code, "--thresh" in err) == (2, True)


def test_quiet_says_nothing(invoke: Any, given: list[RunSpec]) -> None:
    assert invoke("segment", "a.fits", "a.zarr", "--quiet") == (0, "", "")


# --- how it ends ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["segment"], "IMAGE and OUT not given"),
        (["segment", "a.fits"], "OUT not given"),
        (["segment", "a.fits", "a.zarr", "--window", "10"], "window=10"),
        (["segment", "a.fits", "a.zarr", "--window", "ten"], "--window"),
        (["segment", "a.fits", "a.zarr", "--engine", "warp"], "'serial', 'threads', 'dask'"),
        (["segment", "a.fits", "a.zarr", "--frobnicate"], "--frobnicate"),
        (["segment", "a.fits", "a.zarr", "--config", "absent.yaml"], "absent.yaml"),
        (["segment", "a.fits", "a.zarr", "--config", ""], "config  cannot be read"),
        (["frobnicate"], "frobnicate"),
        (["info", "absent.zarr"], "absent.zarr"),
        (["verify", "absent.zarr"], "absent.zarr"),
        (["models", "show", "absent"], "absent"),
    ],
)
def test_what_is_wrong_is_one_line_and_exit_2(
    invoke: Any, given: list[RunSpec], arguments: list[str], said: str
) -> None:
    code, out, err = invoke(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("fcnpipe: ")
    assert err.count("\n") == 1
    assert said in err
    assert not given


def test_an_error_of_the_run_is_one_line(invoke: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fail(monkeypatch, SpecError("tile=7 is not a multiple of window=64: use --tile 64"))
    code, _, err = invoke("segment", "a.fits", "a.zarr")
    assert (code, err) == (2, "fcnpipe: tile=7 is not a multiple of window=64: use --tile 64\n")


def test_failed_tiles_are_named_and_exit_3(invoke: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fail(monkeypatch, TilesFailed(["r000c001 (predict: disk on fire)"]))
    code, _, err = invoke("segment", "a.fits", "a.zarr")
    assert code == 3
    assert "r000c001" in err
    assert err.count("\n") == 1


def test_an_interruption_is_130(invoke: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fail(monkeypatch, KeyboardInterrupt())
    code, _, err = invoke("segment", "a.fits", "a.zarr")
    assert code == 130
    assert "again" in err


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    fail(monkeypatch, ZeroDivisionError("ours"))
    with pytest.raises(ZeroDivisionError):
        commands.main(["segment", "a.fits", "a.zarr"])


def test_no_arguments_show_the_help(invoke: Any) -> None:
    code, out, _ = invoke()
    assert code == 2
    assert "segment" in out


def test_models_alone_lists_them(invoke: Any) -> None:
    alone, named = invoke("models"), invoke("models", "list")
    assert alone == named
    assert alone[0] == 0
    assert alone[1].splitlines()[0].startswith("default")


def test_version(invoke: Any) -> None:
    code, out, _ = invoke("--version")
    assert (code, out.split()[0]) == (0, "fcnpipe")


def test_help_imports_nothing_heavy() -> None:
    heavy = ("numpy", "torch", "zarr", "dask", "numba", "astropy", "xarray")
    code = (
        "import sys\n"
        "from fcnpipe.cli.commands import app, run_command\n"
        "run_command(lambda: app(args=['segment', '--help'], standalone_mode=False))\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_an_image_that_cannot_be_used_is_said_once(invoke: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "flat.npy", np.ones((70, 70), "f4"))
    arguments = (str(tmp_path / "flat.npy"), str(tmp_path / "o.zarr"), "--model", "none")
    code, _, error = invoke("segment", *arguments, "--engine", "serial")
    assert code == 2
    assert error.startswith("fcnpipe: ")
    assert error.count("has no noise") == error.count("\n") == 1

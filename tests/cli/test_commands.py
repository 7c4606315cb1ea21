"""The command line: options, output, help texts and exit codes."""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer

from fcnpipe.cli import commands, options
from fcnpipe.cli.error_handling import stopped_by_signals
from fcnpipe.core.errors import SpecError, TilesFailed
from fcnpipe.core.spec import RunSpec
from fcnpipe.networks import load_model
from fcnpipe.pipeline import run
from tests.deploy import commands as shown_commands

RESULT = run.Result("out.zarr", "out.parquet", sources=7, seconds=1.5, resumed=False)


@pytest.fixture
def invoke(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command as a user does; return the exit code, standard output and standard error."""

    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as exit:
            commands.main(arguments)
        captured = capsys.readouterr()
        assert isinstance(exit.value.code, int)
        return exit.value.code, captured.out, captured.err

    return call


@pytest.fixture
def received(monkeypatch: pytest.MonkeyPatch) -> list[RunSpec]:
    """Specs that reach the pipeline, which is replaced by a function that only records them."""
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


def test_flags_reach_the_spec(invoke: Any, received: list[RunSpec]) -> None:
    code, out, _ = invoke(
        *("segment", "g.fits", "r.fits", "o.zarr", "--engine", "dask", "--workers", "3"),
        *("--thresh", "0.4", "--hdu", "2", "--keep-image", "--weight", "w.fits", "--tile", "2048"),
    )
    assert code == 0
    assert received == [
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


def test_an_unusable_wcs_is_reported(invoke: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    result = replace(RESULT, no_sky="no such projection")
    monkeypatch.setattr(run, "segment", lambda spec, observer: result)
    code, out, err = invoke("segment", "a.fits", "out.zarr")
    assert (code, "7 sources" in out) == (0, True)
    assert err.splitlines()[-1].endswith(
        "ra and dec are NaN: the WCS cannot be used: no such projection"
    )
    assert "NaN" not in invoke("segment", "a.fits", "out.zarr", "--quiet")[2]


@pytest.mark.parametrize(("text", "value"), [("0", 0), ("12", 12), ("SCI", "SCI"), ("N2", "N2")])
def test_an_hdu_is_a_number_or_a_name(text: str, value: int | str) -> None:
    assert options.collect_options(hdu=text) == {"hdu": value}


def test_flags_take_precedence_over_the_file(
    invoke: Any, received: list[RunSpec], tmp_path: Path
) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("image: a.fits\nout: a.zarr\nminarea: 9\nthresh: 0.7\nquiet: true\n")
    code, out, _ = invoke("segment", "--config", str(config), "--thresh", "0.2", "--no-quiet")
    assert code == 0
    assert (received[0].minarea, received[0].thresh, received[0].quiet) == (9, 0.2, False)
    assert received[0].image == ("a.fits",)
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


def test_quiet_prints_nothing(invoke: Any, received: list[RunSpec]) -> None:
    assert invoke("segment", "a.fits", "a.zarr", "--quiet") == (0, "", "")


# --- errors and exit codes ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
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
def test_an_error_is_one_line_and_exit_code_2(
    invoke: Any, received: list[RunSpec], arguments: list[str], message: str
) -> None:
    code, out, err = invoke(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("fcnpipe: ")
    assert err.count("\n") == 1
    assert message in err
    assert not received


def test_an_error_of_the_run_is_one_line(invoke: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fail(monkeypatch, SpecError("tile=7 is not a multiple of window=64: use --tile 64"))
    code, _, err = invoke("segment", "a.fits", "a.zarr")
    assert (code, err) == (2, "fcnpipe: tile=7 is not a multiple of window=64: use --tile 64\n")


def test_failed_tiles_are_named_and_exit_code_3(
    invoke: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail(monkeypatch, TilesFailed(["r000c001 (predict: disk on fire)"]))
    code, _, err = invoke("segment", "a.fits", "a.zarr")
    assert code == 3
    assert "r000c001" in err
    assert err.count("\n") == 1


def test_an_interruption_is_exit_code_130(invoke: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fail(monkeypatch, KeyboardInterrupt())
    code, _, err = invoke("segment", "a.fits", "a.zarr")
    assert code == 130
    assert err == "fcnpipe: interrupted: run the same command again to resume\n"


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    fail(monkeypatch, ZeroDivisionError("ours"))
    with pytest.raises(ZeroDivisionError):
        commands.main(["segment", "a.fits", "a.zarr"])


def test_no_arguments_show_the_help(invoke: Any) -> None:
    code, out, _ = invoke()
    assert code == 2
    assert "segment" in out


def test_models_without_a_subcommand_lists_them(invoke: Any) -> None:
    alone, named = invoke("models"), invoke("models", "list")
    assert alone == named
    assert alone[0] == 0
    assert alone[1].splitlines()[0].startswith("default")


def test_version(invoke: Any) -> None:
    code, out, _ = invoke("--version")
    assert (code, out.split()[0]) == (0, "fcnpipe")


def list_commands(group: Any = None, prefix: str = "fcnpipe") -> Iterator[tuple[str, Any]]:
    """Yield the name and the click command of every command, including the groups."""
    group = group or typer.main.get_command(commands.app)
    yield prefix, group
    for name, command in getattr(group, "commands", {}).items():
        yield from list_commands(command, f"{prefix} {name}")


@pytest.mark.parametrize(("name", "command"), [*list_commands()], ids=str)
def test_help_ends_with_an_example_that_is_parsed(name: str, command: Any) -> None:
    title, _, example = command.epilog.partition(": ")
    assert title == "Example"
    assert example.startswith(name)
    assert len(command.epilog) <= 78
    shown_commands.check(tuple(shlex.split(example)))


def test_help_shows_the_defaults_of_the_default_model(invoke: Any) -> None:
    text = " ".join(re.sub("[│\n]", " ", invoke("segment", "--help")[1]).split())
    defaults = load_model("default").header.defaults
    for name in ("thresh", "minarea", "dynamics", "mincont"):
        option = text[text.index(f"--{name}") :]
        assert f"[default: the model's, {getattr(defaults, name):g}]" in option[:300]


def test_help_without_the_default_model_shows_no_values(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(options, "WEIGHTS", tmp_path)
    read = options._read_model_defaults.__wrapped__
    assert read() == {}
    (tmp_path / "default.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    assert read() == {}


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("window", "px [64<=x<=8192]"),
        ("fwhm", "px [0.5<x<=20]"),
        ("mask_bits", "N [x>=1]"),
        ("gain", "VALUE [x>0]"),
        ("satur_level", "VALUE"),
        ("engine", None),
        ("quiet", ""),
    ],
)
def test_help_shows_units_and_limits(name: str, shown: str | None) -> None:
    assert options._describe_values(name, RunSpec.model_fields[name]) == shown


def test_an_option_has_one_heading_in_the_help() -> None:
    names = [name for panel in options.PANELS.values() for name in panel]
    assert len(names) == len(set(names))
    assert set(names) <= set(RunSpec.model_fields) - {"image", "out"}


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


def test_an_unusable_image_is_reported_once(invoke: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "flat.npy", np.ones((70, 70), "f4"))
    arguments = (str(tmp_path / "flat.npy"), str(tmp_path / "o.zarr"), "--model", "none")
    code, _, error = invoke("segment", *arguments, "--engine", "serial")
    assert code == 2
    assert error.startswith("fcnpipe: ")
    assert error.count("has no noise") == error.count("\n") == 1


def test_an_interrupt_that_python_ignores_is_repeated() -> None:
    class Referent:
        """An object that a weak reference can refer to."""

    def interrupt(_: object) -> None:
        signal.raise_signal(signal.SIGINT)

    def work() -> None:
        referent = Referent()
        reference = weakref.ref(referent, interrupt)
        with stopped_by_signals():
            del referent  # calls back; Python ignores what the callback raises
            assert reference() is None
            time.sleep(5)

    with pytest.raises(KeyboardInterrupt):
        work()

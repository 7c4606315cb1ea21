"""Folder of the compiled kernels: where numba finds none, and what other users may have planted."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from fcnpipe.core import kernel_cache
from fcnpipe.core.kernel_cache import VARIABLE, ensure_cache_folder

ROOT = Path(kernel_cache.PACKAGE)
NAME = f"fcnpipe-kernels-{os.geteuid()}"
IMPORTS = ", ".join(f"fcnpipe.{n}" for n in ("science.sums", "networks.matched_filter", "stores"))


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let neither the package nor the home be writable, not for root either; return the temporary directory."""
    (tmp_path / "file").touch()
    monkeypatch.setattr(kernel_cache, "PACKAGE", str(tmp_path / "file"))
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    for name in ("XDG_CACHE_HOME", "TEMP", "TMP"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(VARIABLE, "")  # so that it is restored after the test
    monkeypatch.setitem(sys.modules, "numba", SimpleNamespace(config=SimpleNamespace(CACHE_DIR="")))
    (tmp_path / "tmp").mkdir()
    return tmp_path / "tmp"


def chosen() -> str:
    ensure_cache_folder()
    return os.environ[VARIABLE]


# --- where numba finds a folder -------------------------------------------------------------------


def test_a_writable_folder_of_numba_is_left_to_it(
    temporary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as context:
        context.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        assert chosen() == ""
    with monkeypatch.context() as context:
        context.setattr(kernel_cache, "PACKAGE", str(tmp_path / "package"))
        assert chosen() == ""
    monkeypatch.setenv(VARIABLE, str(tmp_path / "mine"))
    assert chosen() == str(tmp_path / "mine")
    assert not list(temporary.iterdir())


def test_all_folders_with_kernels_are_tried() -> None:
    kernels = re.compile(r"^from numba import .*njit|numba\.njit\(", re.M)
    files = [path for path in ROOT.rglob("*.py") if kernels.search(path.read_text())]
    folders = {str(path.parent.relative_to(ROOT)) for path in files}
    assert folders == set(kernel_cache.KERNEL_FOLDERS)


@pytest.mark.parametrize("folder", ["science", "networks/inference"])
def test_one_folder_of_another_user_is_enough(
    temporary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    """A package that was imported once by root has cache folders that its owner cannot write."""
    (tmp_path / "package" / folder).mkdir(parents=True)
    (tmp_path / "package" / folder / "__pycache__").touch()
    monkeypatch.setattr(kernel_cache, "PACKAGE", str(tmp_path / "package"))
    assert chosen() == str(temporary / NAME)


# --- where it finds none --------------------------------------------------------------------------


def test_the_folder_is_private_and_found_again(temporary: Path) -> None:
    folder = chosen()
    assert folder == str(temporary / NAME)
    assert os.stat(folder).st_mode & 0o777 == 0o700
    assert folder == sys.modules["numba"].config.CACHE_DIR
    os.environ[VARIABLE] = ""
    assert chosen() == folder


def test_a_chosen_folder_that_cannot_be_written_is_replaced(
    temporary: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "file" / "cache"))
    assert chosen() == str(temporary / NAME)


@pytest.mark.parametrize("home", ["XDG_CACHE_HOME", "HOME"])
def test_no_folder_is_made_in_the_current_one(
    temporary: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, home: str
) -> None:
    """A relative path is what is left of ``~`` for a user without a home and an entry in passwd."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv(home, "" if home == "XDG_CACHE_HOME" else "~")
    assert chosen() == str(temporary / NAME)
    assert not list(here.iterdir())


def plant_open_folder(path: Path) -> None:
    path.mkdir()
    path.chmod(0o777)


def plant_link(path: Path) -> None:
    target = path.with_name("elsewhere")
    target.mkdir(mode=0o700)
    path.symlink_to(target)


@pytest.mark.parametrize("plant", [plant_open_folder, plant_link, Path.touch])
def test_what_others_have_planted_is_not_used(temporary: Path, plant: object) -> None:
    assert callable(plant)
    plant(temporary / NAME)
    assert chosen() == str(temporary / f"{NAME}-2")


def test_a_folder_of_another_user_is_not_used(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (temporary / NAME).mkdir(mode=0o700)
    own = os.lstat

    def lstat(path: str) -> os.stat_result:
        found = own(path)
        fields = [*found[:4], os.geteuid() + 1, *found[5:]]
        return os.stat_result(fields) if path.endswith(NAME) else found

    monkeypatch.setattr(os, "lstat", lstat)
    assert chosen() == str(temporary / f"{NAME}-2")


def test_a_directory_where_others_can_rename_is_not_used(temporary: Path) -> None:
    temporary.chmod(0o777)
    assert not kernel_cache._is_safe_parent(str(temporary))
    (temporary / "inner").mkdir(mode=0o700)
    assert not kernel_cache._is_safe_parent(str(temporary / "inner"))
    assert not chosen().startswith(str(temporary))
    temporary.chmod(0o1777)
    assert kernel_cache._is_safe_parent(str(temporary))


# --- a package that nobody can write ---------------------------------------------------------------


@pytest.fixture
def installed(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """Copy the package so that nothing can be cached next to it; return the folder and the environment."""
    keep = shutil.ignore_patterns("__pycache__", "*.safetensors")
    shutil.copytree(ROOT, tmp_path / "site" / "fcnpipe", ignore=keep)
    for folder in kernel_cache.KERNEL_FOLDERS:
        (tmp_path / "site" / "fcnpipe" / folder / "__pycache__").touch()
    (tmp_path / "file").touch()
    (tmp_path / "tmp").mkdir()
    dropped = (VARIABLE, "XDG_CACHE_HOME", "TEMP", "TMP")
    environment = {k: v for k, v in os.environ.items() if k not in dropped}
    places = {"HOME": str(tmp_path / "file"), "TMPDIR": str(tmp_path / "tmp")}
    return tmp_path / "site", {**environment, **places, "PYTHONDONTWRITEBYTECODE": "1"}


def test_kernels_are_defined_and_stored_without_a_home(
    installed: tuple[Path, dict[str, str]],
) -> None:
    site, environment = installed
    code = (
        f"import {IMPORTS}, numba, numpy as np\n"
        "from fcnpipe.networks.inference.predictor import _asinh\n"
        "_asinh(np.ones(3, 'f4'), 1.0, np.empty(3, 'f4'))\n"
        "print(fcnpipe.__file__, numba.config.CACHE_DIR)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=site, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    folder = site.parent / "tmp" / NAME
    assert done.stdout.split() == [str(site / "fcnpipe" / "__init__.py"), str(folder)]
    assert len(list(folder.rglob("*.nbi"))) == 1


def test_without_any_folder_the_variable_is_named_in_one_line(
    installed: tuple[Path, dict[str, str]],
) -> None:
    site, environment = installed
    code = (
        "from fcnpipe.core import kernel_cache\n"
        "import os; os.environ.pop('NUMBA_CACHE_DIR')\n"
        "from fcnpipe.cli.commands import main\n"
        "main(['plan', 'missing.fits', 'out.zarr', '--model', 'none'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=site, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("fcnpipe: compiled kernels cannot be stored")
    assert done.stderr.count("\n") == 1
    assert "set NUMBA_CACHE_DIR to a folder" in done.stderr

"""Rules about our own code: import graph, dependencies, sizes, names."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
WITH_ASTROPY = ("catalogue", "wcs")
"""Modules of the science core that use celestial coordinates."""
FORBIDDEN = ("torch", "dask", "distributed", "zarr", "prefect", "astropy", "xarray")
MAX_FUNCTION_LINES = 50
MAX_FILE_LINES = 700
MAX_ROOMS, MAX_FLOORS = 22, 9
MAX_ARGUMENTS = 8
CONDA_NAMES = {"torch": "pytorch", "dask": "dask-core", "types-PyYAML": "types-pyyaml"}


def sources(*folders: str) -> Iterator[tuple[str, ast.Module]]:
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield str(path.relative_to(ROOT)), ast.parse(path.read_text())


def project() -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return found


def requirements(*extras: str) -> list[str]:
    optional = project()["optional-dependencies"]
    return [*project()["dependencies"], *(r for extra in extras for r in optional[extra])]


def package(requirement: str) -> str:
    match = re.match(r"[\w-]+", requirement)
    assert match
    return match[0]


# --- layers ---------------------------------------------------------------------------------------


def test_imports_go_down_only() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


def test_the_science_core_loads_nothing_else() -> None:
    names = sorted(path.stem for path in (ROOT / "fcnpipe" / "science").glob("[a-z]*.py"))
    modules = ", ".join(f"fcnpipe.science.{name}" for name in names if name not in WITH_ASTROPY)
    assert "fcnpipe.science.basins" in modules
    code = f"import sys, {modules}\nprint([n for n in {FORBIDDEN} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_module_imports_the_root() -> None:
    """Inside the package, only submodules are imported from the root package."""
    modules = {p.stem for p in (ROOT / "fcnpipe").iterdir() if p.suffix == ".py" or p.is_dir()}
    wrong = [
        f"{path}:{node.lineno} {alias.name}"
        for path, tree in sources("fcnpipe")
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "fcnpipe"
        for alias in node.names
        if alias.name not in modules
    ]
    wrong += [
        f"{path}:{node.lineno} import fcnpipe"
        for path, tree in sources("fcnpipe")
        for node in ast.walk(tree)
        if isinstance(node, ast.Import) and any(alias.name == "fcnpipe" for alias in node.names)
    ]
    assert not wrong


def test_root_functions_are_independent_of_imported_submodules() -> None:
    code = (
        "import fcnpipe, fcnpipe.networks.reach, fcnpipe.pipeline.run\n"
        "print(callable(fcnpipe.segment), callable(fcnpipe.open), callable(fcnpipe.reach))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True"] * 3


def test_importing_the_root_loads_nothing() -> None:
    code = f"import sys, fcnpipe\nprint([n for n in {('numpy', *FORBIDDEN)} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_late_imports_are_for_the_command_line_and_heavy_packages() -> None:
    """An import inside a function hides a dependency; only heavy packages are imported late."""
    allowed = ("fcnpipe/cli/", "fcnpipe/networks/", "fcnpipe/engines/__init__.py")
    late = [
        f"{path}:{node.lineno} {node.module}"
        for path, tree in sources("fcnpipe")
        if not path.startswith(allowed)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fcnpipe")
    ]
    assert not late


def test_third_party_packages_stay_in_their_packages() -> None:
    """Imports inside functions count too."""
    allowed = {
        "science": {"numpy", "scipy", "numba"},
        "core": {"numpy", "pydantic", "yaml"},
    }
    wrong = []
    for path, tree in sources("fcnpipe"):
        package = path.split("/")[1]
        names = {
            name.partition(".")[0] for node in ast.walk(tree) for name in imported(node)
        } - set(sys.stdlib_module_names)
        names -= {"fcnpipe"}
        if package in allowed and Path(path).stem not in WITH_ASTROPY:
            wrong += [f"{path}: {name}" for name in names - allowed[package]]
        if package != "engines":
            wrong += [f"{path}: {name}" for name in names & {"dask", "distributed"}]
        wrong += [f"{path}: {name}" for name in names & {"prefect", "flows"}]
    assert not wrong


# --- import graph ---------------------------------------------------------------------------------
#
# A room is a folder directly below fcnpipe/, a file there, flows/ or benchmarks/. A room stands one
# floor above the highest room that it imports. All import statements count, those in functions and
# under TYPE_CHECKING too; the root's own names for type checkers, which nothing below may import, do not.


def module_name(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def imports() -> dict[str, set[str]]:
    """Return the modules that each module of fcnpipe, flows and benchmarks imports."""
    trees = {module_name(path): tree for path, tree in sources("fcnpipe", "flows", "benchmarks")}
    graph: dict[str, set[str]] = {name: set() for name in trees}
    for name, tree in trees.items():
        if name != "fcnpipe":
            for node in ast.walk(tree):
                graph[name] |= {target for target in targets(node) if target in trees} - {name}
    return graph


def targets(node: ast.AST) -> list[str]:
    """Return the modules that a statement may import: a name can be a submodule."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
        return [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return []


def room(module: str) -> str:
    top, *rest = module.split(".")
    return f"fcnpipe/{rest[0]}" if top == "fcnpipe" and rest else top


def room_graph() -> dict[str, set[str]]:
    graph: dict[str, set[str]] = {}
    for name, found in imports().items():
        here = graph.setdefault(room(name), set())
        here |= {room(target) for target in found} - {room(name)}
    return graph


def test_no_circle_between_files() -> None:
    # An import of a package runs its __init__, which imports its modules: only what a file names counts.
    graph = {
        name: {t for t in found if not name.startswith(f"{t}.")}
        for name, found in imports().items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_no_circle_between_rooms_and_few_floors() -> None:
    graph = room_graph()
    floors: dict[str, int] = {}
    for name in TopologicalSorter(graph).static_order():  # raises on a circle
        floors[name] = 1 + max((floors[below] for below in graph[name]), default=0)
    assert len(floors) <= MAX_ROOMS, sorted(floors)
    assert max(floors.values()) <= MAX_FLOORS, floors


# --- packages -------------------------------------------------------------------------------------


def test_environment_and_pyproject_agree() -> None:
    *listed, last = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    wanted = [
        CONDA_NAMES.get(package(r), package(r)) + r[len(package(r)) :]
        for r in requirements("dask", "prefect", "remote", "test")
    ]
    assert [*listed, *last["pip"]] == [f"python{project()['requires-python']}", "pip", *wanted]


def test_constraints_pin_all_dependencies() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {normal(line.partition("==")[0]) for line in lines if "==" in line}
    assert all("==" in line and "+" not in line for line in lines if line and line[0] != "#")
    assert {normal(package(r)) for r in requirements("dask", "prefect", "remote", "test")} <= pinned


def test_dependencies_are_those_that_are_imported() -> None:
    owners = packages_distributions()
    asked = {normal(package(r)) for r in requirements("dask", "test")}
    used = {normal(owner) for name in third_party("fcnpipe") for owner in owners.get(name, [name])}
    assert used - asked == set()
    # The demo reads an image that scikit-image ships, not its code.
    unused = {normal(package(r)) for r in requirements()} - used - {"scikit-image"}
    assert unused == set(), "dependencies that are not imported"


def third_party(folder: str) -> set[str]:
    names = {
        name.partition(".")[0]
        for _, tree in sources(folder)
        for node in ast.walk(tree)
        for name in imported(node)
    }
    return names - set(sys.stdlib_module_names) - {"fcnpipe", "flows"}


def imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.level == 0:
        return [node.module or ""]
    return []


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


# --- sizes and names -------------------------------------------------------------------------------


def functions(*folders: str) -> Iterator[tuple[str, ast.FunctionDef]]:
    for path, tree in sources(*folders):
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                yield f"{path}:{node.lineno} {node.name}", node


def test_functions_are_short() -> None:
    wrong = []
    for place, node in functions("fcnpipe", "flows"):
        length = (node.end_lineno or 0) - node.body[0].lineno + 1
        count = len(node.args.args) + len(node.args.kwonlyargs)
        if length > MAX_FUNCTION_LINES or count > MAX_ARGUMENTS:
            wrong.append(f"{place}: {length} lines, {count} arguments")
    assert not wrong


def test_no_file_is_too_long() -> None:
    lengths = {
        path: len((ROOT / path).read_text().splitlines()) for path, _ in sources("fcnpipe", "flows")
    }
    assert not {path: n for path, n in lengths.items() if n > MAX_FILE_LINES}


@pytest.mark.parametrize("word", ["utils", "helpers", "common", "manager", "misc"])
def test_module_names_state_a_subject(word: str) -> None:
    assert not [path for path, _ in sources("fcnpipe", "flows") if word in path]


def test_no_file_contains_a_path_of_a_machine() -> None:
    homes = re.compile(r"(?<![\w.])/(work|home|root|Users)/")
    suffixes = {".py", ".md", ".toml", ".yaml", ".yml", ".txt", ".json", ""}
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    files = [ROOT / name for name in tracked.stdout.splitlines()]
    wrong = [
        path.name
        for path in files
        if path.suffix in suffixes and path.is_file() and path != Path(__file__)
        if homes.search(path.read_text(errors="ignore"))
    ]
    assert not wrong

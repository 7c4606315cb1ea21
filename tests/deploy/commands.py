"""Collection of the command lines in deploy/ and in the guides, and a check with the parser of each program.

Commands are in comments after three spaces, in ``sh`` blocks of Markdown, and in the fields of the formats:
``command`` of compose and Kubernetes, ``ExecStart`` of systemd, ``CMD`` of Docker.
"""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
GUIDES = ("README.md", "deploy/README.md", "docs/operations.md")
_SYSTEM_PROGRAMS = """
    . cd chmod conda createdb curl do done echo exec exit fi git if install journalctl openssl pg_dump
    pg_restore pip rsync sacct scancel scontrol set source squeue sudo then trap useradd wait while
"""
SYSTEM_PROGRAMS = frozenset(_SYSTEM_PROGRAMS.split())
"""Programs of the system and words of the shell, for which only the existence of files is checked."""


@dataclass(frozen=True)
class Shown:
    """A command line in a file."""

    place: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.place}: {' '.join(self.words)}"


def list_commands() -> list[Shown]:
    """Return all command lines."""
    found = [*_in_comments(), *_in_guides(), *_in_units(), *_in_containers(), *_in_the_image()]
    return [Shown(place, tuple(words)) for place, words in found]


# --- collection -----------------------------------------------------------------------------------

Found = Iterator[tuple[str, list[str]]]


def _in_comments() -> Found:
    for path in sorted(DEPLOY.rglob("*")):
        if path.is_file() and path.suffix != ".md":
            lines = re.findall(r"^#   (?! )(.+)$", path.read_text(), re.MULTILINE)
            yield from _split(str(path.relative_to(ROOT)), "\n".join(lines))


def _in_guides() -> Found:
    for name in GUIDES:
        for block in shell_blocks(name):
            yield from _split(name, block)


def shell_blocks(name: str) -> list[str]:
    """Return the ``sh`` blocks of a Markdown file."""
    return re.findall(r"^```sh\n(.*?)^```", (ROOT / name).read_text(), re.MULTILINE | re.DOTALL)


def _in_units() -> Found:
    for path in sorted((DEPLOY / "systemd").glob("*.service")):
        for line in re.findall(r"^ExecStart=(.+)$", path.read_text(), re.MULTILINE):
            yield from _split(path.name, line.replace("/opt/fcnpipe/.venv/bin/", ""))


def _in_containers() -> Found:
    for name, service in load("compose.yaml")["services"].items():
        yield from _of_container(f"compose {name}", service.get("command", []))
        yield from _of_container(f"compose {name}", service.get("healthcheck", {}).get("test", []))
    for place, pod in pods():
        for container in [*pod.get("initContainers", []), *pod["containers"]]:
            command = container["command"] + container["args"]
            yield from _of_container(f"{place} {container['name']}", command)


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the file name and the specification of each pod in the Kubernetes manifests."""
    for path in sorted((DEPLOY / "kubernetes/cpu").glob("*.yaml")):
        for document in documents(f"kubernetes/cpu/{path.name}"):
            spec = document.get("spec", {})
            if document["kind"] == "Deployment":
                yield path.name, spec["template"]["spec"]
            if document["kind"] == "DaskCluster":
                yield path.name, spec["scheduler"]["spec"]
                yield path.name, spec["worker"]["spec"]


def _of_container(place: str, words: list[str]) -> Found:
    words = words[1:] if words[:1] == ["CMD"] else words
    if words[:2] == ["sh", "-euc"]:
        yield from _split(place, words[2])
    elif words:
        yield place, words


def _in_the_image() -> Found:
    text = (DEPLOY / "Dockerfile").read_text()
    for line in re.findall(r"^(?:CMD|ENTRYPOINT) (\[.+\])$", text, re.MULTILINE):
        yield "Dockerfile", ast.literal_eval(line)


def load(name: str) -> Any:
    """Read a YAML file of deploy/."""
    return yaml.safe_load((DEPLOY / name).read_text())


def documents(name: str) -> list[Any]:
    """Read the documents of a YAML file of deploy/."""
    return list(yaml.safe_load_all((DEPLOY / name).read_text()))


def _split(place: str, script: str) -> Found:
    """Yield the commands of a script, which are separated by line ends, &&, ; or |."""
    for line in script.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="&;|")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set("&;|"):
                if words:
                    yield place, _without_variables(words)
                words = []
            else:
                words.append(word)


def _without_variables(words: list[str]) -> list[str]:
    while len(words) > 1 and re.fullmatch(r"\w+=.*", words[0]):
        words = words[1:]
    return words


# --- checks ---------------------------------------------------------------------------------------


def check(words: tuple[str, ...]) -> None:
    """Parse a command line with the parser of its program, without running it.

    Raises
    ------
    Exception
        The error of the program's parser; ValueError if the program is unknown.
    """
    program, rest = words[0].rpartition("/")[2], list(words[1:])
    if program in _CHECKS:
        _CHECKS[program](rest)
    elif re.fullmatch(r"\w+=.*", words[0]) or program in SYSTEM_PROGRAMS:
        _check_files(rest)
    else:
        raise ValueError(f"{words[0]} is an unknown program: add a check for it")


def _check_files(words: list[str]) -> None:
    missing = [
        word
        for word in words
        if re.match(r"(deploy|flows|docs)/[\w./-]+$", word) and not _exists(word)
    ]
    assert not missing, f"no such file: {missing}"


def _exists(name: str) -> bool:
    return name == "deploy/.env" or (ROOT / name).exists()


def _check_fcnpipe(words: list[str]) -> None:
    from fcnpipe.cli.commands import app

    _check_files(words)
    group: Any = typer.main.get_command(app)
    while hasattr(group, "get_command") and words and not words[0].startswith("-"):
        name, *words = words
        command = group.get_command(None, name)
        assert command is not None, f"fcnpipe has no command {name}"
        group = command
    _parse(group, words)


def _parse(command: Any, words: list[str]) -> None:
    """Parse with click, or with the copy of click in typer."""
    command.make_context("command", list(words), resilient_parsing="--help" in words)


def _check_dask(words: list[str]) -> None:
    from distributed.cli import dask_scheduler, dask_worker

    _parse({"scheduler": dask_scheduler, "worker": dask_worker}[words[0]].main, words[1:])


def _check_prefect(words: list[str]) -> None:
    from prefect.cli import _app

    _check_files(words)
    app: Any = _app._app
    tokens = [word for word in words if word != "--no-prompt"]
    app.parse_args(tokens, exit_on_error=False, print_error=False)


def _check_python(words: list[str]) -> None:
    if words[0] == "-c":
        compile(words[1], "command", "exec")
        return
    if words[1].partition(".")[0] in ("pip", "venv", "pytest"):
        return
    module = importlib.import_module(words[1])
    app = typer.Typer()
    app.command()(module.start)
    _parse(typer.main.get_command(app), words[2:])


def _check_docker(words: list[str]) -> None:
    _check_files(words)
    if words[0] == "build":
        targets = re.findall(r"AS ([\w-]+)", (DEPLOY / "Dockerfile").read_text())
        assert words[words.index("--target") + 1] in targets
    if words[0] == "run":
        image = next(i for i, word in enumerate(words) if word.startswith("fcnpipe:"))
        check(tuple(words[image + 1 :]))
    if words[:1] == ["compose"] and "exec" in words:
        service, *inner = [w for w in words[words.index("exec") + 1 :] if w != "-T"]
        assert service in load("compose.yaml")["services"]
        check(tuple(inner))


def _check_sudo(words: list[str]) -> None:
    if words[0] != "systemctl":
        return check(tuple(words))
    units = [word for word in words if re.search(r"\.(service|timer)$", word)]
    names = [re.sub(r"@.*(?=\.)", "@", unit) for unit in units]
    assert all((DEPLOY / "systemd" / name).exists() for name in names), names
    return None


def _check_make(words: list[str]) -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(words) <= set(targets) or "=" in words[-1]


_CHECKS = {
    "fcnpipe": _check_fcnpipe,
    "dask": _check_dask,
    "prefect": _check_prefect,
    "python": _check_python,
    "docker": _check_docker,
    "sudo": _check_sudo,
    "make": _check_make,
    "kubectl": _check_files,
    "sbatch": _check_files,
    "pg_isready": _check_files,
}

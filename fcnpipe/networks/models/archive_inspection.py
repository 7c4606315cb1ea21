"""Security inspection of ``.pt2`` archives, before torch reads them.

``torch.export.load`` unpickles without limits if a payload asks for it, links compiled libraries,
and evaluates expressions and guards as Python. A network needs none of that, so an archive may
contain only a graph of torch operators, plain arrays, and sizes that are arithmetic expressions.
Everything else is refused.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from fcnpipe.core.errors import ModelError

_ALLOWED_PARTS = re.compile(
    r"models/model\.json|data/(weights|constants)/model_(weights|constants)_config\.json"
    r"|data/weights/weight_\d+|data/constants/tensor_\d+|data/sample_inputs/model\.pt"
    r"|archive_format|archive_version|byteorder|version|\.data/\w+|\.format_version|\.storage_alignment"
)
_ALLOWED_CALL = re.compile(
    r"torch\.ops\.\w+\.\w+(\.\w+)?|torch\.sym_\w+|math\.(ceil|floor|trunc|sqrt)"
    r"|_operator\.(getitem|add|sub|mul|floordiv|truediv|mod|neg|pos|pow|eq|ne|lt|le|gt|ge|and_|or_|not_)"
)
_EXPRESSION = re.compile(r"[\w\s'(),=*/+<>-]*")
_ALLOWED_WORD = re.compile(
    r"Symbol|Integer|Rational|Float|Add|Mul|Pow|Max|Min|Eq|Ne|Lt|Le|Gt|Ge|And|"
    r"Or|Not|True|False|FloorDiv|ModularIndexing|Where|PythonMod|Mod|CleanDiv|"
    r"CeilDiv|CeilToInt|FloorToInt|LShift|RShift|PowByNatural|FloatPow|FloatTrueDiv|"
    r"IntTrueDiv|TruncToFloat|TruncToInt|RoundToInt|RoundDecimal|ToFloat|Identity|"
    r"StrictLessThan|LessThan|StrictGreaterThan|GreaterThan|Equality|Unequality|Zero|"
    r"One|NegativeOne|Half|BooleanTrue|BooleanFalse|positive|negative|nonnegative|"
    r"nonpositive|integer|real|zero|nonzero|finite|even|odd|evaluate|int_oo|oo|zoo|"
    r"precision"
)
_SYMBOL = re.compile(r"[suz]\d+")


def read_archive(path: Path) -> bytes:
    """Read an exported program, and check that it holds only a graph and arrays.

    Returns
    -------
    bytes
        Content of the file. The caller passes these bytes to torch, so torch reads exactly what was
        inspected, even if the file is replaced.

    Raises
    ------
    ModelError
        If the file cannot be read, is not such an archive, or holds a pickle, compiled code, a call of
        something other than a torch operator, or an expression that is not arithmetic.
    """
    try:
        data = path.read_bytes()
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            _check_parts(archive, path)
            graph = json.loads(_read(archive, "models/model.json"))
            for kind in ("weights", "constants"):
                payload = json.loads(_read(archive, f"data/{kind}/model_{kind}_config.json"))
                _check_payload(payload, path)
            torch.load(io.BytesIO(_read(archive, "data/sample_inputs/model.pt")), weights_only=True)
    except OSError as error:
        raise ModelError(f"model {path} cannot be read: {error.strerror}; check the path") from None
    except (zipfile.BadZipFile, KeyError, json.JSONDecodeError) as error:
        raise ModelError(
            f"model {path} is not an exported program ({error}): write it with torch.export.save"
        ) from None
    except Exception as error:  # any error of the restricted unpickler
        if isinstance(error, ModelError):
            raise
        raise _refusal(path, "a pickle of more than tensors") from None
    _check_graph(graph, path)
    return data


def _refusal(path: Path, content: str) -> ModelError:
    return ModelError(
        f"model {path} holds {content}, which can run any code: "
        "export a plain network of tensors with torch.export.save"
    )


def _parts(archive: zipfile.ZipFile) -> list[tuple[str, str]]:
    """Return (folder, part) of all entries. torch reads all parts from the folder of the first entry."""
    names = [name for name in archive.namelist() if not name.endswith("/")]
    return [(name.partition("/")[0], name.partition("/")[2]) for name in names]


def _check_parts(archive: zipfile.ZipFile, path: Path) -> None:
    parts = _parts(archive)
    folders, names = {folder for folder, _ in parts}, [part for _, part in parts]
    unknown = [name for name in names if not _ALLOWED_PARTS.fullmatch(name)]
    if unknown or len(folders) != 1 or len(set(names)) < len(names):
        raise _refusal(path, unknown[0] if unknown else "parts of two archives")


def _read(archive: zipfile.ZipFile, part: str) -> bytes:
    return archive.read(f"{_parts(archive)[0][0]}/{part}")


def _check_payload(payload: dict[str, Any], path: Path) -> None:
    for name, entry in payload["config"].items():
        is_array = re.fullmatch(r"(weight|tensor)_\d+", entry["path_name"])
        if entry["use_pickle"] is not False or not is_array:
            raise _refusal(path, f"a pickle ({name})")


def _check_graph(graph: dict[str, Any], path: Path) -> None:
    for key, value in _walk(graph):
        if key == "target" and isinstance(value, str) and not _ALLOWED_CALL.fullmatch(value):
            raise _refusal(path, f"a call of {value}")
        if key == "expr_str" and not _is_arithmetic(value):
            raise _refusal(path, f"the expression {value!r}")
    for name in graph.get("range_constraints", {}):
        if not _is_arithmetic(name):
            raise _refusal(path, f"the expression {name!r}")


def _walk(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield all (key, value) pairs within a JSON value."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield key, item
            yield from _walk(item)
    elif isinstance(value, list):
        for item in value:
            yield from _walk(item)


def _is_arithmetic(text: Any) -> bool:
    words = re.findall(r"[A-Za-z_]\w*", text) if isinstance(text, str) else []
    known = all(_ALLOWED_WORD.fullmatch(word) or _SYMBOL.fullmatch(word) for word in words)
    return isinstance(text, str) and known and _EXPRESSION.fullmatch(text) is not None

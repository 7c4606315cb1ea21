"""What decides the bytes of a result, and how two runs differ in it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from fcnpipe.core.errors import StoreError

SHOWN = 12
"""Characters that are shown of a long text."""


@dataclass(frozen=True, slots=True)
class RunIdentity:
    """What decides the bytes of a result; two runs with one identity may share a store.

    Attributes
    ----------
    input_digest : str
        Digest of image, weight and mask.
    model_digest : str
        Digest of the model.
    code_version : str
        Version of fcnpipe.
    spec : dict
        Options that decide the result, JSON-ready; run-time options left out.
    """

    input_digest: str
    model_digest: str
    code_version: str
    spec: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Digest of everything, hexadecimal: the run key."""
        return hashlib.sha256(_canonical(asdict(self)).encode()).hexdigest()[:32]

    def attributes(self) -> dict[str, str]:
        """Give root attributes that `load_identity` reads."""
        return {
            "run_key": self.key,
            "input_digest": self.input_digest,
            "model_digest": self.model_digest,
            "code_version": self.code_version,
            "spec": _canonical(self.spec),
        }

    def differences(self, other: RunIdentity) -> list[str]:
        """Name what differs from ``other``, as ``name: theirs -> ours``, in a stable order.

        Notes
        -----
        An option that one of the two does not know comes from another state of the code, which
        may have the same version.
        """
        ours, theirs = _flatten(self), _flatten(other)
        found = [
            f"{name}: {_compare(theirs.get(name), ours.get(name))}"
            for name in sorted(ours.keys() | theirs.keys())
            if ours.get(name) != theirs.get(name)
        ]
        if strange := sorted(ours.keys() ^ theirs.keys()):
            found.append(
                f"the code that began it (fcnpipe {other.code_version} without or with "
                f"{', '.join(strange)})"
            )
        return found

    def check_same_run(self, place: object, other: RunIdentity) -> None:
        """Raise StoreError, unless what lies at ``place`` was begun by this very run."""
        if other.key != self.key:
            raise StoreError(
                f"{place} belongs to another run, it differs in {', '.join(self.differences(other))}; "
                "choose another output, or start afresh with --overwrite"
            )


def load_identity(attributes: Mapping[str, Any]) -> RunIdentity:
    """Read what `RunIdentity.attributes` wrote."""
    return RunIdentity(
        input_digest=attributes["input_digest"],
        model_digest=attributes["model_digest"],
        code_version=attributes["code_version"],
        spec=json.loads(attributes["spec"]),
    )


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)


def _flatten(identity: RunIdentity) -> dict[str, Any]:
    flat = {
        "input digest": identity.input_digest,
        "model digest": identity.model_digest,
        "fcnpipe version": identity.code_version,
    }
    return flat | {f"option {k}": v for k, v in json.loads(_canonical(identity.spec)).items()}


def _compare(*values: Any) -> str:
    """Give 'one -> other', of long texts from where they differ."""
    texts = [value if isinstance(value, str) else _canonical(value) for value in values]
    pairs = enumerate(zip(*texts, strict=False))
    shared = next((i for i, (one, other) in pairs if one != other), min(map(len, texts)))
    return " -> ".join(_shorten(text, shared if shared >= SHOWN else 0) for text in texts)


def _shorten(text: str, start: int) -> str:
    if len(text) <= 2 * SHOWN:
        return text
    rest = text[start : start + SHOWN]
    return f"{'...' if start else ''}{rest}..." if rest else "...(no more)"

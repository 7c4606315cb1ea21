"""Identity of a run (the run key): input, model, code version and options that determine the result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from fcnpipe.core.errors import StoreError

MAX_CHARACTERS = 12
"""Number of characters of a long value that a message shows."""


@dataclass(frozen=True, slots=True)
class RunIdentity:
    """Everything that determines the bytes of a result.

    Two runs with equal identities produce the same bytes and may share a store.

    Attributes
    ----------
    input_digest : str
        Digest of image, weight and mask.
    model_digest : str
        Digest of the model.
    code_version : str
        Version of fcnpipe.
    spec : dict
        Options that determine the result, JSON-ready, without run-time options.
    """

    input_digest: str
    model_digest: str
    code_version: str
    spec: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """The run key: 32 hexadecimal digits of the SHA-256 of all fields."""
        return hashlib.sha256(_canonical(asdict(self)).encode()).hexdigest()[:32]

    def attributes(self) -> dict[str, str]:
        """Return the root attributes that `load_identity` reads."""
        return {
            "run_key": self.key,
            "input_digest": self.input_digest,
            "model_digest": self.model_digest,
            "code_version": self.code_version,
            "spec": _canonical(self.spec),
        }

    def differences(self, other: RunIdentity) -> list[str]:
        """Return the differences from ``other`` as ``name: theirs -> ours``, in a stable order.

        Notes
        -----
        If only one of the two runs has an option, another state of the code started ``other``, even
        if the versions are equal.
        """
        ours, theirs = _flatten(self), _flatten(other)
        found = [
            f"{name}: {_describe_change(theirs.get(name), ours.get(name))}"
            for name in sorted(ours.keys() | theirs.keys())
            if ours.get(name) != theirs.get(name)
        ]
        if one_sided := sorted(ours.keys() ^ theirs.keys()):
            found.append(
                f"the code that started it (fcnpipe {other.code_version}; only one of the two runs has "
                f"{', '.join(one_sided)})"
            )
        return found

    def check_same_run(self, place: object, other: RunIdentity) -> None:
        """Raise StoreError unless ``other``, the identity found at ``place``, is equal to this one."""
        if other.key != self.key:
            raise StoreError(
                f"{place} belongs to another run, it differs in {', '.join(self.differences(other))}; "
                "choose another output, or start from scratch with --overwrite"
            )


def load_identity(attributes: Mapping[str, Any]) -> RunIdentity:
    """Return the identity that `RunIdentity.attributes` wrote."""
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


def _describe_change(*values: Any) -> str:
    """Return 'one -> other'; long texts start at their first difference."""
    texts = [value if isinstance(value, str) else _canonical(value) for value in values]
    pairs = enumerate(zip(*texts, strict=False))
    shared = next((i for i, (one, other) in pairs if one != other), min(map(len, texts)))
    start = shared if shared >= MAX_CHARACTERS else 0
    return " -> ".join(_shorten(text, start) for text in texts)


def _shorten(text: str, start: int) -> str:
    if len(text) <= 2 * MAX_CHARACTERS:
        return text
    rest = text[start : start + MAX_CHARACTERS]
    return f"{'...' if start else ''}{rest}..." if rest else "...(end)"

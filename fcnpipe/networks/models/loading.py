"""Loading of models by name or file, and the list of bundled models."""

from __future__ import annotations

from pathlib import Path

from fcnpipe.core.errors import ModelError
from fcnpipe.networks.base import Model
from fcnpipe.networks.matched_filter import MatchedFilter
from fcnpipe.networks.models.bundle import SUFFIX, load_bundle

WEIGHTS = Path(__file__).parents[1] / "weights"
"""Folder of the bundled models."""
_PICKLES = frozenset({".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".bin", ".t7", ".joblib"})


def load_model(
    name_or_path: str | Path, fwhm: float = 3.0, declared: tuple[int, int] | None = None
) -> Model:
    """Load a model by name or file.

    Parameters
    ----------
    name_or_path : str or Path
        ``none`` for a matched filter, the name of a bundled model (see `list_models`), a model
        file, or an exported program (``.pt2``; see `exported.load_exported`).
    fwhm : float
        Full width at half maximum of the matched filter, px. Other models ignore it.
    declared : (int, int), optional
        Halo and stride of an exported program, px, as declared by the user; then nothing is proven.

    Raises
    ------
    ModelError
        If the model is unknown, is a pickle or not a safetensors file, has no header, or its
        weights do not match the architecture; if an exported program cannot be tiled; if a halo is
        declared for a model whose halo is proven.
    """
    if Path(name_or_path).suffix == ".pt2":
        from fcnpipe.networks.models.exported import load_exported

        return load_exported(Path(name_or_path), declared)
    if declared is not None:
        raise ModelError(
            f"halo={declared[0]} is declared, but the halo of model {name_or_path} is known: leave it "
            "out, because only exported programs (.pt2) that cannot be analysed need it"
        )
    if str(name_or_path) == "none":
        return MatchedFilter(fwhm)
    return load_bundle(_find_bundle(str(name_or_path)))


def list_models() -> tuple[str, ...]:
    """Return the names that `load_model` knows: the bundled models and ``none``."""
    return (*sorted(path.stem for path in WEIGHTS.glob(f"*{SUFFIX}")), "none")


def _find_bundle(name: str) -> Path:
    path = Path(name)
    if path.suffix in _PICKLES:
        raise ModelError(
            f"model {name} is a pickle, which can run any code: save its weights with save_model"
        )
    if path.suffix == ".onnx":
        raise ModelError(
            f"model {name} is ONNX, which is not supported: convert it to .pt2 (load it into torch, "
            "torch.export.export with dynamic height and width, torch.export.save)"
        )
    if path.suffix == SUFFIX:
        if not path.is_file():
            raise ModelError(f"model {name} does not exist: check the path")
        return path
    bundled = WEIGHTS / f"{name}{SUFFIX}"
    if path.name == name and bundled.is_file():
        return bundled
    raise ModelError(
        f"model {name!r} is neither a {SUFFIX} file nor one of {', '.join(list_models())}: "
        "choose one of these, or the path of a file"
    )

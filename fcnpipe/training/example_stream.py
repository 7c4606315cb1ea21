"""Endless, numbered stream of training examples that a background process simulates.

Example k depends only on the kind and side of the scenes, the seed and k. It is kept in a file
until the training loop has used it and no longer needs it for a resume, so an interrupted training
continues with exactly the same examples.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

import numpy as np

from fcnpipe.simulation.scenes import SceneSpec, draw
from fcnpipe.training.targets import Example, make_example


def simulate_example(kind: str | SceneSpec, side: int, seed: int, number: int) -> Example:
    """Simulate example ``number`` of a stream, (side, side) px."""
    return make_example(draw(kind, (side, side), seed * 10_000_000 + number))


class ExampleStream:
    """Examples by number, simulated ahead of time.

    Parameters
    ----------
    folder
        Folder of the example files.
    arguments
        Kind and side of the scenes and seed of the recipe.
    first
        Number of the first example that will be requested.
    ahead
        Maximum number of examples that wait to be used.
    produce
        Whether to simulate examples here. False: wait for another stream on this folder that
        simulates them.
    """

    def __init__(
        self,
        folder: Path,
        arguments: tuple[str, int, int],
        first: int,
        ahead: int = 24,
        produce: bool = True,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        context = multiprocessing.get_context("spawn")
        self._wanted: Synchronized[int] = context.Value("q", first)
        self._process = context.Process(
            target=_produce, args=(folder, arguments, self._wanted, ahead, os.getpid()), daemon=True
        )
        self._produces = produce
        if produce:
            self._process.start()

    def wait_for(self, number: int) -> Example:
        """Return the example of this number; wait until it exists.

        Raises
        ------
        RuntimeError
            If the process that simulates examples has stopped.
        """
        with self._wanted.get_lock():
            self._wanted.value = number
        path = _path(self.folder, number)
        while not path.exists():
            if self._produces and not self._process.is_alive():
                raise RuntimeError(
                    f"the process that simulates example {number} has stopped: resume the training"
                )
            time.sleep(0.2)
        with np.load(path) as stored:
            return Example(stored["x"], stored["targets"])

    def discard_before(self, number: int) -> None:
        """Delete every example before this number."""
        for path in self.folder.glob("*.npz"):
            if int(path.stem) < number:
                path.unlink()

    def close(self) -> None:
        """Stop the process that simulates examples."""
        if self._produces:
            self._process.terminate()
            self._process.join()


def _path(folder: Path, number: int) -> Path:
    return folder / f"{number:09d}.npz"


def _produce(
    folder: Path, arguments: tuple[str, int, int], wanted: Any, ahead: int, parent: int
) -> None:
    os.nice(5)
    kind, side, seed = arguments
    number = wanted.value
    while os.getppid() == parent:
        if number >= wanted.value + ahead:
            time.sleep(0.2)
            continue
        path = _path(folder, number)
        if not path.exists():
            _store(path, simulate_example(kind, side, seed, number))
        number += 1


def _store(path: Path, example: Example) -> None:
    draft = path.with_suffix(".part")
    with draft.open("wb") as file:
        np.savez(file, x=example.x, targets=example.targets)
    draft.replace(path)

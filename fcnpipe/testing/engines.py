"""Tests that every engine must pass."""

from __future__ import annotations

import time
from collections.abc import Iterator

from fcnpipe.core.records import TaskReport
from fcnpipe.engines.base import Engine


def echo(name: str) -> TaskReport:
    """Return a report with the name of the task."""
    return TaskReport("echo", name, pixels=len(name))


def dawdle(name: str) -> TaskReport:
    """Sleep in some tasks, so that tasks finish out of order, and return a report."""
    time.sleep(0.05 if name.endswith("0") else 0.0)
    return TaskReport("dawdle", name)


class EngineTests:
    """Tests of the contract of `fcnpipe.engines.base.Engine`.

    A subclass defines a fixture ``engine``.
    """

    def test_every_name_comes_back_once(self, engine: Engine) -> None:
        """An engine yields one report for each name."""
        names = [f"r000c{i:03d}" for i in range(40)]
        reports = list(engine.run(echo, names))
        assert sorted(r.name for r in reports) == names
        assert all(r.pixels == 8 and not r.error for r in reports)

    def test_no_names_is_no_work(self, engine: Engine) -> None:
        """Without names there are no reports."""
        assert list(engine.run(echo, [])) == []

    def test_names_are_taken_as_they_are_needed(self, engine: Engine) -> None:
        """The number of submitted tasks is bounded."""
        taken: list[str] = []

        def names() -> Iterator[str]:
            for i in range(200):
                taken.append(str(i))
                yield str(i)

        reports = engine.run(dawdle, names())
        next(reports)
        assert len(taken) <= 2 * engine.workers + 4
        assert len(list(reports)) == 199

    def test_it_can_be_used_again(self, engine: Engine) -> None:
        """An engine can run several times."""
        assert all(len(list(engine.run(echo, ["a", "b"]))) == 2 for _ in range(3))

    def test_closing_twice_is_harmless(self, engine: Engine) -> None:
        """Closing an engine twice is the same as closing it once."""
        engine.close()
        engine.close()

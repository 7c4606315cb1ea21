"""The suite that every engine must pass."""

from __future__ import annotations

import time
from collections.abc import Iterator

from fcnpipe.core.records import TaskReport
from fcnpipe.engines.base import Engine


def echo(name: str) -> TaskReport:
    """Give a report under the name it was asked for."""
    return TaskReport("echo", name, pixels=len(name))


def dawdle(name: str) -> TaskReport:
    """Take longer for lower numbers, so that tasks finish out of order."""
    time.sleep(0.05 if name.endswith("0") else 0.0)
    return TaskReport("dawdle", name)


class EngineTests:
    """Subclass and give an ``engine`` fixture."""

    def test_every_name_comes_back_once(self, engine: Engine) -> None:
        """One report for each name."""
        names = [f"r000c{i:03d}" for i in range(40)]
        reports = list(engine.run(echo, names))
        assert sorted(r.name for r in reports) == names
        assert all(r.pixels == 8 and not r.error for r in reports)

    def test_no_names_is_no_work(self, engine: Engine) -> None:
        """No report for no name."""
        assert list(engine.run(echo, [])) == []

    def test_names_are_taken_as_they_are_needed(self, engine: Engine) -> None:
        """A bounded number of tasks is in flight."""
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
        """A run leaves nothing behind."""
        assert all(len(list(engine.run(echo, ["a", "b"]))) == 2 for _ in range(3))

    def test_closing_twice_is_harmless(self, engine: Engine) -> None:
        """Closing is idempotent."""
        engine.close()
        engine.close()

"""Fault injection at three moments of a run: its message, and whether its final result is the same byte for byte.

Each fault is tried with real processes: a run, the fault, the same run again, and a comparison of
every file with those of an undisturbed run (except for the seconds of each tile). The moments are
the first stage, the network, and the last stage that works tile by tile.

    python -m benchmarks.fault_injection                      # all faults, a quarter of an hour on two cores
    python -m benchmarks.fault_injection --only disk --moments middle,late
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from tests.flows import faults as prefect_faults
from tests.flows import processes
from tests.integration.faults import FAULTS, MOMENTS, Case, Fault, run_with_fault, run_without_fault
from tests.integration.scenes import write_field

SHAPE = (500, 600)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="Faults whose name contains this text.")
    parser.add_argument(
        "--moments", default=",".join(MOMENTS), help=f"Some of {','.join(MOMENTS)}."
    )
    options = parser.parse_args()
    moments = options.moments.split(",")
    if unknown := set(moments) - MOMENTS.keys():
        parser.error(f"unknown moments {sorted(unknown)}: use some of {','.join(MOMENTS)}")
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        faults = list_faults(options.only, Path(folder), stack)
        run_all(Path(folder), faults, moments)


def list_faults(only: str, folder: Path, stack: ExitStack) -> dict[str, Fault]:
    """Return the faults whose name contains the text; start a Prefect server if one of them needs it."""
    found = {name: fault for name, fault in FAULTS.items() if only in name}
    if any(only in name for name in prefect_faults.NAMES):
        server = stack.enter_context(processes.server(folder / "prefect"))
        more = prefect_faults.list_faults(server)
        found |= {name: fault for name, fault in more.items() if only in name}
    return found


def run_all(folder: Path, faults: dict[str, Fault], moments: list[str]) -> None:
    field = write_field(folder / "field.fits", SHAPE)
    undisturbed = run_without_fault(folder, field)
    print(f"| fault | outcome | {' | '.join(moments)} |\n|---|---|{'---|' * len(moments)}")
    for number, (name, fault) in enumerate(faults.items()):
        outcomes: list[str] = []
        cells = []
        for moment in moments:
            case = Case(folder / f"{number}-{moment}", field, moment)
            case.folder.mkdir()
            started = time.monotonic()
            try:
                outcome, different = run_with_fault(fault, case, undisturbed)
                outcomes += [outcome] if outcome not in outcomes else []
                cells.append(f"differs in {different}" if different else "identical")
            except AssertionError as error:
                cells.append(f"LOST: {error}")
            print(f"{name}, {moment}: {time.monotonic() - started:.0f} s", file=sys.stderr)
        print(f"| {name} | {'; or '.join(outcomes)} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()

"""The benchmarks: `scripts/bench`, or `python -m bench` from the root of the checkout."""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import sys
import time
from pathlib import Path

from bench import report, rows
from bench.workloads import FULL, QUICK, TINY, WORKLOADS

SCALES = {scale.name: scale for scale in (TINY, QUICK, FULL)}
DEADLINES = {"tiny": 30.0, "quick": 45.0, "full": 400.0}
RESULTS = Path(__file__).resolve().parent / "results"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument(
        "--quick",
        dest="scale",
        action="store_const",
        const="quick",
        default="full",
        help="smaller and shorter: under 3 minutes; without it under 20",
    )
    parser.add_argument(
        "--only",
        metavar="PATTERN",
        default="*",
        help="rows whose workload, rival or group matches, like 'queue*' or LMDB",
    )
    parser.add_argument("--list", action="store_true", help="name the workloads and stop")
    parser.add_argument("--output", type=Path, default=RESULTS, help="default: bench/results")
    parser.add_argument(
        "--report", type=Path, metavar="JSON", help="make table and plots from older results"
    )
    parser.add_argument("--row", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--scale", choices=SCALES, help=argparse.SUPPRESS)
    parser.add_argument("--where", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def chosen(pattern: str) -> list[tuple[str, str]]:
    return [
        (name, rival)
        for name, rival in rows.names()
        if any(fnmatch.fnmatchcase(text, pattern) for text in (name, rival, WORKLOADS[name].group))
    ]


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    if options.row:
        name, rival = options.row
        rows.answer(name, rival, SCALES[options.scale], options.where)
        return 0
    pairs = chosen(options.only)
    if options.list:
        for name in dict.fromkeys(name for name, _ in pairs):
            print(f"{name:32} {WORKLOADS[name].meaning}")
        return 0
    if options.report:
        results = json.loads(options.report.read_text())
        print(report.text(results))
    elif not pairs:
        print(f"bench: nothing matches {options.only!r}; see --list", file=sys.stderr)
        return 2
    else:
        scale, begin = SCALES[options.scale], time.monotonic()
        results = {"scale": scale.name, "machine": report.machine(), "rows": []}
        print(report.COLUMNS, flush=True)
        for name, rival in pairs:
            row = rows.run(name, rival, scale, DEADLINES[scale.name])
            results["rows"].append(row)
            print(report.line(row), flush=True)
        results["seconds"] = round(time.monotonic() - begin, 1)
        results["load_after"] = [round(load, 2) for load in os.getloadavg()]
        results["rivals"] = report.rivals(results["rows"])
        print(f"\n{report.summary(results['rows'])}; {results['seconds']:.0f} s")
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (options.output / "results.md").write_text(report.markdown(results))
    report.plots(results, options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())

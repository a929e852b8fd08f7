"""From results to something to look at: a table as text and as Markdown, and one plot a group."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import shmcache
from bench.rivals import RIVALS

__all__ = ["line", "machine", "markdown", "plots", "summary", "text"]

Row = dict[str, Any]
COLUMNS = f"{'workload':32} {'rival':30} {'ours':>17} {'theirs':>17} {'ratio':>21} {'target':>7}"


def machine() -> dict[str, Any]:
    """The facts without which the figures mean nothing."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "time": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory / 2**30, 1),
        "kernel": platform.release(),
        "libc": " ".join(platform.libc_ver()),
        "python": platform.python_version(),
        "shmcache": shmcache.__version__,
        "msgpack": metadata.version("msgpack"),
        "load": [round(load, 2) for load in os.getloadavg()],
    }


def rivals(rows: Iterable[Row]) -> dict[str, dict[str, str]]:
    """Version and settings of those that have a row."""
    named = {row["rival"].removesuffix(", single") for row in rows}
    return {
        name: {"version": rival.version(), "settings": rival.settings}
        for name, rival in RIVALS.items()
        if name in named
    }


def figure(value: float) -> str:
    """Two or three digits that count."""
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}" if value >= 1 else f"{value:.2g}"


def cells(row: Row) -> tuple[str, str, str, str, str]:
    """Ours, theirs, ratio with its spread, target, verdict."""
    target = "" if row["target"] is None else f"≤ {row['target']:.3g}"
    if "ratio" not in row:
        return "", "", "", target, f"{row['verdict']}: {row['reason']}"
    ours, theirs = (f"{figure(row[side]['median'])} {row['unit']}" for side in ("ours", "theirs"))
    ratio = row["ratio"]
    spread = f"{figure(ratio['median'])} ({figure(ratio['p10'])} to {figure(ratio['p90'])})"
    verdict = {"met": "met", "missed": "MISSED", "known": ""}[row["verdict"]]
    return ours, theirs, spread, target, verdict


def line(row: Row) -> str:
    """A line of the table."""
    ours, theirs, ratio, target, verdict = cells(row)
    return (
        f"{row['workload']:32} {row['rival']:30} {ours:>17} {theirs:>17} {ratio:>21} {target:>7}"
        f"  {verdict}"
    ).rstrip()


def summary(rows: list[Row]) -> str:
    """How many of each verdict."""
    count = dict.fromkeys(("met", "missed", "known", "failed", "skipped"), 0)
    for row in rows:
        count[row["verdict"]] += 1
    return (
        f"{count['met']} targets met, {count['missed']} missed; {count['known']} rows without a "
        f"target, {count['failed']} failed, {count['skipped']} skipped"
    )


def text(results: dict[str, Any]) -> str:
    rows = results["rows"]
    return "\n".join([COLUMNS, *map(line, rows), "", summary(rows), ""])


def markdown(results: dict[str, Any]) -> str:
    """The whole report."""
    facts, rows = results["machine"], results["rows"]
    out = [
        "# Measured beside others",
        f"{facts['time']}, {facts['cpu']}, {facts['cores']} cores, {facts['memory_gib']} GiB, "
        f"Linux {facts['kernel']}, Python {facts['python']}, shmcache {facts['shmcache']}, load "
        f"{facts['load'][0]} before and {results['load_after'][0]} after; scale "
        f"{results['scale']}, {results['seconds']:.0f} s.",
        "",
        "Medians of rounds in turns; in brackets the tenth and the ninetieth percentile of the "
        "rounds' ratios. The ratio is ours to the rival's: below 1 we are faster or smaller.",
        "",
        f"**{summary(rows)}.**",
    ]
    for group in dict.fromkeys(row["group"] for row in rows):
        out += ["", f"## {group.capitalize()}", f"![{group}]({plot_name(group)})", ""]
        chosen = [row for row in rows if row["group"] == group]
        for name in dict.fromkeys(row["workload"] for row in chosen):
            meaning = next(row["meaning"] for row in chosen if row["workload"] == name)
            out.append(f"- **{name}**: {meaning}")
        out += ["", "| workload | rival | ours | theirs | ratio | target | verdict |"]
        out.append("|---|---|---|---|---|---|---|")
        for row in chosen:
            words = (row["workload"], row["rival"], *cells(row))
            out.append("| " + " | ".join(word.replace("|", "\\|") for word in words) + " |")
    out += ["", "## Rivals", "| rival | version | settings |", "|---|---|---|"]
    for name, about in results["rivals"].items():
        out.append(f"| {name} | {about['version']} | {about['settings']} |")
    return "\n".join(out) + "\n"


def plot_name(group: str) -> str:
    return group.replace(" ", "-") + ".svg"


def plots(results: dict[str, Any], directory: Path) -> list[Path]:
    """One SVG a group: a bar from 1 to the ratio, its spread, and a mark at the target."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": "shmcache",
            "font.size": 8,
            "font.family": "sans-serif",
        }
    )
    from matplotlib import pyplot

    made = []
    for group in dict.fromkeys(row["group"] for row in results["rows"]):
        rows = [row for row in results["rows"] if row["group"] == group and "ratio" in row]
        if not rows:
            continue
        shape, axes = pyplot.subplots(figsize=(7, 0.7 + 0.22 * len(rows)), layout="constrained")
        for place, row in enumerate(rows):
            ratio, target = row["ratio"], row["target"]
            colour = {"met": "#2a7f62", "missed": "#c1462f", "known": "#8a8f98"}[row["verdict"]]
            shown = max(ratio["median"], 1e-7)  # the scale is logarithmic
            axes.barh(place, shown - 1, left=1, height=0.6, color=colour)
            axes.plot([ratio["p10"], ratio["p90"]], [place, place], color="black", linewidth=0.8)
            if target is not None:
                axes.plot([target, target], [place - 0.42, place + 0.42], color="black")
        axes.set_xscale("log")
        axes.axvline(1, color="black", linewidth=0.6)
        axes.set_yticks(range(len(rows)), [f"{row['workload']}  |  {row['rival']}" for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlabel("ours / theirs (log); stroke: target; green: met, red: missed")
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        path = directory / plot_name(group)
        shape.savefig(path, metadata={"Date": None})
        pyplot.close(shape)
        made.append(path)
    return made

"""The output of `make bench`: rows as JSON, as lines for a terminal, and as the Markdown table for docs/performance.md."""

from dataclasses import asdict
from typing import Any

from perf.timing import Measured


def to_json(row: Measured) -> dict[str, Any]:
    return {**asdict(row), "ratio": row.ratio if row.peer else None}


def figure(value: float) -> str:
    """Write a figure with three digits; these machines are too noisy for more."""
    if value == 0:
        return "0"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def verdict(row: dict[str, Any]) -> str:
    """Say whether the goal was met, as far as this run can tell."""
    if not row["goal"] or row["ratio"] is None:
        return ""
    return "met" if row["ratio"] >= row["goal"] else "not met"


def line_of(row: dict[str, Any]) -> str:
    ratio = f"{row['ratio']:.2f}" if row["ratio"] is not None else "-"
    goal = f"(goal {row['goal']:g}: {verdict(row)})" if row["goal"] else ""
    beside = f" beside {row['beside']} {figure(row['peer'])}" if row["peer"] else ""
    return f"  {row['work']}: {figure(row['ours'])} {row['unit']}{beside}, ratio {ratio} {goal} {row['note']}".rstrip()


def as_markdown(report: dict[str, Any]) -> str:
    """Make the table of a whole report, with the machine and versions over it."""
    versions = ", ".join(f"{name} {version}" for name, version in sorted(report["versions"].items()))
    kind = ", quick" if report["is_quick"] else ""
    lines = [
        f"{report['num_cores']} cores of {report['processor']}; {report['when']}{kind}; {versions}.",
        "",
        "| work | ours | beside | ratio | goal | |",
        "|---|---|---|---|---|---|",
    ]
    for name, benchmark in report["benchmarks"].items():
        for row in benchmark["rows"]:
            beside = f"{row['beside']} {figure(row['peer'])}" if row["peer"] else "-"
            ratio = f"{row['ratio']:.2f}" if row["ratio"] is not None else "-"
            goal = f"{row['goal']:g}, {verdict(row)}" if row["goal"] else "-"
            lines.append(
                f"| {row['work']} | {figure(row['ours'])} {row['unit']} | {beside} | {ratio} | {goal} | {row['note']} |"
            )
        if benchmark["failure"]:
            lines.append(f"| {name} | failed: {benchmark['failure'].splitlines()[-1]} | - | - | - | |")
    return "\n".join(lines) + "\n"

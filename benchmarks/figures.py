"""Figures from the record of a run."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

STYLES = {
    "Rodas5P": dict(color="tab:red", marker="o", lw=2.2, zorder=5),
    "Rodas4": dict(color="tab:orange", marker="s"),
    "Rosenbrock23": dict(color="goldenrod", marker="^"),
    "Kvaerno5 fixed": dict(color="tab:blue", marker="o"),
    "kvaerno5()": dict(color="tab:purple", marker="s"),
    "Kvaerno5": dict(color="tab:blue", marker="v", ls="--"),
    "Kvaerno5 PI": dict(color="tab:blue", marker="x", ls=":"),
    "Kvaerno3": dict(color="tab:cyan", marker="v", ls="--"),
    "Kvaerno3 PI": dict(color="tab:cyan", marker="x", ls=":"),
    "CVODE in C": dict(color="black", marker="D"),
    "CVODE in C banded": dict(color="black", marker="d", ls="--"),
    "pydiffsol BDF": dict(color="tab:brown", marker="D"),
    "pydiffsol ESDIRK34": dict(color="tab:brown", marker="x", ls=":"),
    "scikit-sundae": dict(color="0.5", marker="D"),
    "scipy BDF": dict(color="tab:green", marker="o"),
    "scipy Radau": dict(color="tab:green", marker="v", ls="--"),
    "scipy LSODA": dict(color="tab:green", marker="x", ls=":"),
}


def draw(record: dict, folder: Path) -> None:
    """One figure for each problem: error against time and against steps, and that of the gradient
    against its time."""
    for problem, each in record["single"].items():
        kinds = [("forward", "seconds", "time [ms]"), ("forward", "steps", "attempted steps")]
        if each["gradient"]:
            kinds.append(("gradient", "seconds", "time of the gradient [ms]"))
        figure = Figure(figsize=(4.6 * len(kinds) + 2, 4.4), layout="constrained")
        panels = figure.subplots(1, len(kinds))
        for panel, (kind, of, label) in zip(panels, kinds, strict=True):
            for name, result in each[kind].items():
                _curve(panel, name, result["points"], of)
            panel.set(xscale="log", yscale="log", xlabel=label)
            panel.set_ylabel("error of the gradient" if kind == "gradient" else "error")
            _ticks(panel.xaxis, *panel.get_xlim())
            panel.axhline(1e-6, color="0.85", zorder=0)
            panel.set_ylim(1e-10, 10)
            panel.grid(alpha=0.25)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right center", frameon=False)
        figure.suptitle(problem)
        figure.savefig(folder / f"{_file_name(problem)}.png", dpi=110)


def _curve(panel, name, points, of):
    points = [p for p in points if p.get("error") and p.get(of)]
    if points:
        cost = np.array([p[of] for p in points]) * (1e3 if of == "seconds" else 1)
        style = {"ms": 4.5, "lw": 1.2, **STYLES.get(name, {})}
        panel.plot(cost, [p["error"] for p in points], label=name, **style)


def _ticks(axis, low, high):
    """Labels at 1, 2 and 5 where there is little more than one decade."""
    if high < 30 * low:
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def _file_name(problem: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in problem.lower()).strip("_")

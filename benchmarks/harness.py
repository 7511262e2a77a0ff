"""What the benchmarks share: one core, interleaved timing, equal error, the machine."""

import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

SINGLE = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
}


def on_one_core() -> None:
    """Starts the running script again on one core and with one thread, if it is not so already.
    Libraries read these settings when they are loaded. Other flags of XLA stay."""
    given = os.environ.get("XLA_FLAGS", "")
    if all(value in os.environ.get(name, "").split() for name, value in SINGLE.items()):
        return
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    settings = {**SINGLE, "XLA_FLAGS": f"{given} {SINGLE['XLA_FLAGS']}".strip()}
    os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **settings})


def warm(solver, rtol: float) -> float:
    """Seconds of one solve. A short one is repeated first, since the caches hold other code."""
    run = solver(rtol)
    return float(np.median(solver(rtol, 3).seconds)) if run.seconds[0] < 0.02 else run.seconds[0]


def least(run: Callable[[], object], repeats: int) -> float:
    """CPU milliseconds of the fastest of some runs of a program of JAX. Of one core: where XLA
    spreads a loop over several, threads that wait count."""
    import jax

    jax.block_until_ready(run())
    times = []
    for _ in range(5):
        start = time.process_time()
        for _ in range(repeats):
            jax.block_until_ready(run())
        times.append((time.process_time() - start) / repeats)
    return 1e3 * min(times)


def compiled(f: Callable, *args: object) -> tuple[Callable, float]:
    """The program of `f`, and the CPU seconds that it took to trace and compile."""
    import jax

    start = time.process_time()
    program = jax.jit(f).lower(*args).compile()
    return program, time.process_time() - start


def interleaved(calls: Sequence[Callable[[], float]], budget: float = 1.0) -> list[float]:
    """The median of each of `calls`, which return the seconds they measured.

    All are called in turn, round after round, so that a slow spell of the machine hits all of
    them: 15 rounds, and fewer of those that would take more than `budget` seconds in all, but 3
    unless a single one takes ten times that.
    """
    first = [call() for call in calls]
    least = [0 if seconds > 10 * budget else 2 for seconds in first]
    rounds = [int(np.clip(budget / max(s, 1e-9), n, 14)) for s, n in zip(first, least, strict=True)]
    samples = [[seconds] for seconds in first]
    for turn in range(max(rounds, default=0)):
        for call, sample, most in zip(calls, samples, rounds, strict=True):
            if turn < most:
                sample.append(call())
    return [float(np.median(sample)) for sample in samples]


def at_error(errors, costs, target: float, window: float = 1.25) -> float | None:
    """The cost of reaching the error `target`: a straight line through log(cost) over log(error),
    fitted to the points within `window` decades of the target, or to the nearest on either side.

    None where the target is not between the smallest and the largest error.
    """
    errors, costs = np.asarray(errors, float), np.asarray(costs, float)
    good = np.isfinite(errors) & (errors > 0) & np.isfinite(costs)
    x, y = np.log10(errors[good]), np.log10(costs[good])
    x = x - np.log10(target)
    if not (np.any(x <= 0) and np.any(x >= 0)):
        return None
    below, above = np.max(x[x <= 0]), np.min(x[x >= 0])
    near = (np.abs(x) <= window) | (x == below) | (x == above)
    if np.ptp(x[near]) == 0:
        return float(10 ** np.mean(y[near]))
    # Weights fall with the distance, so that far points do not bend the line.
    slope, level = np.polyfit(x[near], y[near], 1, w=1 / (0.3 + np.abs(x[near])))
    return float(10**level)


def sweep(
    solve,
    error_of,
    *,
    start: float,
    factor: float,
    stop: float,
    limit: float,
    at_least: float = np.inf,
) -> list[dict]:
    """Solves at ever tighter tolerances, until the error is below `stop` and the tolerance not
    above `at_least`, or the next solve would take more than `limit` seconds. `solve(rtol)` returns
    a `Run`, `error_of(run)` its error.

    **Returns:** one dict for each tolerance.
    """
    points: list[dict] = []
    rtol, last, failures = start, 0.0, 0
    while rtol > 3e-14:
        run = solve(rtol)
        seconds = run.seconds[-1]
        error = error_of(run) if run.ok else float("inf")
        points.append(
            {
                "rtol": rtol,
                "ok": run.ok,
                "error": error if np.isfinite(error) else None,
                "steps": run.steps,
                "first_seconds": seconds,
                **{name: int(value) for name, value in run.stats.items()},
            }
        )
        # A loose tolerance may fail where a tighter one succeeds.
        failures = 0 if run.ok else failures + 1
        growth = float(np.clip(seconds / last, 1.0, 4.0)) if last and run.ok else 1.0
        done = error < stop and rtol <= at_least * (1 + 1e-9)
        if done or failures == 6 or seconds * growth > limit:
            break
        rtol, last = rtol / factor, seconds
    return points


def geometric_mean(values) -> float | None:
    values = [value for value in values if value is not None]
    return float(np.exp(np.mean(np.log(values)))) if values else None


def machine() -> dict:
    """Versions and hardware, for the record of a run."""
    packages = "jax jaxlib equinox diffrax optimistix lineax scipy numpy scikit-sundae pydiffsol"
    versions = {"python": platform.python_version()}
    for package in ["stablax", *packages.split()]:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    for name, command in (
        ("gcc", ["gcc", "-dumpfullversion"]),
        ("sundials (Debian)", ["dpkg-query", "-f", "${Version}", "-W", "libsundials-dev"]),
    ):
        try:
            answer = subprocess.run(command, capture_output=True, text=True, check=True)
            versions[name] = answer.stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            versions[name] = "not installed"
    cpu = platform.processor()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(":")[1].strip() for line in lines if "model name" in line), cpu)
    return {
        "versions": versions,
        "cpu": cpu,
        "system": f"{platform.system()} {platform.machine()}",
        "date": time.strftime("%Y-%m-%d"),
    }

"""Tables from the record of a run."""

from harness import at_error, geometric_mean

OURS = "Rodas5P"
FIXED = "Kvaerno5 fixed"
KINDS = ("forward", "gradient")


def cost(result: dict | None, target: float, of: str = "seconds", error: str = "error"):
    """What a peer pays for the error `target`, from its points. Where even its loosest tolerance
    is more accurate, what it pays there. None where it never is."""
    points = [p for p in (result or {}).get("points", []) if p.get(error) and p.get(of)]
    if not points:
        return None
    errors, costs = [p[error] for p in points], [p[of] for p in points]
    if max(errors) < target:
        return costs[errors.index(max(errors))]
    return at_error(errors, costs, target)


def table(header, rows) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def number(value, digits=3) -> str:
    return "" if value is None else f"{value:.{digits}g}"


def names_of(results: dict) -> list[str]:
    """The peers of a run, in the order in which they first appear."""
    return list(dict.fromkeys(name for each in results.values() for name in each))


def ratio_table(values: dict, scale: float = 1.0) -> str:
    """`values[problem][peer]`, and how many times that of `OURS` each is, with geometric means."""
    names = names_of(values)
    rows, ratios = [], {name: [] for name in names}
    for problem, each in values.items():
        own, row = each.get(OURS), [problem]
        for name in names:
            value = each.get(name)
            text = number(value and scale * value) or ("-" if name in each else "")
            if value and own and name != OURS:
                ratios[name].append(value / own)
                text += f" ({value / own:.2g}x)"
            row.append(text)
        rows.append(row)
    means = [number(geometric_mean(ratios[name])) for name in names]
    rows.append(["**geometric mean**", *(f"**{m}x**" if m else "" for m in means)])
    return table(["problem", *names], rows)


def costs(record: dict, kind: str, target: float, **options) -> dict:
    """`{problem: {peer: cost at equal error}}`, of `"forward"` or `"gradient"`."""
    return {
        problem: {name: cost(result, target, **options) for name, result in each[kind].items()}
        for problem, each in record["single"].items()
        if each[kind]
    }


def batch_costs(record: dict, lanes: str, kind: str) -> dict:
    """Seconds for each lane."""
    return {
        problem: {
            name: result["seconds"] / int(lanes) if "seconds" in result else None
            for name, result in each[lanes][kind].items()
        }
        for problem, each in record["batches"].items()
        if each.get(lanes, {}).get(kind)
    }


def quotients(over: dict, under: dict, peer: str, own: str = OURS, among=None) -> dict:
    """`{problem: over[peer] / under[own]}`, where both are known."""
    pairs = {p: (over[p].get(peer), under.get(p, {}).get(own)) for p in among or over if p in over}
    return {problem: a / b for problem, (a, b) in pairs.items() if a and b}


def at_equal_tolerance(record: dict, peer: str = OURS) -> dict:
    """`{problem: gradient / forward}` at the tolerances at which both were timed, which is at
    equal steps; the geometric mean over them."""
    ratios = {}
    for problem, each in record["single"].items():
        points = {kind: each[kind].get(peer, {}).get("points", []) for kind in KINDS}
        seconds = {
            kind: {p["rtol"]: p["seconds"] for p in timed if p.get("seconds")}
            for kind, timed in points.items()
        }
        # Sweeps start apart: the same tolerance up to rounding.
        pairs = [
            (gradient, forward)
            for rtol, gradient in seconds["gradient"].items()
            for other, forward in seconds["forward"].items()
            if abs(rtol / other - 1) < 1e-6
        ]
        if pairs:
            ratios[problem] = geometric_mean(a / b for a, b in pairs)
    return ratios


def describe(ratios: dict) -> str:
    if not ratios:
        return "not measured"
    low, high = min(ratios, key=ratios.__getitem__), max(ratios, key=ratios.__getitem__)
    ends = f"{ratios[low]:.2g}x {low}, {ratios[high]:.2g}x {high}"
    return f"{geometric_mean(ratios.values()):.3g}x over {len(ratios)} ({ends})"


def summary(record: dict) -> str:
    """The ratios that are goals of this project. Larger is better unless it says otherwise."""
    forward, gradient = costs(record, "forward", 1e-6), costs(record, "gradient", 1e-6)
    at_equal_solution = costs(record, "gradient", 1e-6, error="forward_error")
    first = {
        problem: {n: r.get("first_gradient_seconds") for n, r in each["gradient"].items()}
        for problem, each in record["single"].items()
    }
    small = [p for p, each in record["single"].items() if each["size"] <= 20]
    banded = [p for p in forward if p.startswith("Brusselator")]
    named = ["Robertson", "POLLU", "neural"]
    lines = [
        ("Kvaerno5, forward: goal 30x, each 5x", quotients(forward, forward, "Kvaerno5")),
        (f"{FIXED}, forward: goal 10x, each 3x", quotients(forward, forward, FIXED)),
        (
            f"{FIXED}, gradient at equal error of the gradient: goal 4x, 4x, 2.5x",
            quotients(gradient, gradient, FIXED, among=named),
        ),
        (
            f"{FIXED}, gradient at equal error of the solution",
            quotients(at_equal_solution, at_equal_solution, FIXED, among=named),
        ),
        (
            "CVODE in C, n <= 20: goal 1.5x, each 0.7x",
            quotients(forward, forward, "CVODE in C", among=small),
        ),
        (
            "pydiffsol BDF, n <= 20: goal 1.5x, each 0.7x",
            quotients(forward, forward, "pydiffsol BDF", among=small),
        ),
        (
            "CVODE in C, banded matrix: goal 0.33x",
            quotients(forward, forward, "CVODE in C banded", among=banded),
        ),
        (
            "scipy BDF, n <= 20: goal 75x each",
            quotients(forward, forward, "scipy BDF", among=small),
        ),
        (
            "gradient / forward of Rodas5P: goal at most 5x each",
            quotients(at_equal_solution, forward, OURS, among=named),
        ),
        (
            "gradient / forward of Rodas5P at equal steps: goal at most 4x each",
            at_equal_tolerance(record),
        ),
        (
            "time to the first gradient, Rodas5P / Kvaerno5: goal at most 0.7x",
            quotients(first, first, OURS, own="Kvaerno5"),
        ),
    ]
    if record.get("batches"):
        batch = batch_costs(record, "1024", "forward")
        goal = "CVODE in C, 1,024 Robertsons: goal 5x"
        lines.append((goal, quotients(batch, batch, "CVODE in C", among=["Robertson"])))
    return table(
        ["against", "geometric mean (least, largest)"], [[n, describe(r)] for n, r in lines]
    )


def compilation(record: dict) -> str:
    """Seconds to compile, seconds to the first gradient, and what a gradient allocates."""
    header = ["problem", "peer", "compile", "compile gradient", "first gradient", "MB", "note"]
    rows = []
    for problem, each in record["single"].items():
        for name, result in each["gradient"].items():
            values = [each["forward"][name]["compile_seconds"]]
            values += [result.get(k) for k in ("compile_seconds", "first_gradient_seconds")]
            size = result.get("temporary_bytes")
            values.append(size and size / 1e6)
            note = result.get("failure") or ""
            note += "; with a guarded field" if result.get("guarded") else ""
            rows.append([problem, name, *map(number, values), note])
    return table(header, rows)


def tables(record: dict) -> str:
    """The whole report, in markdown."""
    parts = ["# Work and precision\n", "## Summary\n", summary(record)]
    machine = record["machine"]
    for kind, title in (("forward", "Forward, single solves"), ("gradient", "Gradients")):
        for target in (1e-6, 1e-4):
            values = costs(record, kind, target)
            if values:
                parts.append(f"## {title}: ms at error {target:g} (ratio to {OURS})\n")
                parts.append(ratio_table(values, 1e3))
    values = costs(record, "forward", 1e-6, of="steps")
    parts += [f"## Attempted steps at error 1e-06 (ratio to {OURS})\n", ratio_table(values)]
    if any(each["gradient"] for each in record["single"].values()):
        parts += ["## Compilation [s] and memory of gradients\n", compilation(record)]
    for lanes in dict.fromkeys(n for each in record.get("batches", {}).values() for n in each):
        for kind in ("forward", "gradient"):
            values = batch_costs(record, lanes, kind)
            if values:
                parts.append(f"## {lanes} lanes, {kind}: us a lane (ratio to {OURS})\n")
                parts.append(ratio_table(values, 1e6))
    parts.append(f"Measured on one core of {machine['cpu']}, {machine['system']}, with:\n")
    parts.append(table(["package", "version"], list(machine["versions"].items())))
    if record["skipped"]:
        parts.append("Skipped: " + "; ".join(f"{n} ({w})" for n, w in record["skipped"].items()))
    return "\n".join(parts)

"""The benchmark: stablax's solvers against those its users would use otherwise.

    python benchmarks/work_precision.py                     # everything, about an hour
    python benchmarks/work_precision.py --quick             # a coarse look, some minutes
    python benchmarks/work_precision.py --problems Robertson,POLLU --peers "Rodas5P,CVODE in C"

Runs on one core, and restarts itself for that. Writes to `--output` (default
`benchmarks/results`): `work_precision.json` (all points, versions, machine), `work_precision.md`
(tables) and figures, and prints the tables.
"""

import argparse
import json
import sys
from pathlib import Path

import harness

HERE = Path(__file__).parent


def arguments():
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--problems", help="names, separated by commas (default: see problems.py)")
    parser.add_argument("--peers", help="names, separated by commas (default: all that install)")
    parser.add_argument("--parts", default="forward,gradient,batches", help="what to measure")
    parser.add_argument("--quick", action="store_true", help="few tolerances and repeats")
    parser.add_argument("--lanes", default="64,1024", help="sizes of the batches")
    parser.add_argument("--output", type=Path, default=HERE / "results")
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted run")
    parser.add_argument("--report-only", action="store_true", help="tables and figures of a run")
    return parser.parse_args()


def chosen(text: str | None, known) -> list[str]:
    names = [name.strip() for name in text.split(",")] if text else list(known)
    for name in names:
        if name not in known:
            raise SystemExit(f'There is no "{name}"; choose from: {", ".join(known)}')
    return names


def main():
    options = arguments()
    harness.on_one_core()
    import jax

    jax.config.update("jax_enable_x64", True)
    import batches
    import figures
    import report
    import single
    from peers import PEERS
    from problems import PROBLEMS, UNTUNED

    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "work_precision.json"
    if not options.report_only:
        parts = chosen(options.parts, ("forward", "gradient", "batches"))
        wanted = chosen(options.peers, PEERS)
        skipped = {name: why for name in wanted if (why := PEERS[name].missing())}
        names = [name for name in wanted if name not in skipped]
        results = {"machine": harness.machine(), "skipped": skipped, "single": {}, "batches": {}}
        if options.resume and path.exists():
            results = json.loads(path.read_text())
        effort = single.QUICK if options.quick else single.Effort()
        usual = [name for name in PROBLEMS if name not in UNTUNED]
        problems = chosen(options.problems, PROBLEMS) if options.problems else usual
        for name in (name for name in problems if name not in results["single"]):
            print(name, file=sys.stderr, flush=True)
            problem = PROBLEMS[name]
            measured = single.measure(problem, names, parts, effort)
            results["single"][name] = {"size": problem.size, **measured}
            path.write_text(json.dumps(results, indent=1))
        for name in problems if "batches" in parts else ():
            if name in results["batches"]:
                continue
            print(name, file=sys.stderr, flush=True)
            lanes = map(int, options.lanes.split(","))
            measured = results["single"][name]
            results["batches"][name] = batches.after(PROBLEMS[name], measured, lanes, effort)
            path.write_text(json.dumps(results, indent=1))
    record = json.loads(path.read_text())
    text = report.tables(record)
    (options.output / "work_precision.md").write_text(text)
    print(text)
    figures.draw(record, options.output)


if __name__ == "__main__":
    main()

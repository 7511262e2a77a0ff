"""Why is this solve slow, and is its gradient right? Every instrument on one oscillator.

    python docs/examples/diagnosing.py [--small] [--output FILE.png]

The van der Pol oscillator, solved by diffrax's Kvaerno5 as it comes, whose root finder gives up on
many steps. Prints the diagnosis, does what it suggests, checks the gradient of a loss (right, and
with a `stop_gradient` by mistake), and writes a figure with the pictures of `stablax.plot`. Needs
the extra `plot`.
"""

import argparse

import diffrax
import jax
import jax.lax as lax
import jax.numpy as jnp
from matplotlib.figure import Figure

import stablax as sx

jax.config.update("jax_enable_x64", True)

Y0 = jnp.array([2.0, 0.0])


class VanDerPol(sx.GuardedField):
    mu: jax.Array

    def vector_field(self, t, y, args):
        return jnp.stack([y[1], self.mu * (1 - y[0] ** 2) * y[1] - y[0]])


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--small", action="store_true", help="a short solve")
    parser.add_argument("--output", default="diagnosing.png", help="figure to write")
    options = parser.parse_args()
    ts = jnp.linspace(0.0, 3.0 if options.small else 20.0, 201)[1:]

    guard = sx.Guard(lower=-2.1, upper=7.0, reject=False)
    field = VanDerPol(jnp.array(5.0), guard=guard)
    slow = sx.Simulate(field, solver=diffrax.Kvaerno5())
    report = sx.diagnose(slow, Y0, ts)
    print(report)

    model = sx.with_options(slow, solver=sx.Rodas5P(), telemetry=True, trace="record")
    simulation = model(Y0, ts)
    attempts = report.steps.accepted + sum(report.steps.rejected.values())
    print(f"Rodas5P: {int(simulation.stats['num_steps'])} steps instead of {attempts}.\n")

    def loss(model, weight):
        return weight * jnp.mean(model(Y0, ts).ys ** 2)

    def with_a_mistake(parts):
        model, weight = parts
        return loss(model, lax.stop_gradient(weight))

    parts = (model, jnp.array(2.0))
    right = sx.check_gradient(lambda parts: loss(*parts), parts, adjoints=(), directions=1)
    wrong = sx.check_gradient(with_a_mistake, parts, adjoints=(), directions=1)
    print(right.text, wrong.text, sep="\n")

    figure = Figure(figsize=(12, 7), layout="constrained")
    (a, b, c), (d, e, f) = figure.subplots(2, 3)
    sx.plot.trajectories(simulation, guard=guard, ax=a).set_title("states and bounds")
    sx.plot.steps(report.simulation, ax=b).set_title("Kvaerno5 as it comes")
    sx.plot.steps(simulation, error=True, ax=c).set_title("Rodas5P: error of each step")
    sx.plot.stiffness(report, ax=d).set_title("stiffness")
    sx.plot.spectrum(sx.stiffness(field, 0.0, Y0), title="spectrum at the start", ax=e)
    sx.plot.gradient_check(wrong, ax=f)
    figure.savefig(options.output, dpi=90)
    print(f"Figure: {options.output}")


if __name__ == "__main__":
    main()

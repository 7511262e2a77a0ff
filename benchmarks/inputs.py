"""Inputs and schedules: what they cost, beside what was written by hand.

    python benchmarks/inputs.py [--small]

First Robertson's problem with an inflow that is given at 30 knots: as an `Input`, and as a field
that looks it up by itself, with the knots as `jump_ts`. Then 40 patients with schedules of their
own, up to 4 tablets and an infusion, in one program: what a solve of all and its gradient (in
amounts, times and rates) take, and the error against the closed form.

CPU seconds on one core, the least of several runs; of a gradient with its value.
"""

import argparse

import equinox as eqx
import harness
import jax
import jax.numpy as jnp
import numpy as np

import stablax as sx

jax.config.update("jax_enable_x64", True)

KNOTS, PATIENTS = 30, 40
ABSORB, ELIMINATE = 1.0, 0.2


def report(name: str, f, args: tuple, repeats: int) -> None:
    # What is no number (into which component) has no derivative.
    numbers, rest = eqx.partition(args, eqx.is_inexact_array)
    of_numbers = lambda numbers: f(*eqx.combine(numbers, rest))
    value, of_value = harness.compiled(of_numbers, numbers)
    gradient, of_gradient = harness.compiled(jax.value_and_grad(of_numbers), numbers)
    forward = harness.least(lambda: value(numbers), repeats)
    both = harness.least(lambda: gradient(numbers), repeats)
    print(
        f"{name:28s} solve {forward:8.3f} ms   gradient {both:8.3f} ms ({both / forward:4.1f})   "
        f"to compile {of_value:4.1f} s, {of_gradient:4.1f} s"
    )


def robertson(drive):
    def field(t, y, args):
        slow, fast, back = 0.04 * y[0], 3e7 * y[1] ** 2, 1e4 * y[1] * y[2]
        inflow = 0.01 * drive(t, args)
        return jnp.stack([back - slow + inflow, slow - fast - back, fast - inflow])

    return sx.Simulate(field, controller=sx.StiffPID.preset(rtol=1e-6, atol=1e-9))


def inputs(repeats: int) -> None:
    ts = jnp.linspace(0.0, KNOTS - 1.0, KNOTS)
    values = jnp.asarray(np.random.default_rng(0).normal(size=KNOTS))
    y0, end = jnp.array([1.0, 0.0, 0.0]), jnp.array([float(KNOTS)])
    model = robertson(lambda t, drive: drive(t))

    def previous(t, args):
        ts, values = args
        return values[jnp.clip(jnp.sum(ts <= t) - 1, 0, KNOTS - 1)]

    def linear(t, args):
        return jnp.interp(t, *args)

    looked_up = {"previous": robertson(previous), "linear": robertson(linear)}
    told = sx.Stepping(jump_ts=np.asarray(ts))
    for kind in ("previous", "linear", "cubic"):

        def as_input(ts, values, kind=kind):
            drive = sx.Input(ts, values, kind)
            return model(y0, end, args=drive, throw=False).ys[0, 1]

        report(f"{kind}, an `Input`", as_input, (ts, values), repeats)
        if kind in looked_up:

            def by_hand(ts, values, model=looked_up[kind]):
                return model(y0, end, args=(ts, values), stepping=told, throw=False).ys[0, 1]

            report(f"{kind}, by hand", by_hand, (ts, values), repeats)


def drug(t, y, rates):
    gut, plasma = y
    return jnp.stack([-rates[0] * gut, rates[0] * gut - rates[1] * plasma])


def swallowed(t, amount, ts):
    s = jnp.where(ts >= t, ts - t, jnp.inf)
    out = jnp.exp(-ELIMINATE * s) - jnp.exp(-ABSORB * s)
    return amount * ABSORB / (ABSORB - ELIMINATE) * out


def infused(t, amount, duration, ts):
    since = lambda start: jnp.exp(-ELIMINATE * jnp.where(ts > start, ts - start, 0.0))
    part = jnp.where(ts > t, since(t + duration) - since(t), 0.0)
    return amount / duration / ELIMINATE * part


def schedules(repeats: int) -> None:
    model = sx.SimulatePhases(drug, controller=sx.StiffPID.preset(rtol=1e-6, atol=1e-8))
    random, empty, ts = np.random.default_rng(1), jnp.zeros(2), jnp.linspace(1.0, 48.0, 12)
    given, exact = [], []
    for k in range(PATIENTS):
        starts = np.sort(random.uniform(0, 40, random.integers(1, 5)))
        amounts = random.uniform(10, 100, len(starts))
        doses: list = [sx.Dose(starts, amounts)]
        out = sum(swallowed(t, mg, ts) for t, mg in zip(starts, amounts, strict=True))
        if k % 2:
            doses.append(sx.Infusion(5.0, 40.0, 6.0, into=1))
            out += infused(5.0, 40.0, 6.0, ts)
        given.append(sx.Schedule(doses))
        exact.append(out)
    stack, exact = sx.Schedule.stack(given), jnp.stack(exact)

    def of_all(rates, stack):
        def one(schedule):
            phases = schedule.phases(drug, empty, 48.0, args=rates)
            return model(empty, ts, phases, throw=False).ys[:, 1]

        return jax.vmap(one)(stack)

    rates = jnp.array([ABSORB, ELIMINATE])
    error = float(jnp.max(jnp.abs(jax.jit(of_all)(rates, stack) - exact)))
    report(f"{PATIENTS} patients", lambda r, s: jnp.sum(of_all(r, s)), (rates, stack), repeats)
    print(f"{'':28s} error {error:.1e} of {float(jnp.max(exact)):.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--small", action="store_true", help="few runs, to see that it works")
    small = parser.parse_args().small
    inputs(2 if small else 50)
    schedules(1 if small else 10)


if __name__ == "__main__":
    harness.on_one_core()
    main()

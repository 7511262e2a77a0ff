"""The integration loop: equal to diffrax's, and without what keeps a program where it was made."""

import os
import socket
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import ROOT, SOLVERS, by_day, slow

import stablax as sx
from stablax._loop import Steps, integrate_steps


def _swings(t, y, args):
    """Stiff, not autonomous, with a jump at `args`, and a PyTree."""
    drive = jnp.where(t < args, 1.0, -1.0) * jnp.cos(3 * t)
    return {"a": -200.0 * (y["a"] - drive), "b": y["a"] * jnp.ones(2) - y["b"] ** 2}


START = {"a": 0.3, "b": jnp.array([0.1, 0.4])}
ROWS = np.array([0.0, 0.0, 0.2, 0.2, 0.55, 1.0, 1.0])


BY_DAY = ("Rodas5P", "kvaerno5", "Tsit5", "FiniteSteps(Tsit5)")


@pytest.mark.parametrize("solver", by_day(SOLVERS, *BY_DAY))
def test_steps_and_rows_are_those_of_diffrax(solver):
    """`diffeqsolve` is what runs where a model has diffrax's own adjoint. Forth and back."""

    def field(t, y, args):
        way, jump = args  # backwards in time the field is another one, so that it is as stiff
        return jax.tree.map(lambda dy: way * dy, _swings(way * t, y, jump))

    method = SOLVERS[solver]()
    given = dict(step_ts=[-0.7, 0.7], jump_ts=[-0.5, 0.5])
    controller = sx.StiffPID.preset("fast", solver=method, **given)

    def solve(adjoint):
        options = dict(solver=method, controller=controller, adjoint=adjoint)
        model = sx.Simulate(field, max_steps=1000, **options)
        one = lambda way: model(START, way * ROWS, args=(way, 0.5), throw=False)
        return jax.jit(jax.vmap(one))(jnp.array([1.0, -1.0]))

    ours, theirs = solve(sx.DiscreteAdjoint()), solve(diffrax.RecursiveCheckpointAdjoint())
    for name in ("num_steps", "num_accepted_steps"):
        # A rounding error decides where a step is next to being accepted.
        assert np.all(np.abs(ours.stats[name] - theirs.stats[name]) <= 1)
    assert np.all(sx.is_successful(ours)) and np.all(sx.is_successful(theirs))
    assert ours.reached.all() and theirs.reached.all()
    for a, b in zip(jax.tree.leaves(ours.ys), jax.tree.leaves(theirs.ys), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-8)


def test_a_lane_that_is_done_stays_as_it_is():
    """Lanes that end at once, soon, late, and not at all, each as it is alone."""
    model = sx.Simulate(lambda t, y, k: jnp.where(y < 2.0, k * y, jnp.nan), max_steps=200)
    rates, ends = jnp.array([1.0, 0.1, -1e4, 2.0]), jnp.array([0.0, 1e-3, 5.0, 1.0])
    one = lambda k, end: model(1.0, jnp.stack([end / 2, end]), args=k, throw=False)
    together = jax.jit(jax.vmap(one))(rates, ends)
    assert np.asarray(sx.is_successful(together)).tolist() == [True, True, True, False]
    for lane, (k, end) in enumerate(zip(rates, ends, strict=True)):
        alone = jax.jit(one)(k, end)
        np.testing.assert_allclose(together.stats["t"][lane], alone.stats["t"], rtol=1e-9)
        # Rounding decides where a step is next to being accepted, and how a wall is approached.
        more = int(together.stats["num_steps"][lane]) - int(alone.stats["num_steps"])
        assert abs(more) <= (1 if sx.is_successful(alone) else 10)
        np.testing.assert_allclose(together.ys[lane], alone.ys, rtol=1e-10, atol=1e-15)
        np.testing.assert_array_equal(together.reached[lane], alone.reached)


PROGRAM = """
    import jax, numpy as np, jax.numpy as jnp
    import stablax as sx

    jax.config.update("jax_enable_x64", True)
    robertson = sx.problems.ROBERTSON
    model = sx.Simulate(robertson.field)
    last = lambda args: model(robertson.y0, [1.0, 100.0], args=args, throw=False).ys[-1]
    gradient = jax.grad(lambda args: last(args)[0])
    batch = jnp.asarray(robertson.args) * jnp.linspace(0.5, 2.0, 4)[:, None]
    expected = jax.jit(jax.vmap(lambda args: (last(args), gradient(args))))(batch)
"""


MESH = """
    import jax, numpy as np, jax.numpy as jnp
    import stablax as sx
    from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

    jax.config.update("jax_enable_x64", True)
    mesh = jax.make_mesh((2,), ("lane",), axis_types=(AxisType.Auto,))
    lanes, shared = P("lane"), P()

    def exchanges(compiled):
        text = compiled.as_text()
        loops, outside = text[: text.index("ENTRY")], text[text.index("ENTRY") :]
        kinds = ("all-reduce", "all-gather", "all-to-all", "reduce-scatter", "permute")
        assert not any(kind in loops for kind in kinds)
        return any(kind in outside for kind in kinds)
"""


def started(*parts, folder, args=(), devices=1):
    path = folder / "script.py"
    path.write_text("".join(map(textwrap.dedent, parts)))
    flags = os.environ.get("XLA_FLAGS", "")
    flags += f" --xla_force_host_platform_device_count={devices}"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, str(path), *map(str, args)]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen(command, env=environment, cwd=ROOT, **pipes)


def said(process):
    out, errors = process.communicate()
    assert process.returncode == 0, errors[-3000:]
    return out


def run(*parts, **options):
    return said(started(*parts, **options))


def test_a_loop_looks_where_it_ends():
    """Also after the last step, which ends at `t1` or uses up `max_steps`."""

    def solve(max_steps):
        steps = Steps(
            terms=diffrax.ODETerm(lambda t, y, args: -y),
            solver=sx.Rodas5P(),
            controller=diffrax.PIDController(rtol=1e-6, atol=1e-9),
            meter=diffrax.NoProgressMeter(),
            max_steps=max_steps,
            ends_at=lambda seen, t, y, args: (t >= 1.0, seen),
        )
        ends, rows = (jnp.array(0.0), jnp.array(1.0)), jnp.zeros(0)
        return integrate_steps(steps, *ends, None, jnp.ones(2), rows, None)[0]

    solved = solve(100)
    assert solved.result == diffrax.RESULTS.event_occurred
    steps = int(solved.tried)
    assert solve(steps).result == diffrax.RESULTS.event_occurred
    assert solve(steps - 1).result == diffrax.RESULTS.max_steps_reached


def _decays(t, y, k):
    return -k * y


def _in_phases(y0, ts, *, args, throw):
    phases = [sx.Phase(0.5, args=args), sx.Phase(1.0, args=args, dose=jnp.ones(2))]
    return sx.SimulatePhases(_decays)(y0, ts, phases, throw=throw)


def _from_rest(y0, ts, *, args, throw):
    model = sx.SteadyThenSimulate(lambda t, y, k: k - y)
    return model(y0, ts, args=args, steady_args=1.0, throw=throw)


SOLVED = ("Rodas5P", "Tsit5", "kvaerno5", "kencarp4")
SILENT = {
    **{name: sx.Simulate(_decays, solver=SOLVERS[name]()) for name in SOLVED},
    "fill": sx.Simulate(sx.Guarded(_decays, sx.Guard(lower=0.0, fill=0.0)), telemetry=True),
    "phases": _in_phases,
    "steady": _from_rest,
}


@pytest.mark.parametrize("model", SILENT)
def test_no_callback_is_in_a_program_that_does_not_raise(model):
    solve = SILENT[model]

    def last(k):
        return solve(jnp.ones(2), [1.0], args=k, throw=False).ys[-1].sum()

    for f in (last, jax.grad(last)):
        assert "callback" not in jax.jit(f).lower(0.5).as_text()


def test_no_callback_is_in_either_mode():
    model = sx.Simulate(_swings)
    last = lambda k: model(START, [1.0], args=k, throw=False).ys["a"][-1]
    for fn in (last, jax.grad(last), jax.jacfwd(last)):
        assert "callback" not in jax.jit(fn).lower(0.5).as_text()


TIMES = np.array([1.0])


def test_no_callback_is_in_a_batch_or_a_steady_state():
    model = sx.Simulate(_decays)
    inputs = dict(y0=jnp.ones((3, 2)), args=jnp.arange(1.0, 4.0))

    def batch(inputs):
        solved = sx.simulate_batch(model, inputs, shared={"ts": TIMES}, batch_size=2, throw=False)
        return solved.ys.sum()

    def steady(k):
        found = sx.find_steady_state(lambda t, y, k: k - y, jnp.ones(2), args=k, throw=False)
        return found.y.sum()

    for fn, given in ((batch, inputs), (steady, 2.0)):
        for f in (fn, jax.grad(fn)):
            text = jax.jit(f).lower(given).as_text()
            assert "callback" not in text
            # XLA compiles a draw once for each kernel that uses it.
            assert "threefry" not in text


def test_programs_run_on_many_devices(tmp_path):
    """A batch over two devices, by `shard_map` with and without its checks, `pmap`, and an
    automatic mesh: values and gradients; and nothing is exchanged between the devices inside a
    loop, whether they share the parameters or the start."""
    script = """
        def both(args):
            pick = lambda args: (lambda ys: (ys[0], ys))(last(args))
            slope, ys = jax.grad(pick, has_aux=True)(args)
            return ys, slope

        def same(found):
            for a, b in zip(found, expected):
                np.testing.assert_allclose(np.asarray(a).reshape(b.shape), b, rtol=1e-8)

        options = dict(mesh=mesh, in_specs=lanes, out_specs=lanes)
        for check in (True, False):
            each = jax.shard_map(jax.vmap(both), check_vma=check, **options)
            program = jax.jit(each).lower(batch).compile()
            same(program(batch))
            assert not exchanges(program)
        spread = jax.device_put(batch, NamedSharding(mesh, lanes))
        same(jax.jit(jax.vmap(both))(spread))

        # The devices share what has a derivative.
        starts = jnp.array([1.0, 0.0, 0.0]) + 0.1 * jnp.arange(4.0)[:, None]
        inside = sx.Guarded(robertson.field, sx.Guard(lower=0.0))
        guarded = sx.Simulate(inside, solver=sx.Rosenbrock23())

        def total(starts, args):
            one = lambda y0: guarded(y0, [0.01, 0.1], args=args, throw=False).ys[-1, 0]
            return jax.vmap(one)(starts).sum()

        args = jnp.asarray(robertson.args)
        right = jax.jit(jax.grad(total, argnums=(0, 1)))(starts, args)
        for check in (True, False):
            options = dict(in_specs=(lanes, shared), out_specs=(lanes, shared if check else lanes))
            each = jax.shard_map(
                jax.grad(total, argnums=(0, 1)), mesh=mesh, check_vma=check, **options
            )
            program = jax.jit(each).lower(starts, args).compile()
            by_start, by_args = program(starts, args)
            if not check:  # the sum over the devices is the user's
                by_args = by_args.reshape(2, -1).sum(0)
            np.testing.assert_allclose(by_start, right[0], rtol=1e-8)
            np.testing.assert_allclose(by_args, right[1], rtol=1e-8)
            exchanges(program)

        def hidden(starts, args):
            model = sx.Simulate(lambda t, y, _: robertson.field(t, y, args))
            one = lambda y0: model(y0, [1.0], throw=False).ys[-1, 0]
            return jax.vmap(one)(starts)

        options = dict(mesh=mesh, in_specs=(lanes, shared), out_specs=lanes)
        try:
            jax.jit(jax.shard_map(hidden, **options))(starts, args)
        except ValueError as error:
            assert "closes over an array" in str(error)
            print("all")
    """
    assert run(MESH, PROGRAM, script, folder=tmp_path, devices=2).strip() == "all"


@pytest.mark.slow
def test_steady_states_and_phases_run_on_many_devices(tmp_path):
    """The devices share the start and differ in the condition: values, and gradients in both,
    which are summed behind all loops."""
    script = """
        change = np.array([[-1.0, 1.0], [1.0, -1.0]])

        def field(t, y, k):
            return jnp.asarray(change) @ jnp.stack([k[0] * y[0], k[1] * y[1] ** 2])

        model = sx.SimulatePhases(field)

        def steady(y0, k):
            return sx.find_steady_state(field, y0, k, conserved=[1.0, 1.0], throw=False).y

        def phases(y0, k):
            schedule = [sx.Phase(0.1, k), sx.Phase(0.3, 2 * k)]
            return model(y0, [0.2, 0.3], schedule, throw=False).ys[-1]

        def gradient(f):
            def total(y0, ks):
                ys = jax.vmap(f, (None, 0))(y0, ks)
                return ys[:, 0].sum(), ys

            return jax.grad(total, argnums=(0, 1), has_aux=True)

        given = jnp.array([1.0, 0.5]), jnp.array([[1.0, 2.0], [2.0, 3.0], [3.0, 1.0], [4.0, 1.0]])
        specs = (shared, lanes)
        for f in (steady, phases):
            options = dict(mesh=mesh, in_specs=specs, out_specs=(specs, lanes))
            each = jax.jit(jax.shard_map(gradient(f), **options)).lower(*given).compile()
            assert exchanges(each)
            right = jax.jit(gradient(f))(*given)
            for a, b in zip(jax.tree.leaves(each(*given)), jax.tree.leaves(right)):
                np.testing.assert_allclose(a, b, rtol=1e-8)
                assert np.abs(b).min() > 1e-3

        def hidden(k, y0s):
            closes = lambda t, y, _: field(t, y, k)
            find = lambda y0: sx.find_steady_state(closes, y0, throw=False).y
            return jax.vmap(find)(y0s)

        options = dict(mesh=mesh, in_specs=specs, out_specs=lanes)
        try:
            jax.jit(jax.shard_map(hidden, **options))(*given)
        except ValueError as error:
            assert "closes over an array" in str(error)
            print("all")
    """
    assert run(MESH, script, folder=tmp_path, devices=2).strip() == "all"


@pytest.mark.slow
def test_methods_of_diffrax_run_on_many_devices(tmp_path):
    """As ours; and an event of diffrax, with switch times that are data."""
    script = """
        options = dict(mesh=mesh, in_specs=lanes, out_specs=lanes)
        import diffrax

        # Methods of diffrax: explicit, ESDIRK, IMEX; and a field with a constant.
        change = np.array([[-1.0, 1.0, 0.0], [1.0, -1.0, -1.0], [0.0, 0.0, 1.0]])

        def network(t, y, k):
            flows = jnp.stack([k[0] * y[0], k[2] * y[1] * y[2], k[1] * y[1] ** 2])
            return jnp.asarray(change) @ flows

        for solver, checks in (
            (diffrax.Tsit5(), (True,)),
            (sx.kvaerno3(), (True, False)),
            (sx.kencarp4(), (True,)),
        ):
            other = sx.Simulate(network, solver=solver)
            early = lambda args: other(robertson.y0, [0.01], args=args, throw=False).ys[-1, 0]
            each = jax.vmap(jax.value_and_grad(early))
            alone = jax.jit(each)(batch)
            if isinstance(solver, diffrax.Tsit5):
                for a, b in zip(jax.pmap(each)(batch.reshape(2, 2, -1)), alone):
                    np.testing.assert_allclose(a.reshape(b.shape), b, rtol=1e-8, atol=1e-15)
            for check in checks:
                program = jax.jit(jax.shard_map(each, check_vma=check, **options))
                program = program.lower(batch).compile()
                for a, b in zip(program(batch), alone):
                    np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-15)
                assert not exchanges(program)

        # An event, and switch times that are data.
        ends = sx.Simulate(
            lambda t, y, k: -k * y, event=diffrax.Event(lambda t, y, k, **_: y - 0.5)
        )

        def when(y0):
            stepping = sx.Stepping(jump_ts=[0.1 * y0])
            return ends(y0, [5.0], args=2.0, stepping=stepping, throw=False).t1

        y0s = jnp.linspace(1.0, 2.0, 4)
        options = dict(mesh=mesh, in_specs=lanes, out_specs=lanes)
        program = jax.jit(jax.shard_map(jax.vmap(jax.grad(when)), **options))
        program = program.lower(y0s).compile()
        np.testing.assert_allclose(program(y0s), 0.5 / y0s, rtol=1e-4)
        assert not exchanges(program)
        print("all")
    """
    assert run(MESH, PROGRAM, script, folder=tmp_path, devices=2).strip() == "all"


@pytest.mark.slow
def test_events_on_many_devices(tmp_path):
    """Each lane has its own, and no device waits for another inside a loop."""
    script = """
        bounce = lambda t, y, e: jnp.stack([jnp.zeros_like(y[0]), -e * y[1]])
        events = [
            sx.Event(lambda t, y, e: y[0], direction=False, change=bounce, max_count=8),
            sx.Event(lambda t, y, e: y[0] - 0.3, change=lambda t, y, e: y, max_count=16),
        ]
        falls = lambda t, y, e: jnp.stack([y[1], jnp.full_like(y[1], -9.81)])
        model = sx.Simulate(falls, event=events)
        y0 = jnp.stack([jnp.linspace(0.4, 1.5, 8), jnp.zeros(8)], axis=1)

        def total(y0, e, mesh=None, batch_size=None):
            given = dict(ts=jnp.array([0.5, 1.2]), args=e)
            solved = sx.simulate_batch(
                model, dict(y0=y0), shared=given, batch_size=batch_size, mesh=mesh, throw=False
            )
            log = solved.events
            times = jnp.sum(jnp.where(log.happened, log.t, 0))
            return times + solved.ys.sum(), log.happened.sum(-1)

        slopes = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)
        (value, counts), expected = jax.jit(slopes)(y0, 0.8)
        assert len(set(counts.tolist())) > 2
        for width in (None, 2):
            program = jax.jit(lambda y0, e: slopes(y0, e, mesh, width))
            spread = jax.device_put(y0, NamedSharding(mesh, lanes))
            program = program.lower(spread, 0.8).compile()
            exchanges(program)
            (found, many), slope = program(spread, 0.8)
            np.testing.assert_array_equal(many, counts)
            np.testing.assert_allclose(found, value, rtol=1e-10)
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8), slope, expected)
        print("all")
    """
    assert run(MESH, script, folder=tmp_path, devices=2).strip() == "all"


@pytest.mark.slow
def test_lanes_are_exchanged_on_many_devices(tmp_path):
    """`simulate_batch` over a mesh, and inside a `shard_map`: each device exchanges its own lanes,
    and none waits for another inside a loop."""
    script = """
        relax = sx.SteadyThenSimulate(lambda t, y, k: k - y)
        rates, k = jnp.arange(1.0, 9.0), jnp.array(3.0)
        start = dict(y0=jnp.ones(2), ts=jnp.array([1.0]))

        def total(rates, k, mesh=None):
            given = dict(start, steady_args=k)
            solved = sx.simulate_batch(
                relax, dict(args=rates), shared=given, batch_size=2, mesh=mesh, order_by=rates,
                throw=False,
            )
            return solved.ys.sum(), solved

        slopes = jax.grad(total, argnums=(0, 1), has_aux=True)
        program = jax.jit(lambda rates, k: slopes(rates, k, mesh))
        spread = jax.device_put(rates, NamedSharding(mesh, lanes))
        program = program.lower(spread, k).compile()
        assert exchanges(program)  # for what the devices share
        (by_rate, by_k), solved = program(spread, k)
        assert solved.ys.sharding.spec == lanes, solved.ys.sharding
        np.testing.assert_allclose(solved.ys[:, 0, 0], rates + (k - rates) / np.e, rtol=1e-5)
        np.testing.assert_allclose(by_rate, 2 * (1 - 1 / np.e), rtol=1e-4)
        np.testing.assert_allclose(by_k, 16 / np.e, rtol=1e-4)

        options = dict(in_specs=(lanes, shared), out_specs=(lanes, shared), mesh=mesh)
        inside = jax.jit(jax.shard_map(lambda *given: slopes(*given)[0], **options))
        inside = inside.lower(rates, k).compile()
        exchanges(inside)
        for found, right in zip(inside(rates, k), (by_rate, by_k)):
            np.testing.assert_allclose(found, right, rtol=1e-8)

        explicit = jax.make_mesh((2,), ("lane",), axis_types=(AxisType.Explicit,))
        _, found = total(rates, k, explicit)
        assert jax.typeof(found.ys).sharding.spec == P("lane", None, None)
        np.testing.assert_allclose(found.ys, solved.ys, rtol=1e-12)

        def alone(rate):
            model = sx.Simulate(lambda t, y, k: k - y)
            return model(0.0, [1.0], args=rate, throw=False).ys[-1]

        given = jax.device_put(rates, NamedSharding(explicit, lanes))
        with jax.set_mesh(explicit):
            ys = jax.jit(jax.sharding.auto_axes(jax.vmap(alone), out_sharding=lanes))(given)
        assert jax.typeof(ys).sharding.spec == lanes
        np.testing.assert_allclose(ys, rates * (1 - 1 / np.e), rtol=1e-5)

        types = (AxisType.Explicit, AxisType.Auto)
        mixed = jax.make_mesh((2, 1), ("lane", "other"), axis_types=types)
        for given, words in (
            ((rates[:7], k, mesh), "7 samples, which 2 devices of `mesh` cannot share equally"),
            ((rates, k, mixed), "`mesh` has axes of the types (Explicit, Auto); make it"),
        ):
            try:
                total(*given)
            except ValueError as error:
                assert words in str(error), error
            else:
                raise AssertionError(words)
        print("all")
    """
    assert run(MESH, script, folder=tmp_path, devices=2).strip() == "all"


def test_programs_are_written_and_cached(tmp_path):
    """`jax.export`, read by another process that has never seen the model; and the persistent
    cache, from which the same program comes the second time."""
    pytest.importorskip("flatbuffers")
    write = """
        import sys, pathlib
        from jax import monitoring

        hits = []
        monitoring.register_event_listener(lambda name, **_: hits.append(name))
        folder = pathlib.Path(sys.argv[1])
        jax.config.update("jax_compilation_cache_dir", str(folder / "cache"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        esdirk = sx.Simulate(robertson.field, solver=sx.kvaerno3())
        early = lambda args: esdirk(robertson.y0, [0.01], args=args, throw=False).ys[-1, 0]
        programs = {"value": last, "gradient": gradient, "esdirk": jax.grad(early)}
        for name, f in programs.items():
            program = jax.jit(f)
            exported = jax.export.export(program)(batch[0])
            (folder / name).write_bytes(exported.serialize())
            np.save(folder / f"{name}.npy", program(batch[0]))
            jax.clear_caches()
            hits.clear()
            jax.jit(f)(batch[0])
            assert "/jax/compilation_cache/cache_hits" in hits, hits
        np.save(folder / "inputs.npy", batch[0])
        for name, right in zip(("value", "gradient"), expected):
            np.testing.assert_allclose(np.load(folder / f"{name}.npy"), right[0], rtol=1e-8)
    """
    run(PROGRAM, write, folder=tmp_path, args=[tmp_path])
    for name in ("value", "gradient", "esdirk"):
        program = jax.export.deserialize(bytearray((tmp_path / name).read_bytes()))
        found = program.call(jnp.asarray(np.load(tmp_path / "inputs.npy")))
        np.testing.assert_allclose(found, np.load(tmp_path / f"{name}.npy"), rtol=1e-8)


def _wide(t, y, args):
    return args @ jnp.tanh(y) - y


PRECISE = {
    "Rodas5P": sx.Simulate(_wide),
    "Tsit5": sx.Simulate(_wide, solver=diffrax.Tsit5()),
    "kvaerno5": sx.Simulate(_wide, solver=sx.kvaerno5()),
    "by hand": sx.Simulate(
        sx.Guarded(
            _wide,
            jacobian=lambda t, y, k: (
                k @ jnp.diag(1 - jnp.tanh(y) ** 2) - jnp.eye(y.size, dtype=y.dtype)
            ),
        )
    ),
    "steady": sx.SteadyThenSimulate(_wide),
}


# By day an inverse written out (3) and LU (30) for the solver that has both, and one size each.
@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("Rodas5P", 3),
        ("Rodas5P", 30),
        ("Tsit5", 3),
        slow("Tsit5", 30),
        slow("kvaerno5", 3),
        ("kvaerno5", 30),
        slow("by hand", 3),
        ("by hand", 30),
        ("steady", 3),
        slow("steady", 30),
    ],
)
def test_products_are_as_precise_as_their_type(name, size):
    """On a GPU the default in single precision is a product of ten bits, on which HIRES does not
    end. Value and derivative, the field's products and ours."""

    def total(args):
        options = dict(steady_args=0.1 * args) if name == "steady" else {}
        y0 = jnp.ones(size, jnp.float32)
        return PRECISE[name](y0, [0.5, 1.0], args=args, throw=False, **options).ys.sum()

    args = 0.1 * jnp.eye(size, dtype=jnp.float32)
    text = jax.jit(jax.value_and_grad(total)).lower(args).as_text()
    assert "dot_general" in text
    assert "precision = [DEFAULT, DEFAULT]" not in text
    with jax.default_matmul_precision("tensorfloat32"):  # what a user chooses stays
        text = jax.jit(total).lower(args).as_text()
    assert "precision = [HIGH, HIGH]" in text


@pytest.mark.slow
def test_programs_run_on_two_processes(tmp_path):
    """Each has one device of a mesh, and its part of the samples."""
    script = """
        import sys
        import jax, numpy as np, jax.numpy as jnp
        from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

        jax.config.update("jax_enable_x64", True)
        process, address = int(sys.argv[1]), sys.argv[2]
        jax.distributed.initialize(address, num_processes=2, process_id=process)
        import diffrax
        import stablax as sx

        mesh = jax.make_mesh((2,), ("lane",), axis_types=(AxisType.Auto,))
        robertson = sx.problems.ROBERTSON
        # What a step is does not matter here, and these compile soonest; short, as it is stiff.
        model = sx.Simulate(robertson.field, solver=diffrax.Tsit5())
        shared = dict(y0=robertson.y0, ts=[1e-3, 1e-2])

        def solve(args):
            return model(**shared, args=args, throw=False).ys[-1, 0]

        def total(args):
            solved = sx.simulate_batch(
                model, dict(args=args), shared=shared, batch_size=1, mesh=mesh, throw=False
            )
            return solved.ys[:, -1, 0].sum()

        def same(found, right):
            for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(right), strict=True):
                (part,) = a.addressable_shards
                assert part.data.shape[0] == 2
                np.testing.assert_allclose(part.data, np.asarray(b)[part.index], rtol=1e-8)

        whole = np.asarray(robertson.args) * np.linspace(0.5, 2.0, 4)[:, None]
        lanes = NamedSharding(mesh, P("lane"))
        batch = jax.make_array_from_callback(whole.shape, lanes, lambda place: whole[place])
        both = jax.vmap(jax.value_and_grad(solve))
        right = jax.jit(both)(whole)
        each = jax.shard_map(both, mesh=mesh, in_specs=P("lane"), out_specs=P("lane"))
        same(jax.jit(each)(batch), right)
        same(jax.jit(both)(batch), right)
        same(jax.jit(jax.grad(total))(batch), right[1])
        print("all")
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = "{}:{}".format(*free.getsockname())
    both = [started(script, folder=tmp_path, args=(i, address)) for i in (0, 1)]
    with ThreadPoolExecutor() as readers:  # one that nobody reads would stop, and the other wait
        for out in readers.map(said, both):
            assert out.splitlines()[-1] == "all"


class Unsure(diffrax.AbstractSolver):
    """Euler's method, which cannot say how wrong a step above 0.01 is."""

    term_structure: ClassVar = diffrax.ODETerm
    interpolation_cls: ClassVar = diffrax.LocalLinearInterpolation

    def order(self, terms):
        return 1

    def init(self, terms, t0, t1, y0, args):
        return None

    def func(self, terms, t0, y0, args):
        return terms.vf(t0, y0, args)

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        y1 = y0 + terms.vf_prod(t0, y0, args, terms.contr(t0, t1))
        error = jnp.where(t1 - t0 > 0.01, jnp.nan, 0 * y0)
        return y1, error, dict(y0=y0, y1=y1), None, diffrax.RESULTS.successful


@pytest.mark.parametrize("controller", [diffrax.PIDController(1e-3, 1e-6), sx.StiffPID(1e-3, 1e-6)])
def test_an_error_estimate_that_is_nan_is_none(controller):
    model = sx.Simulate(lambda t, y, args: -y, solver=Unsure(), controller=controller, dt0=0.1)
    simulation = model(1.0, [1.0])
    assert simulation.stats["num_accepted_steps"] >= 100
    assert simulation.stats["num_rejected_steps"] > 0
    np.testing.assert_allclose(simulation.ys, np.exp(-1.0), rtol=0.02)

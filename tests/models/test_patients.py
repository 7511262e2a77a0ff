"""Tables of doses and measurements, in the columns of NONMEM."""

import jax
import jax.numpy as jnp
import numpy as np
import pandas
import pytest

import stablax as sx

TABLE = {
    "ID": [7, 7, 7, 7, "b", "b", "b", "b", "b"],
    "TIME": [0.0, 1.0, 1.0, 30.0, 0.0, 2.0, 5.0, 5.0, 9.0],
    "AMT": [100.0, ".", 50.0, ".", 80.0, 0.0, 20.0, 0.0, 0.0],
    "RATE": [0, 0, 25.0, 0, 0, 0, 0, 0, 0],
    "DUR": [0, 0, 0, 0, 0, 0, 4.0, 0, 0],
    "ADDL": [2, 0, 0, 0, 0, 0, 0, 0, 0],
    "II": [12.0, 0, 0, 0, 0, 0, 0, 0, 0],
    "CMT": [1, 2, 2, 2, 1, 2, 2, 2, 2],
    "EVID": [1, 0, 1, 0, 1, 0, 4, 0, 0],
    "DV": [".", 3.5, ".", 1.5, ".", 9.0, ".", 0.5, "."],
    "MDV": [1, 0, 1, 0, 1, 0, 1, 0, 1],
    "WT": [70.0, 70.0, 70.0, 70.0, 55.5, 55.5, 55.5, 55.5, 55.5],
}


def rows(schedule):
    """What a schedule of one patient holds."""
    given = lambda g: [
        (float(t), float(a), float(d), g.places[int(i)])
        for t, a, d, i in zip(g.t, g.amount, g.duration, g.into, strict=True)
        if np.isfinite(t)
    ]
    resets = [float(t) for t in schedule._resets if np.isfinite(t)]
    return given(schedule._doses), given(schedule._infusions), resets


@pytest.mark.parametrize("kind", ["dict", "frame", "lower case"])
def test_a_table_is_read(kind):
    table = {name.lower(): x for name, x in TABLE.items()} if kind == "lower case" else TABLE
    table = pandas.DataFrame(table) if kind == "frame" else table
    patients = sx.Patients.of_table(table)
    assert [str(x) for x in patients.ids] == ["7", "b"] and patients.places == (1,)
    assert patients.ts.tolist() == [[1.0, 30.0], [2.0, 5.0]]
    assert patients.values.tolist() == [[3.5, 1.5], [9.0, 0.5]]
    weights = patients.covariates["wt" if kind == "lower case" else "WT"]
    assert weights.tolist() == [70.0, 55.5] and len(patients.covariates) == 1
    first, second = (jax.tree.map(lambda x, k=k: x[k], patients.schedule) for k in range(2))
    doses = [(0.0, 100.0, 0.0, 0), (12.0, 100.0, 0.0, 0), (24.0, 100.0, 0.0, 0)]
    assert rows(first) == (doses, [(1.0, 50.0, 2.0, 1)], [])
    assert rows(second) == ([(0.0, 80.0, 0.0, 0)], [(5.0, 20.0, 4.0, 1)], [5.0])


def test_a_table_is_solved():
    """Each patient's own doses, measurements and covariates, in one program."""
    table = {k: v for k, v in TABLE.items() if k not in ("EVID", "MDV")}
    table = {k: v[:4] + v[4:6] for k, v in table.items()}
    patients = sx.Patients.of_table(table, compartments={1: "gut", 2: "plasma"})
    flows = [sx.MassAction(1.0), sx.MassAction("out")]
    field = sx.ReactionField(["gut -> plasma", "plasma -> 0"], flows, inputs=("out",))
    model = sx.SimulatePhases(field, controller=sx.StiffPID.preset(rtol=1e-9, atol=1e-11))
    y0 = field.state({})

    def one(schedule, ts, weight):
        phases = schedule.phases(field, y0, end=30.0, args={"out": 14.0 / weight})
        return model(y0, ts, phases).ys[:, 1]

    found = jax.vmap(one)(patients.schedule, patients.ts, patients.covariates["WT"])

    def swallowed(t, mg, s, out):
        s = s - t
        return mg / (1 - out) * (np.exp(-out * s) - np.exp(-s)) if s > 0 else 0.0

    out = 14.0 / 70.0
    late = sum(swallowed(t, 100.0, 30.0, out) for t in (0.0, 12.0, 24.0))
    late += 25.0 / out * (np.exp(-out * 27.0) - np.exp(-out * 29.0))
    np.testing.assert_allclose(found[0], [swallowed(0.0, 100.0, 1.0, out), late], atol=1e-6)
    np.testing.assert_allclose(found[1, 0], swallowed(0.0, 80.0, 2.0, 14.0 / 55.5), atol=1e-6)
    assert patients.places == ("plasma",) and patients.is_measured.tolist()[1] == [True, False]
    assert patients.place.tolist() == [[0, 0], [0, -1]]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (dict(TIME=None), r"`table` has no column TIME"),
        (dict(TIME=[0.0, 1.0]), r"must have one length, above 0, got \{.*'TIME': 2"),
        (dict(TIME=[0.0, 2.0, 1.0]), r"TIME falls from 2 to 1 in row 2"),
        (dict(TIME=[0.0, "8:30", 9.0]), r"TIME is '8:30' in row 1, which is no number"),
        (dict(DV=[".", ".", 2.0]), r"DV is missing in row 1\. A row without .* MDV of 1"),
        (dict(SS=[1, 0, 0]), r"SS is 1 and II is 0 in row 0: known are an SS of 0, and of 1 with"),
        (dict(SS=[2, 0, 0], II=[8, 0, 0]), r"SS is 2 and II is 8 in row 0"),
        (dict(RATE=[-2, 0, 0]), r"RATE is -2 in row 0\. What is estimated is no number"),
        (dict(RATE=[5, 0, 0], DUR=[5, 0, 0]), r"RATE of 5 and a DUR of 5, which contradict"),
        (dict(EVID=[0, 0, 0]), r"Row 0 has an AMT of 10, but an EVID of 0"),
        (dict(EVID=[1, 1, 0]), r"Row 1 has an EVID of 1, which is a dose, but no AMT"),
        (dict(EVID=[5, 0, 0]), r"EVID is 5 in row 0, but 0 to 4 are known"),
        (dict(ADDL=[3, 0, 0]), r"an ADDL of 3 and an II of 0"),
        (dict(CMT=[-1, 1, 1]), r"CMT is -1 in row 0: compartments are counted from 1 on"),
        (dict(AMT=[-10, 0, 0]), r"AMT is -10 in row 0, but must not be negative"),
        (dict(ID=[1, float("nan"), 1]), r"ID is missing in row 1"),
        (dict(ID=[1, 2, 1]), r"Row 2 is of the patient 1, as row 0, and others are between"),
        (
            dict(AMT=[0.0, 10.0, 0.0], DV=[1.0, ".", 2.0], SS=[0, 1, 0], II=[0, 8, 0]),
            r"SS is 1 in row 1, at 1: known is a regimen at steady state from the first row",
        ),
        (dict(time=[0.0, 1.0, 2.0]), r"`table` has the column TIME twice"),
    ],
)
def test_what_is_wrong_in_a_table_has_words(changes, text):
    table = dict(TIME=[0.0, 1.0, 2.0], AMT=[10.0, 0.0, 0.0], DV=[".", 1.0, 2.0]) | changes
    with pytest.raises(ValueError, match=text):
        sx.Patients.of_table({name: column for name, column in table.items() if column is not None})


def test_what_a_table_may_leave_out():
    """Without DV the times are read; columns of words, a CMT of 0, times that begin elsewhere."""
    table = dict(ID=["a", "a", "b"], TIME=[-0.5, 3.0, 7.0], AMT=[0.0, 5.0, 2.0], CMT=[0, "1.0", 1])
    patients = sx.Patients.of_table(
        table | dict(SEX=["M", "M", "F"], EVID=[0, 1, 1], WT=[70, 70, 50]), compartments={1: "gut"}
    )
    assert patients.t0.tolist() == [-0.5, 7.0] and list(patients.covariates) == ["WT"]
    assert patients.ts.tolist() == [[-0.5], [np.inf]] and np.isnan(patients.values).all()
    assert patients.schedule._doses.places == ("gut",)


def test_a_regimen_at_steady_state_is_read():
    table = dict(TIME=[0.0, 5.0], AMT=[10.0, 0.0], II=[8.0, 0.0], SS=[1, 0], DV=[".", 1.0])
    patients = sx.Patients.of_table(table | dict(ADDL=[1, 0]))
    given = patients.schedule._doses
    assert given.t.tolist() == [[0.0, 8.0]] and given.period.tolist() == [[8.0, np.inf]]
    field = lambda t, y, rate: -rate * y
    model = sx.SimulatePhases(field)
    begin = lambda s: s.at_steady_state(model, jnp.zeros(1), args=0.1)[0].y
    exact = 10.0 * np.exp(-0.8) / (1 - np.exp(-0.8))
    np.testing.assert_allclose(jax.vmap(begin)(patients.schedule), [[exact]], rtol=1e-5)


def test_what_is_no_table_has_words():
    with pytest.raises(TypeError, match=r"`table` must map names of columns to arrays"):
        sx.Patients.of_table([[0.0, 1.0]])
    known = dict(TIME=[0.0, 1.0], AMT=[1.0, 0.0], DV=[".", 1.0], CMT=[1, 3])
    with pytest.raises(ValueError, match=r"CMT is 3 in row 1, but `compartments` has `1`, `2`"):
        sx.Patients.of_table(known, compartments={1: "gut", 2: "plasma"})


def test_the_subjects_of_theophylline():
    """A column for each fact, as they were published."""
    from helpers import data_file

    raw = pandas.read_csv(data_file("theophylline.csv"))
    doses = raw.groupby("subject", as_index=False).first()
    amounts = doses.dose_mg_per_kg * doses.weight_kg
    given = pandas.DataFrame(dict(ID=doses.subject, TIME=0.0, AMT=amounts, WT=doses.weight_kg))
    columns = dict(ID=raw.subject, TIME=raw.time_h, DV=raw.concentration_mg_per_l, WT=raw.weight_kg)
    table = pandas.concat([given, pandas.DataFrame(columns)]).sort_values(
        ["ID", "TIME", "AMT"], kind="stable"
    )
    patients = sx.Patients.of_table(table)
    assert len(patients.ids) == 12 and patients.values.shape == (12, 11)
    assert patients.is_measured.all() and patients.schedule._doses.t.shape == (12, 1)
    np.testing.assert_allclose(patients.schedule._doses.amount[0], [4.02 * 79.6])

"""The house stays easy to live in: the habits that a machine can check."""

import ast
import functools
import importlib
import inspect
import pkgutil
import re
from typing import get_args, get_type_hints

import equinox as eqx
import pytest
from helpers import ROOT

import stablax as sx

SOURCE = ROOT / "src" / "stablax"
MODULES = sorted(m.name for m in pkgutil.walk_packages([str(SOURCE)], "stablax.") if not m.ispkg)
BY_SUBJECT = """diagnosis fields fitting jacobians models phases reactions results solvers
steady_states""".split()
PUBLIC_MODULES = {*BY_SUBJECT, "plot", "problems"}
PUBLIC = [name for name in vars(sx) if not name.startswith("_") and name not in PUBLIC_MODULES]


def test_what_is_public():
    """Each name is in the flat namespace; what one starts from is what `dir` shows; and the rest
    is found in a module by its subject. Those re-export only."""
    found = {m.name for m in pkgutil.iter_modules([str(SOURCE)]) if not m.name.startswith("_")}
    assert found == PUBLIC_MODULES
    start = set(sx.__all__) - PUBLIC_MODULES
    assert set(dir(sx)) == {*sx.__all__, "__version__"} and set(sx.__all__) >= PUBLIC_MODULES
    assert 30 <= len(start) <= 40 and start <= set(PUBLIC)
    by_subject = {}
    for name in BY_SUBJECT:
        module = getattr(sx, name)
        tree = ast.parse((SOURCE / f"{name}.py").read_text())
        assert all(isinstance(node, ast.ImportFrom) for node in tree.body[1:]), name
        by_subject |= {n: x for n, x in vars(module).items() if not n.startswith("_")}
    assert all(getattr(sx, name) is thing for name, thing in by_subject.items())
    assert set(PUBLIC) == start | set(by_subject)


@pytest.mark.parametrize("name", MODULES)
def test_no_module_is_too_large_or_imports_what_is_private(name):
    path = SOURCE.joinpath(*name.split(".")[1:]).with_suffix(".py")
    text = path.read_text()
    assert len(text.splitlines()) <= 450
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            imported = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            imported = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for module in imported:
            assert not re.search(r"\.(internal|_src|_[a-z])", module), module


# A module imports from its own family and from the layers below.
LAYERS = """_parameters _linalg _fields _coordinates _neural _reactions _hybrids _solvers _control
_steady _models _training _objectives _fits _diagnostics""".split()
# The zoo: what is in it nobody needs who has a field of his own.
ZOO = ["_neural", "_reactions", "_hybrids"]


@pytest.mark.parametrize("family", LAYERS)
def test_data_flows_one_way(family):
    above = LAYERS[LAYERS.index(family) + 1 :]
    for path in (SOURCE / family).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level == 2 and node.module:
                first, *deeper = node.module.split(".")
                assert first not in above, f"{path.name} imports from {node.module}"
                assert family in ZOO or first not in ZOO, f"{path.name} knows {node.module}"
                assert not (first in LAYERS and deeper), f"{path.name}: {node.module} is private"


def test_types_say_what_is_known():
    """`Any` is for what is forwarded, or a user's own."""
    annotated, unknown = 0, []
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.arg) and node.annotation is not None:
                annotated += 1
                names = {n.id for n in ast.walk(node.annotation) if isinstance(n, ast.Name)}
                if "Any" in names:
                    unknown.append(f"{path.relative_to(SOURCE)}:{node.lineno} {ast.unparse(node)}")
    assert len(unknown) < 0.03 * annotated, "\n".join(unknown)


def _classes():
    for name in MODULES:
        module = importlib.import_module(name)
        for cls in vars(module).values():
            if inspect.isclass(cls) and cls.__module__ == name and issubclass(cls, eqx.Module):
                yield cls


@pytest.mark.parametrize("cls", list(_classes()), ids=lambda cls: cls.__name__)
def test_a_class_is_abstract_or_final(cls):
    """No class inherits from a concrete one of ours, and no method is overridden that has a
    body; `GuardedField` is the one declared template."""
    for base in cls.__mro__[1:]:
        ours = base.__module__.startswith("stablax.")
        # Equinox knows abstract attributes too, which `inspect` does not see.
        attributes = getattr(base, "__abstractvars__", ()) or getattr(
            base, "__abstractclassvars__", ()
        )
        if ours and not (inspect.isabstract(base) or attributes):
            pytest.fail(f"{cls.__name__} inherits from the concrete {base.__name__}")


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_documented(name):
    thing = getattr(sx, name)
    assert (inspect.getdoc(thing) or "").strip(), name
    if inspect.isfunction(thing):
        doc = inspect.getdoc(thing) or ""
        for parameter in inspect.signature(thing).parameters:
            assert f"`{parameter}`" in doc, f"{name} does not document `{parameter}`"


def test_the_public_names_of_the_design():
    expected = """Guard GuardedField Guarded MLPField GuardActivity StiffPID FiniteSteps kvaerno5
    find_steady_state SteadyState Simulate SteadyThenSimulate Simulation GuardSummary partition
    Frozen masked_mean RESULTS is_successful explain Rodas5P Rodas4 Rosenbrock23 kvaerno3 kencarp4
    Dense Banded Sparse MatrixFree check_jacobian DiscreteAdjoint simulate_batch STATUS Newton
    PseudoTransient Integrate Chain AbstractSteadyMethod Attempt SteadyProblem conserved_quantities
    ConservedQuantities WarmStart diagnose check_gradient stiffness stiffness_along with_options
    Cause StepLog GuardCounts SampleCounts Suggestion Diagnosis GradientCheck Stiffness
    ReactionField AbstractRateLaw MassAction MichaelisMenten Hill
    NeuralRate HybridField LogField SoftplusField ScaledField
    SimulatePhases Phase AbstractDose AddDose ScaleDose SetDose
    AbstractModel AbstractCoordinates AbstractJacobian AbstractFactorisation DenseLU
    AbstractRosenbrock RosenbrockTableau
    Parameter parameters Objective Series
    DoseFunction Scales ScaledNeuralField DampedField ContractingField
    LyapunovField GradientFlowField PortHamiltonianField AntisymmetricField QuasiPositiveField"""
    assert set(expected.split()) <= set(PUBLIC)


@pytest.mark.parametrize("Model", [sx.Simulate, sx.SteadyThenSimulate, sx.SimulatePhases])
def test_keywords_are_what_an_editor_shows(Model):
    """The dataclasses of the options, which a call is checked by, and the `TypedDict` beside."""
    (keywords,) = get_args(Model.__init__.__annotations__["options"])
    checked = inspect.signature(Model).parameters
    own = set(Model.__init__.__annotations__) - {"options"}
    shown = {p.name: p.annotation for p in checked.values() if p.name not in own}
    assert shown == get_type_hints(keywords)
    assert checked["max_steps"].default == 4096 and checked["trace"].default is None
    assert all(checked[name].kind is inspect.Parameter.KEYWORD_ONLY for name in shown)
    assert all(checked[name].default is not inspect.Parameter.empty for name in shown)


def test_what_is_changed_in_a_model_is_what_it_was_made_of():
    (changes,) = get_args(sx.with_options.__annotations__["changes"])
    made_of = inspect.signature(sx.Simulate).parameters.values()
    assert get_type_hints(changes) == {p.name: p.annotation for p in made_of}


def test_what_a_stack_of_phases_overrides_is_what_a_phase_does():
    (options,) = get_args(sx.Phase.repeat.__annotations__["options"])
    shown = inspect.signature(sx.Phase).parameters.values()
    assert get_type_hints(options) == {
        p.name: p.annotation for p in shown if p.kind is p.KEYWORD_ONLY
    }


def test_no_class_holds_a_partial():
    """Python 3.14 binds one as a method, 3.13 warns of it."""
    for name in MODULES:
        for cls in filter(inspect.isclass, vars(importlib.import_module(name)).values()):
            held = vars(cls).values() if cls.__module__ == name else ()
            assert not any(isinstance(x, functools.partial) for x in held), cls


# Each of them has had several senses here, or one that a reader could not guess.
VAGUE = {"told", "forth", "until", "there", "thing", "stuff", "info", "tmp", "foo"}


def test_names_are_words_with_one_sense():
    """The glossary of CONTRIBUTING.md is that of the code: its words are used, and no name in the
    code is one of those that say nothing."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    table = text[text.index("## Glossary") : text.index("## Tests")]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| ")][1:]
    words = [word.strip() for row in rows for word in row.split(",")]
    assert len(words) >= 30 and len(set(words)) == len(words)
    sources = {path: path.read_text() for path in sorted(SOURCE.rglob("*.py"))}
    everything = "\n".join(sources.values())
    unused = [word for word in words if not re.search(rf"\b{word}", everything)]
    assert not unused, f"in the glossary and not in the code: {unused}"
    vague = [
        f"{path.name}:{node.lineno} {name}"
        for path, source in sources.items()
        for node in ast.walk(ast.parse(source))
        for name in (getattr(node, "id", None), getattr(node, "arg", None))
        if name in VAGUE
    ]
    assert not vague, "\n".join(vague)

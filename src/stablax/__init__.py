"""stablax: stable neural-ODE model components for JAX.

Everything is in this namespace. `__all__`, and so `dir`, holds what one starts from, and modules in
which all the rest is found by what it is about: `fields`, `reactions`, `models`, `phases`,
`steady_states`, `fitting`, `solvers`, `jacobians`, `results`, `diagnosis`, `plot`, `problems`.
"""

import importlib as _importlib
from importlib.metadata import version as _version
from typing import TYPE_CHECKING as _TYPE_CHECKING

from . import (
    diagnosis as diagnosis,
    fields as fields,
    fitting as fitting,
    jacobians as jacobians,
    models as models,
    phases as phases,
    plot as plot,
    reactions as reactions,
    results as results,
    solvers as solvers,
    steady_states as steady_states,
)
from ._control import (
    GuardCounts as GuardCounts,
    StepLog as StepLog,
    StiffPID as StiffPID,
)
from ._coordinates import (
    AbstractCoordinates as AbstractCoordinates,
    LogField as LogField,
    ScaledField as ScaledField,
    SoftplusField as SoftplusField,
)
from ._diagnostics import (
    Diagnosis as Diagnosis,
    GradientCheck as GradientCheck,
    Stiffness as Stiffness,
    Suggestion as Suggestion,
    check_gradient as check_gradient,
    diagnose as diagnose,
    stiffness as stiffness,
    stiffness_along as stiffness_along,
)
from ._fields import (
    Guard as Guard,
    GuardActivity as GuardActivity,
    Guarded as Guarded,
    GuardedField as GuardedField,
    Input as Input,
    check_jacobian as check_jacobian,
)
from ._fits import Fit as Fit, fit as fit
from ._hybrids import HybridField as HybridField
from ._linalg import (
    AbstractFactorisation as AbstractFactorisation,
    AbstractJacobian as AbstractJacobian,
    Banded as Banded,
    Dense as Dense,
    DenseLU as DenseLU,
    MatrixFree as MatrixFree,
    Sparse as Sparse,
)
from ._models import (
    AbstractDose as AbstractDose,
    AbstractModel as AbstractModel,
    AddDose as AddDose,
    DiscreteAdjoint as DiscreteAdjoint,
    Dose as Dose,
    DoseFunction as DoseFunction,
    Event as Event,
    EventLog as EventLog,
    GuardSummary as GuardSummary,
    Infusion as Infusion,
    Patients as Patients,
    PeriodicState as PeriodicState,
    Phase as Phase,
    Reset as Reset,
    ScaleDose as ScaleDose,
    Schedule as Schedule,
    SetDose as SetDose,
    Simulate as Simulate,
    SimulatePhases as SimulatePhases,
    Simulation as Simulation,
    SteadyThenSimulate as SteadyThenSimulate,
    Stepping as Stepping,
    explain as explain,
    find_periodic_state as find_periodic_state,
    is_successful as is_successful,
    simulate_batch as simulate_batch,
    with_options as with_options,
)
from ._neural import (
    AntisymmetricField as AntisymmetricField,
    ContractingField as ContractingField,
    DampedField as DampedField,
    GradientFlowField as GradientFlowField,
    LyapunovField as LyapunovField,
    MLPField as MLPField,
    PortHamiltonianField as PortHamiltonianField,
    QuasiPositiveField as QuasiPositiveField,
    ScaledNeuralField as ScaledNeuralField,
    Scales as Scales,
)
from ._objectives import (
    AbstractNoise as AbstractNoise,
    Evaluation as Evaluation,
    LaplaceNoise as LaplaceNoise,
    LogNormalNoise as LogNormalNoise,
    NormalNoise as NormalNoise,
    Objective as Objective,
    Observable as Observable,
    Solved as Solved,
)
from ._parameters import (
    AbstractPrior as AbstractPrior,
    LaplacePrior as LaplacePrior,
    LogNormalPrior as LogNormalPrior,
    NormalPrior as NormalPrior,
    Parameter as Parameter,
    Parameters as Parameters,
    UniformPrior as UniformPrior,
    natural as natural,
    parameters as parameters,
)
from ._reactions import (
    AbstractRateLaw as AbstractRateLaw,
    Hill as Hill,
    MassAction as MassAction,
    MichaelisMenten as MichaelisMenten,
    NeuralRate as NeuralRate,
    ProductRate as ProductRate,
    Reaction as Reaction,
    ReactionField as ReactionField,
    rate_constant as rate_constant,
)
from ._results import (
    RESULTS as RESULTS,
    STATUS as STATUS,
    Cause as Cause,
)
from ._series import Series as Series
from ._solvers import (
    AbstractRosenbrock as AbstractRosenbrock,
    FiniteSteps as FiniteSteps,
    PatientChord as PatientChord,
    Rodas4 as Rodas4,
    Rodas5P as Rodas5P,
    Rosenbrock23 as Rosenbrock23,
    RosenbrockTableau as RosenbrockTableau,
    kencarp4 as kencarp4,
    kvaerno3 as kvaerno3,
    kvaerno5 as kvaerno5,
)
from ._static import Frozen as Frozen
from ._steady import (
    AbstractSteadyMethod as AbstractSteadyMethod,
    Attempt as Attempt,
    Chain as Chain,
    ConservedQuantities as ConservedQuantities,
    Integrate as Integrate,
    Newton as Newton,
    PseudoTransient as PseudoTransient,
    SteadyProblem as SteadyProblem,
    SteadyState as SteadyState,
    WarmStart as WarmStart,
    conserved_quantities as conserved_quantities,
    find_steady_state as find_steady_state,
)
from ._training import (
    SampleCounts as SampleCounts,
    masked_mean as masked_mean,
    partition as partition,
)

if _TYPE_CHECKING:
    from . import problems as problems

__version__ = _version("stablax")

__all__ = [
    # fields
    "Guard", "GuardedField", "Guarded", "MLPField", "ReactionField", "HybridField", "LogField",
    "ScaledNeuralField", "Scales", "Input", "Frozen",
    # models
    "Simulate", "SteadyThenSimulate", "SimulatePhases", "Phase", "Dose", "Infusion",
    "Schedule", "Event", "simulate_batch", "with_options", "find_steady_state",

    # how they are solved
    "StiffPID", "Rodas5P", "kvaerno5", "DiscreteAdjoint",
    # what came of it
    "RESULTS", "is_successful", "explain", "diagnose", "check_gradient", "stiffness",
    # training and fitting
    "partition", "masked_mean", "Parameter", "parameters", "Series", "Observable", "Objective",
    "fit",
    # modules, with all the rest
    "fields", "reactions", "models", "phases", "steady_states", "fitting", "solvers", "jacobians",
    "results", "diagnosis", "plot", "problems",
]  # fmt: skip


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])


def __getattr__(name: str):
    """`stablax.problems` is imported when it is first used."""
    if name == "problems":
        return _importlib.import_module(".problems", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

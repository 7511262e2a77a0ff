"""stablax: stable neural-ODE model components for JAX."""

import importlib as _importlib
from importlib.metadata import version as _version

from . import plot as plot
from ._control import (
    GuardCounts as GuardCounts,
    StepLog as StepLog,
    StiffPID as StiffPID,
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
    AbstractCoordinates as AbstractCoordinates,
    AbstractRateLaw as AbstractRateLaw,
    AntisymmetricField as AntisymmetricField,
    ContractingField as ContractingField,
    DampedField as DampedField,
    GradientFlowField as GradientFlowField,
    Guard as Guard,
    GuardActivity as GuardActivity,
    Guarded as Guarded,
    GuardedField as GuardedField,
    Hill as Hill,
    HybridField as HybridField,
    LogField as LogField,
    LyapunovField as LyapunovField,
    MassAction as MassAction,
    MichaelisMenten as MichaelisMenten,
    MLPField as MLPField,
    NeuralRate as NeuralRate,
    PortHamiltonianField as PortHamiltonianField,
    ProductRate as ProductRate,
    QuasiPositiveField as QuasiPositiveField,
    Reaction as Reaction,
    ReactionField as ReactionField,
    ScaledField as ScaledField,
    ScaledNeuralField as ScaledNeuralField,
    Scales as Scales,
    SoftplusField as SoftplusField,
    rate_constant as rate_constant,
)
from ._linalg import (
    AbstractJacobian as AbstractJacobian,
    Banded as Banded,
    Dense as Dense,
    MatrixFree as MatrixFree,
    Sparse as Sparse,
    check_jacobian as check_jacobian,
)
from ._models import (
    AbstractDose as AbstractDose,
    AbstractModel as AbstractModel,
    AddDose as AddDose,
    DiscreteAdjoint as DiscreteAdjoint,
    DoseFunction as DoseFunction,
    GuardSummary as GuardSummary,
    Phase as Phase,
    ScaleDose as ScaleDose,
    SetDose as SetDose,
    Simulate as Simulate,
    SimulatePhases as SimulatePhases,
    Simulation as Simulation,
    SteadyThenSimulate as SteadyThenSimulate,
    Stepping as Stepping,
    explain as explain,
    is_successful as is_successful,
    simulate_batch as simulate_batch,
    with_options as with_options,
)
from ._results import (
    RESULTS as RESULTS,
    STATUS as STATUS,
    Cause as Cause,
)
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

__version__ = _version("stablax")


def __getattr__(name: str):
    """`stablax.problems` is imported when it is first used."""
    if name == "problems":
        return _importlib.import_module(".problems", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

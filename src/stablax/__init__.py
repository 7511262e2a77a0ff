"""stablax: stable neural-ODE model components for JAX."""

from importlib.metadata import version as _version

from ._control import StiffPID as StiffPID
from ._fields import (
    AntisymmetricField as AntisymmetricField,
    ContractingField as ContractingField,
    DampedField as DampedField,
    GradientFlowField as GradientFlowField,
    Guard as Guard,
    GuardActivity as GuardActivity,
    Guarded as Guarded,
    GuardedField as GuardedField,
    LyapunovField as LyapunovField,
    MLPField as MLPField,
    PortHamiltonianField as PortHamiltonianField,
    QuasiPositiveField as QuasiPositiveField,
    ScaledNeuralField as ScaledNeuralField,
    Scales as Scales,
)
from ._linalg import (
    Banded as Banded,
    Dense as Dense,
    MatrixFree as MatrixFree,
    Sparse as Sparse,
    check_jacobian as check_jacobian,
)
from ._models import (
    DiscreteAdjoint as DiscreteAdjoint,
    GuardSummary as GuardSummary,
    Simulate as Simulate,
    Simulation as Simulation,
    SteadyThenSimulate as SteadyThenSimulate,
    explain as explain,
    is_successful as is_successful,
    simulate_batch as simulate_batch,
)
from ._results import RESULTS as RESULTS
from ._solvers import (
    FiniteSteps as FiniteSteps,
    PatientChord as PatientChord,
    Rodas4 as Rodas4,
    Rodas5P as Rodas5P,
    Rosenbrock23 as Rosenbrock23,
    kencarp4 as kencarp4,
    kvaerno3 as kvaerno3,
    kvaerno5 as kvaerno5,
)
from ._static import Frozen as Frozen
from ._steady import (
    STATUS as STATUS,
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
from ._training import masked_mean as masked_mean, partition as partition

__version__ = _version("stablax")

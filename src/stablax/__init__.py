"""stablax: stable neural-ODE model components for JAX."""

from importlib.metadata import version as _version

from ._control import StiffPID as StiffPID
from ._fields import (
    Guard as Guard,
    GuardActivity as GuardActivity,
    Guarded as Guarded,
    GuardedField as GuardedField,
    MLPField as MLPField,
)
from ._models import (
    GuardSummary as GuardSummary,
    Simulate as Simulate,
    Simulation as Simulation,
    SteadyThenSimulate as SteadyThenSimulate,
    explain as explain,
    is_successful as is_successful,
)
from ._results import RESULTS as RESULTS
from ._solvers import (
    FiniteSteps as FiniteSteps,
    PatientChord as PatientChord,
    kvaerno5 as kvaerno5,
)
from ._static import Frozen as Frozen
from ._steady import (
    Chain as Chain,
    Newton as Newton,
    PseudoTransient as PseudoTransient,
    SteadyState as SteadyState,
    find_steady_state as find_steady_state,
)
from ._training import masked_mean as masked_mean, partition as partition

__version__ = _version("stablax")

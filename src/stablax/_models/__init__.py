from ._adjoint import DiscreteAdjoint as DiscreteAdjoint
from ._batch import simulate_batch as simulate_batch
from ._dose import (
    AbstractDose as AbstractDose,
    AddDose as AddDose,
    DoseFunction as DoseFunction,
    ScaleDose as ScaleDose,
    SetDose as SetDose,
)
from ._event import Event as Event, EventLog as EventLog
from ._explain import (
    Outcome as Outcome,
    explain as explain,
    is_successful as is_successful,
)
from ._given import Dose as Dose, Infusion as Infusion, Reset as Reset
from ._knots import knots_met as knots_met
from ._model import AbstractModel as AbstractModel, signature_of as signature_of
from ._options import ResolvedOptions as ResolvedOptions
from ._patients import Patients as Patients
from ._periodic import find_periodic_state as find_periodic_state
from ._periodic_state import PeriodicState as PeriodicState
from ._phase import Phase as Phase
from ._run_phases import options_in as options_in, options_of as options_of
from ._schedule import Schedule as Schedule
from ._simulate import Simulate as Simulate
from ._simulate_phases import SimulatePhases as SimulatePhases
from ._simulation import GuardSummary as GuardSummary, Simulation as Simulation
from ._steady_then_simulate import SteadyThenSimulate as SteadyThenSimulate
from ._stepping import (
    Stepping as Stepping,
    as_stepping as as_stepping,
    controller_of as controller_of,
    planned as planned,
)
from ._with_options import with_options as with_options

from ._adjoint import DiscreteAdjoint as DiscreteAdjoint
from ._batch import simulate_batch as simulate_batch
from ._explain import explain as explain, is_successful as is_successful
from ._simulate import Simulate as Simulate
from ._simulation import GuardSummary as GuardSummary, Simulation as Simulation
from ._steady_then_simulate import SteadyThenSimulate as SteadyThenSimulate

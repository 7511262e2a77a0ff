"""Models: a field and how it is solved, to be called with a state and times."""

from ._models import (
    AbstractModel as AbstractModel,
    Simulate as Simulate,
    SimulatePhases as SimulatePhases,
    Simulation as Simulation,
    SteadyThenSimulate as SteadyThenSimulate,
    Stepping as Stepping,
    simulate_batch as simulate_batch,
    with_options as with_options,
)

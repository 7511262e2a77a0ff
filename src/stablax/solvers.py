"""How a step is taken, how big it is, and how a solve is differentiated."""

from ._control import (
    StiffPID as StiffPID,
)
from ._models import (
    DiscreteAdjoint as DiscreteAdjoint,
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

from ._admissible import (
    AdmissibleSteps as AdmissibleSteps,
    Cause as Cause,
    StepRecord as StepRecord,
    admissible as admissible,
)
from ._stiff_pid import StiffPID as StiffPID

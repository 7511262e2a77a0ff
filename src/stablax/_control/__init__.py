from ._admissible import (
    AdmissibleSteps as AdmissibleSteps,
    StepRecord as StepRecord,
    admissible as admissible,
    near as near,
)
from ._stiff_pid import (
    StiffPID as StiffPID,
    check_reach as check_reach,
    least_rtol as least_rtol,
    refuse_no_numbers as refuse_no_numbers,
    refuse_traced_times as refuse_traced_times,
)
from ._watch import (
    GuardCounts as GuardCounts,
    StepLog as StepLog,
    Watch as Watch,
    Watched as Watched,
)

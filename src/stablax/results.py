"""What a solve returns, and how it ended."""

from ._control import (
    GuardCounts as GuardCounts,
    StepLog as StepLog,
)
from ._fields import (
    GuardActivity as GuardActivity,
)
from ._models import (
    GuardSummary as GuardSummary,
    Simulation as Simulation,
    explain as explain,
    is_successful as is_successful,
)
from ._results import (
    RESULTS as RESULTS,
    STATUS as STATUS,
    Cause as Cause,
)
from ._steady import (
    SteadyState as SteadyState,
)
from ._training import (
    SampleCounts as SampleCounts,
)

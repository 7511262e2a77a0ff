from ._conserved import as_conserved as as_conserved
from ._find import (
    as_chain as as_chain,
    default_tolerances as default_tolerances,
    explain_steady as explain_steady,
    find_steady_state as find_steady_state,
    refuse_rows_of as refuse_rows_of,
    steady_facts as steady_facts,
    steady_state as steady_state,
)
from ._methods import (
    Chain as Chain,
    Newton as Newton,
    PseudoTransient as PseudoTransient,
)
from ._steady_state import SteadyState as SteadyState

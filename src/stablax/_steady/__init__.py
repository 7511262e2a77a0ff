from ._conserved import as_conserved as as_conserved
from ._find import (
    as_chain as as_chain,
    check_rows as check_rows,
    default_tolerances as default_tolerances,
    find_steady_state as find_steady_state,
    steady_state as steady_state,
)
from ._methods import (
    Chain as Chain,
    Newton as Newton,
    PseudoTransient as PseudoTransient,
)
from ._steady_state import SteadyState as SteadyState

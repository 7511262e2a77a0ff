from ._base import AbstractSteadyMethod as AbstractSteadyMethod, Attempt as Attempt
from ._chain import (
    Chain as Chain,
    SteadyMethod as SteadyMethod,
    as_chain as as_chain,
    exchanges_lanes as exchanges_lanes,
)
from ._conserved import ConservedLike as ConservedLike, as_conserved as as_conserved
from ._detect import (
    ConservedQuantities as ConservedQuantities,
    conserved_quantities as conserved_quantities,
)
from ._find import (
    SteadyOptions as SteadyOptions,
    explain_steady as explain_steady,
    find_steady_state as find_steady_state,
    refuse_rows_of as refuse_rows_of,
    steady_facts as steady_facts,
    steady_state as steady_state,
)
from ._integrate import Integrate as Integrate
from ._newton import Newton as Newton
from ._problem import SteadyProblem as SteadyProblem
from ._pseudo_transient import PseudoTransient as PseudoTransient
from ._steady_state import SteadyState as SteadyState
from ._warm_start import (
    GuessLike as GuessLike,
    WarmStart as WarmStart,
    as_guess as as_guess,
)

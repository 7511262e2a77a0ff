"""What is wrong, and what to do: each rule looks for one cause."""

from ._causes_field import FIELD_RULES
from ._causes_missed import MISSED_RULES
from ._causes_solve import SOLVE_RULES
from ._causes_steady import steady_causes
from ._observe import Observation
from ._suggestion import Suggestion


def suggestions(seen: Observation, condition: float | None) -> list[Suggestion]:
    """All causes that were found. `condition`: the condition number of the Jacobian at the steady
    state."""
    found = list(steady_causes(seen, condition))
    if len(seen.t):
        for rule in (*FIELD_RULES, *SOLVE_RULES, *MISSED_RULES):
            found += rule(seen)
    return found

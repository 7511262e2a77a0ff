"""Problems of the literature on stiff systems, with their solutions.

```python
from stablax.problems import ROBERTSON, PROBLEMS

ys = sx.Simulate(ROBERTSON.field)(ROBERTSON.y0, ROBERTSON.ts, args=ROBERTSON.args).ys
ROBERTSON.error(ys)  # largest relative error
```

Each is a `Problem`. Fields are written as one should for JAX: a reaction network is two gathers and
one matrix product, not a stack of scalar expressions.
"""

from ._algebraic import (
    AMPLIFIER as AMPLIFIER,
    DAES as DAES,
    PENDULUM as PENDULUM,
    ROBERTSON_DAE as ROBERTSON_DAE,
)
from ._biology import INSULIN as INSULIN, SWITCH as SWITCH, insulin_network
from ._chemistry import (
    E5 as E5,
    HIRES as HIRES,
    OREGO as OREGO,
    POLLU as POLLU,
    ROBERTSON as ROBERTSON,
    e5_network,
    hires_network,
    pollu_network,
)
from ._clipped import CLIPPED as CLIPPED
from ._diffusion import (
    BRUSSELATOR as BRUSSELATOR,
    HEAT as HEAT,
    brusselator_of as brusselator_of,
    heat_of as heat_of,
)
from ._network import Network as Network, network as network
from ._neural import NEURAL_ROBERTSON as NEURAL_ROBERTSON
from ._oscillators import ISSUE_368 as ISSUE_368, VAN_DER_POL as VAN_DER_POL
from ._problem import Problem as Problem

PROBLEMS: dict[str, Problem] = {
    problem.name: problem
    for problem in (
        ROBERTSON,
        VAN_DER_POL,
        HIRES,
        OREGO,
        E5,
        POLLU,
        BRUSSELATOR,
        HEAT,
        ISSUE_368,
        INSULIN,
        SWITCH,
        NEURAL_ROBERTSON,
    )
}
"""All of them, by name, but `CLIPPED`, which needs a guard, and those with algebraic equations,
`DAES`, which need a solver with a `mass`."""

NETWORKS: dict[str, Network] = {
    "HIRES": hires_network,
    "E5": e5_network,
    "POLLU": pollu_network,
    "insulin": insulin_network,
}
"""The reactions of those that are networks, by name."""

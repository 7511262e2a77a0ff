"""What the Jacobian of a field looks like, and how systems in it are solved."""

from ._fields import (
    check_jacobian as check_jacobian,
)
from ._linalg import (
    AbstractFactorisation as AbstractFactorisation,
    AbstractJacobian as AbstractJacobian,
    Banded as Banded,
    Dense as Dense,
    DenseLU as DenseLU,
    MatrixFree as MatrixFree,
    Sparse as Sparse,
)

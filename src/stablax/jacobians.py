"""What the Jacobian of a field looks like, and how systems in it are solved."""

from ._fields import (
    check_jacobian as check_jacobian,
)
from ._linalg import (
    AbstractJacobian as AbstractJacobian,
    Banded as Banded,
    Dense as Dense,
    MatrixFree as MatrixFree,
    Sparse as Sparse,
)

from ._banded import Banded as Banded
from ._check import check_jacobian as check_jacobian
from ._dense import (
    Dense as Dense,
    Equilibrated as Equilibrated,
    as_jacobian as as_jacobian,
    linearise as linearise,
)
from ._jacobian import AbstractJacobian as AbstractJacobian, Factored as Factored
from ._matrix_free import MatrixFree as MatrixFree
from ._sparse import Sparse as Sparse

"""The codes that are compared, by name."""

from . import cvode, diffsol, jax_codes, scipy_codes, sundae
from ._base import Peer as Peer, Run as Run, Solver as Solver

MODULES = (jax_codes, cvode, diffsol, sundae, scipy_codes)
PEERS: dict[str, Peer] = {peer.name: peer for module in MODULES for peer in module.PEERS}

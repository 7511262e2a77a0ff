"""Strict numerics for every test: float64, and no silent broadcasting of ranks or promotion of
dtypes."""

import gc
import importlib.metadata
import os

import jax
import pytest

# In jax 0.10 half of what XLA takes to compile for a CPU are its emitters of fused kernels, and
# the suite is compilation. (A later jaxlib does not know the flag, and ends.)
_EMITTERS = "--xla_cpu_use_fusion_emitters"
if importlib.metadata.version("jaxlib").startswith("0.10."):
    given = os.environ.get("XLA_FLAGS", "")
    if _EMITTERS not in given:
        os.environ["XLA_FLAGS"] = f"{given} {_EMITTERS}=false"

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture
def key():
    return jax.random.key(0)


@pytest.fixture(scope="module", autouse=True)
def forget_what_was_compiled():
    """A compiled program keeps tens of memory maps, of which Linux grants a process 65,530; XLA
    aborts without them. No other file asks for what one file compiled."""
    yield
    jax.clear_caches()
    gc.collect()

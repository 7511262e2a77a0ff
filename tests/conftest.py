"""Strict numerics for every test: float64, and no silent broadcasting of ranks or promotion of
dtypes."""

import gc
import importlib.metadata
import os
import pathlib

import jax
import pytest

# The suite is compilation of programs that run for a millisecond: XLA's optimisations stay, but
# LLVM's are left out, and a program is not split for more threads than there are. In jax 0.10 half
# of the rest are emitters of fused kernels. (A later jaxlib does not know that flag, and ends.)
# With `STABLAX_TEST_COMPILER=user` programs are compiled as a user's are.
_FLAGS = {"xla_backend_optimization_level": "0", "xla_cpu_parallel_codegen_split_count": "1"}
if importlib.metadata.version("jaxlib").startswith("0.10."):
    _FLAGS["xla_cpu_use_fusion_emitters"] = "false"
if os.environ.get("STABLAX_TEST_COMPILER") != "user":
    given = os.environ.get("XLA_FLAGS", "")
    missing = [f"--{flag}={value}" for flag, value in _FLAGS.items() if flag not in given]
    os.environ["XLA_FLAGS"] = " ".join([given, *missing])

# XLA takes as many threads as this says. With two, a program that calls LAPACK for batches can
# wait for ever (seen with jaxlib 0.10.2: `cond` and `eigvalsh` of 10,000 matrices).
os.environ.setdefault("NPROC", "1")

# A trace makes many objects and little garbage.
gc.set_threshold(20_000, 20, 20)

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


# A file is one process's. The dearest come first, so that the last to end are small ones (of equal
# cost, in the order of their names).
_DEAREST = (
    "test_contracts.py",
    "test_loop.py",
    "test_docs.py",
    "models/test_adjoint.py",
    "diagnostics/test_diagnose.py",
    "models/test_batch.py",
    "models/test_insulin.py",
    "models/test_phases.py",
    "diagnostics/test_check_gradient.py",
    "models/test_simulate.py",
    "models/test_events.py",
)


def pytest_collection_modifyitems(items):
    tests = pathlib.Path(__file__).parent
    place = {tests / name: i for i, name in enumerate(_DEAREST)}
    items.sort(key=lambda item: place.get(item.path, len(place)))


def pytest_collection_finish():
    """What was imported stays, and need not be looked at again."""
    gc.collect()
    gc.freeze()


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

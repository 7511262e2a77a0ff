"""Where a fit is, in a folder, so that it can go on after anything."""

import contextlib
import hashlib
import io
import json
import os
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import PyTree

from .._static import Split, Static

_T = TypeVar("_T")
_STATE, _PROBLEM = "state.npz", "problem.json"


def fingerprint(tree: PyTree) -> str:
    """Equal, in every process, for trees of equal arrays, numbers and functions: those are told
    apart by their code, and what they close over."""
    digest = hashlib.sha256()
    for part in _parts(tree, set()):
        digest.update(part)
    return digest.hexdigest()[:16]


def _parts(tree: PyTree, seen: set[int]) -> Iterator[bytes]:
    yield type(tree).__qualname__.encode()
    is_leaf = lambda x: isinstance(x, Split | Static)
    for path, x in jtu.tree_leaves_with_path(tree, is_leaf=is_leaf):
        yield jtu.keystr(path).encode()
        x = getattr(x, "__wrapped__", x)  # of `jax.jit`
        if isinstance(x, Split | Static):
            yield from _parts(x.tree, seen)
        elif isinstance(x, types.MethodType):
            yield from _parts((x.__func__, x.__self__), seen)
        elif isinstance(x, types.FunctionType) and id(x) not in seen:
            seen.add(id(x))
            yield from _code(x.__code__)
            for cell in x.__closure__ or ():
                with contextlib.suppress(ValueError):  # not yet filled
                    yield from _parts(cell.cell_contents, seen)
            yield from _parts(x.__defaults__, seen)
        elif eqx.is_array_like(x):
            value = np.asarray(x)
            yield f"{value.dtype} {value.shape}".encode() + value.tobytes()
        else:
            yield (x if isinstance(x, str) else type(x).__qualname__).encode()


def _code(code: types.CodeType) -> Iterator[bytes]:
    yield code.co_code + " ".join(code.co_names).encode()
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _code(constant)
        elif not isinstance(constant, frozenset):  # whose order is not that of another process
            yield repr(constant).encode()


class Checkpoint:
    """A folder with the state of one fit, which is whole at any moment. `problem` says which fit it
    is, by what can differ."""

    def __init__(self, folder: str | Path, problem: dict[str, str]):
        self.folder, self._has_warned = Path(folder), False
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._refuse_others(problem)
        except OSError as error:
            raise OSError(
                f"`checkpoint`: the folder {self.folder} cannot be used ({error.strerror}). "
                "Nothing was started."
            ) from error

    def _refuse_others(self, problem: dict[str, str]) -> None:
        path = self.folder / _PROBLEM
        if not path.exists():
            _write(path, json.dumps(problem, indent=1).encode())
            return
        known = json.loads(path.read_text())
        other = [name for name in {**known, **problem} if known.get(name) != problem.get(name)]
        if other:
            raise ValueError(
                f"`checkpoint`: the folder {self.folder} holds another fit, with another "
                f"{', another '.join(other)}. Give a folder of its own, or delete that one."
            )

    def load(self, like: _T) -> tuple[_T, dict[str, np.ndarray]] | None:
        """What was saved last: a tree in the structure of `like`, and arrays by name. None, if
        there is nothing."""
        path = self.folder / _STATE
        if not path.exists():
            return None
        with np.load(path) as file:
            saved = dict(file)
        arrays, rest = eqx.partition(like, eqx.is_array)
        leaves, treedef = jtu.tree_flatten(arrays)
        found = [jnp.asarray(saved.pop(f"leaf {i}")) for i in range(len(leaves))]
        return eqx.combine(treedef.unflatten(found), rest), saved

    def save(self, tree: PyTree, named: dict[str, np.ndarray]) -> None:
        """Replaces what was saved; where that cannot be done, leaves it as it was, and warns."""
        leaves = jtu.tree_leaves(eqx.filter(tree, eqx.is_array))
        file = io.BytesIO()
        arrays = {f"leaf {i}": np.asarray(x) for i, x in enumerate(leaves)}
        np.savez(file, allow_pickle=False, **named, **arrays)
        try:
            _write(self.folder / _STATE, file.getvalue())
        except OSError as error:
            if not self._has_warned:
                warnings.warn(
                    f"`checkpoint`: {self.folder} cannot be written ({error.strerror}). The fit "
                    "goes on; what was saved before is whole.",
                    stacklevel=4,
                )
            self._has_warned = True


def _write(path: Path, content: bytes) -> None:
    """All of it or nothing, also if the process ends, or the machine."""
    part = path.with_name(f"{path.name}.part")
    try:
        with open(part, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError:
        part.unlink(missing_ok=True)
        raise

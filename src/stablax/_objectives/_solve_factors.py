"""Scales, offsets and standard deviations at which a likelihood is largest, in closed form."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from ._observable import Observable
from ._solved import Solved


class _Group(NamedTuple):
    """The observables (a mask over them) that have a `Solved` in common."""

    name: str
    solved: Solved
    members: np.ndarray

    @property
    def axes(self) -> tuple[int, ...]:
        return (1, 2) if self.solved.each_condition else (0, 1, 2)

    def total(self, x: Array) -> Array:
        """The sum over all that it holds for."""
        return jnp.sum(x, axis=self.axes, keepdims=True, where=self.members)

    def put(self, into: Array, x: Array) -> Array:
        return jnp.where(self.members, x, into)

    def shown(self, x: Array) -> Array:
        return x[:, 0, 0] if self.solved.each_condition else x[0, 0, 0]


def _groups(solved: list[object], names: tuple[str, ...], kind: str) -> list[_Group]:
    """Of one kind (scales, ...), of which each observable has one, or a number."""
    found: dict[str, list[int]] = {}
    for k, (one, name) in enumerate(zip(solved, names, strict=True)):
        if isinstance(one, Solved):
            found.setdefault(f"{kind} of {name}" if one.name is None else one.name, []).append(k)
    out = []
    for name, places in found.items():
        first = solved[places[0]]
        assert isinstance(first, Solved)
        if any(solved[k] != first for k in places):
            raise ValueError(f"`Solved({name!r})` is declared twice and differently.")
        out.append(_Group(name, first, np.isin(np.arange(len(names)), places)))
    return out


def solve_factors(
    observables: tuple[Observable, ...],
    names: tuple[str, ...],
    measured: Array,
    raw: Array,
    sigma: Array,
    used: Bool[Array, "conditions times observables"],
) -> tuple[Array, dict[str, Array]]:
    """The predictions, offset + scale * `raw`, and the scales and offsets that were solved for."""
    scales = _groups([one.scale for one in observables], names, "scale")
    offsets = _groups([one.offset for one in observables], names, "offset")
    number = lambda x, missing: missing if isinstance(x, Solved) else x
    scale = jnp.stack([jnp.asarray(number(one.scale, 1.0), float) for one in observables])
    offset = jnp.stack([jnp.asarray(number(one.offset, 0.0), float) for one in observables])
    scale, offset = (jnp.broadcast_to(x, raw.shape) for x in (scale, offset))
    logarithmic = np.array([one.noise.logarithmic for one in observables])
    _check_sigmas(observables, names, [*scales, *offsets])
    weight = jnp.where(used, sigma**-2, 0)
    by_offset = {group.members.tobytes(): group for group in offsets}
    solved = {}
    for group in scales:
        other = by_offset.get(group.members.tobytes())
        if other is None and any((group.members & one.members).any() for one in offsets):
            raise ValueError(
                f"`{group.name}` and an offset that is solved, too, are of different observables: "
                "both must be of the same."
            )
        if other is not None and other.solved.each_condition != group.solved.each_condition:
            raise ValueError(f"`{group.name}` and `{other.name}`: `each_condition` must be equal.")
        if logarithmic[group.members].any():
            if not logarithmic[group.members].all():
                raise ValueError(f"`{group.name}` is of logarithms and of none.")
            ratio = jnp.log(measured) - jnp.log(raw)
            best = jnp.exp(_over(group.total(weight * ratio), group.total(weight)))
        else:
            target, slope = measured - offset, raw
            if other is not None:  # the offset that is best for any scale
                all_weight = group.total(weight)
                target = measured - _over(group.total(weight * measured), all_weight)
                slope = raw - _over(group.total(weight * raw), all_weight)
            best = _over(group.total(weight * slope * target), group.total(weight * slope**2))
        best = jnp.clip(best, group.solved.lower, group.solved.upper)
        scale = group.put(scale, best)
        solved[group.name] = group.shown(best)
    for group in offsets:
        best = _over(group.total(weight * (measured - scale * raw)), group.total(weight))
        offset = group.put(offset, best)
        solved[group.name] = group.shown(best)
    return offset + scale * raw, solved


def solve_sigmas(
    observables: tuple[Observable, ...],
    names: tuple[str, ...],
    measured: Array,
    predicted: Array,
    sigma: Array,
    used: Bool[Array, "conditions times observables"],
) -> tuple[Array, dict[str, Array]]:
    """The standard deviations, and those that were solved for."""
    groups = _groups(_sigmas(observables), names, "sigma")
    if not groups:
        return sigma, {}
    ones = jnp.ones(measured.shape[:2])
    parts = [
        one.noise.residual(measured[..., k], predicted[..., k], ones)
        for k, one in enumerate(observables)
    ]
    differences = jnp.where(used, jnp.stack(parts, axis=-1), 0)
    solved = {}
    for group in groups:
        count = group.total(used.astype(sigma.dtype))
        square = _over(group.total(differences**2), count)
        size = _over(group.total(jnp.abs(differences)), count)
        noises = [one.noise for one, mine in zip(observables, group.members, strict=True) if mine]
        if len({type(noise) for noise in noises}) > 1:
            raise ValueError(f"`{group.name}` is the sigma of noises of different kinds.")
        # A perfect fit has no likelihood; nor has its root a derivative.
        known = (square > 0) & (count > 0)
        best = noises[0].solved_sigma(jnp.where(known, square, 1), jnp.where(known, size, 1))
        best = jnp.where(known | (count == 0), best, 0)
        sigma = group.put(sigma, best)
        solved[group.name] = group.shown(best)
    return sigma, solved


def _sigmas(observables: tuple[Observable, ...]) -> list[object]:
    return [None if one.noise.sigma is None else one.noise.sigma.tree for one in observables]


def _check_sigmas(
    observables: tuple[Observable, ...], names: tuple[str, ...], factors: list[_Group]
) -> None:
    """A factor does not depend on a sigma that is solved for, too, if all that it is solved from
    have that one."""
    for sigma in _groups(_sigmas(observables), names, "sigma"):
        for factor in factors:
            shared = (sigma.members & factor.members).any()
            finer = sigma.solved.each_condition and not factor.solved.each_condition
            if shared and (finer or (factor.members & ~sigma.members).any()):
                raise ValueError(
                    f"`{factor.name}` is solved from measurements with different `sigma`s, and "
                    f"`{sigma.name}` is solved for, too: that has no closed form. Let them have "
                    "one `sigma` in common, or use a `Parameter`."
                )


def _over(a: Array, b: Array) -> Array:
    """a / b, and 0 where there is nothing to divide by."""
    some = b > 0
    return jnp.where(some, a, 0) / jnp.where(some, b, 1)

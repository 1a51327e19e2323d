# SPDX-License-Identifier: Apache-2.0
"""Define ALBERT's LAMB and AdamW as optax transformations, its learning-rate schedule and presets.

Both differ from optax's in having no bias correction. Neither weight decay nor (in LAMB) the trust
ratio applies to LayerNorm and biases. Norms are per parameter, so q, k and v have a ratio each.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from jax import Array

from albert_jax.config.sections import OptimizerConfig
from albert_jax.utils.errors import UserError
from albert_jax.utils.wording import setting

# optimization.py:73-90; "output_bias" matches "bias".
EXCLUDED = re.compile(r"LayerNorm|layer_norm|bias")

# Peak learning rate at a batch size; it scales with the square root of the batch size. LAMB:
# run_pretraining.py's default (You et al. 2019, table 2: 0.00176/sqrt(8) at 512). AdamW: BERT's
# 1e-4 at 256.
PRESETS: dict[str, tuple[float, int]] = {
    "lamb": (0.00176, 4096),
    "optax_lamb": (0.00176, 4096),
    "adamw": (1e-4, 256),
    "optax_adamw": (1e-4, 256),
    "muon": (1e-4, 256),
}


def path_name(path: tuple[Any, ...]) -> str:
    """Return a parameter's key path as `encoder/group_0/…/kernel`."""
    return "/".join(str(getattr(key, "key", getattr(key, "name", key))) for key in path)


def is_adapted(params: Any) -> Any:
    """Return a tree of bools: True where weight decay and LAMB's trust ratio apply.

    They apply to all parameters but LayerNorm and biases.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, _: EXCLUDED.search(path_name(path)) is None, params
    )


def global_norm(tree: Any) -> Array:
    """Return the L2 norm over all entries of all leaves."""
    # Not optax's: optax.global_norm is deprecated, optax.tree.norm is newer than our oldest optax,
    # and either rounds a step's last bit differently.
    return jnp.sqrt(sum(jnp.vdot(leaf, leaf) for leaf in jax.tree.leaves(tree)))


# ----------------------------------------------------------------------------------------- schedule


def polynomial_schedule(
    peak: float,
    *,
    steps: int,
    warmup_steps: int,
    power: float = 1.0,
    start_warmup_step: int = 0,
) -> optax.Schedule:
    """Return the original's schedule: linear warm-up from 0, then polynomial decay to 0 at `steps`.

    Warm-up REPLACES the decay, which runs from step 0: the rate drops from `peak` to peak * (1 -
    warmup/steps) at the end of warm-up, and step 0 of a run with warm-up leaves the parameters
    unchanged. optimization.py:36-63.

    Args:
        peak: the highest rate.
        steps: the step at which the rate is 0.
        warmup_steps: steps of warm-up; 0 is none.
        power: the power of the decay; 1 is linear.
        start_warmup_step: the first step of warm-up; before it the rate is negative, as in the
            original.

    Returns:
        A function from a step to its rate.

    Examples:
        >>> from albert_jax import optimizer
        >>> rate = optimizer.polynomial_schedule(1.0, steps=100, warmup_steps=10)
        >>> [float(rate(step)) for step in (0, 5, 50, 100)]
        [0.0, 0.5, 0.5, 0.0]
    """

    def schedule(count: Array) -> Array:
        count = jnp.asarray(count, jnp.int32)
        done = jnp.minimum(count, steps).astype(jnp.float32) / steps
        decayed = peak * (1.0 - done) ** power
        if not warmup_steps:
            return decayed
        since = count - start_warmup_step
        return jnp.where(since < warmup_steps, peak * since / warmup_steps, decayed)

    return schedule


def warmed_up(after: optax.Schedule, peak: float, warmup_steps: int) -> optax.Schedule:
    """Return a schedule with linear warm-up from 0 to `peak`, then `after` of the steps since."""
    if not warmup_steps:
        return after
    rise = optax.linear_schedule(0.0, peak, warmup_steps)
    return optax.join_schedules([rise, after], [warmup_steps])


def make_schedule(config: OptimizerConfig, peak: float, *, steps: int) -> optax.Schedule:
    """Return the configured schedule; all but `constant` end at 0."""
    warmup = warmup_steps(config, steps)
    if config.schedule == "polynomial":
        return polynomial_schedule(peak, steps=steps, warmup_steps=warmup, power=config.poly_power)
    rest = max(1, steps - warmup)
    if config.schedule == "linear":
        return warmed_up(optax.linear_schedule(peak, 0.0, rest), peak, warmup)
    if config.schedule == "cosine":
        return warmed_up(optax.cosine_decay_schedule(peak, rest), peak, warmup)
    if config.schedule == "constant":
        return warmed_up(optax.constant_schedule(peak), peak, warmup)
    decay = max(1, min(rest, round(steps * config.decay_share)))
    fall = optax.linear_schedule(peak, 0.0, decay, transition_begin=rest - decay)
    return warmed_up(fall, peak, warmup)


def _times(schedule: optax.Schedule, factors: Sequence[tuple[int, float]]) -> optax.Schedule:
    """Return a schedule times the factor of each step, by the first step that has it."""
    firsts_N, factors_N = zip(*factors, strict=True)

    def scaled(count: Any) -> Any:
        at = jnp.searchsorted(jnp.asarray(firsts_N), count, side="right") - 1
        return schedule(count) * jnp.asarray(factors_N, jnp.float32)[at]

    return scaled


def learning_rate_preset(name: str, batch_size: int) -> float:
    """Return the peak rate for an optimizer at a global batch size.

    Args:
        name: an optimizer's name in `OptimizerConfig`.
        batch_size: sequences in one update; the rate grows with its square root.

    Returns:
        The rate.

    Raises:
        UserError: for an unknown name.

    Examples:
        >>> from albert_jax import optimizer
        >>> optimizer.learning_rate_preset("lamb", 1024)
        0.00088
    """
    if name not in PRESETS:
        raise UserError(f"optimizer {name!r} is unknown; known: {', '.join(PRESETS)}")
    rate, reference = PRESETS[name]
    return rate * math.sqrt(batch_size / reference)


def peak_learning_rate(config: OptimizerConfig, batch_size: int) -> float:
    """Return the configured peak rate, or the preset."""
    if config.learning_rate is not None:
        return config.learning_rate
    return learning_rate_preset(config.name, batch_size)


def warmup_steps(config: OptimizerConfig, steps: int) -> int:
    """Return the configured warm-up, or the original's fraction of the steps: 3,125 of 125,000."""
    return round(steps * 3125 / 125_000) if config.warmup_steps is None else config.warmup_steps


def warmup_warnings(config: OptimizerConfig, steps: int) -> list[str]:
    """Return a sentence if the warm-up is longer than the run."""
    warmup = warmup_steps(config, steps)
    if warmup <= steps:
        return []
    return [
        f"the run ends in its warm-up: {setting('optimizer.warmup_steps')} {warmup:,} exceeds "
        f"{setting('train.steps')} {steps:,}, so the learning rate comes to {steps / warmup:.0%} "
        f"of its peak; lower {setting('optimizer.warmup_steps')}"
    ]


def divergence_warnings(config: OptimizerConfig, *, batch_size: int, hidden_size: int) -> list[str]:
    """Return sentences about settings that users have seen diverge or stall.

    google-research/albert #29, google-research #74, kamalkraj/ALBERT-TF2.0 #35: all of base size
    and larger. Much smaller models bear much higher rates.
    """
    rate, preset = (
        peak_learning_rate(config, batch_size),
        learning_rate_preset(config.name, batch_size),
    )
    warnings = []
    if config.name == "adamw" and rate > 5e-4:
        warnings.append(
            f"AdamW at learning rate {rate:g} is known to diverge (rates above 5e-4 are LAMB's); "
            f"use {setting('optimizer.learning_rate', float(f'{preset:.3g}'))} or "
            f"{setting('optimizer.name', 'lamb')}"
        )
    elif rate > 2 * preset and hidden_size >= 512:
        warnings.append(
            f"learning rate {rate:g} at batch size {batch_size} is {rate / preset:.1f} times the "
            f"square-root-scaled preset {preset:.3g}, and such runs have stalled near a loss of 7 "
            "or diverged"
        )
    if config.name != "adamw" and config.clip_norm == 0:
        warnings.append("gradient clipping is off; the original clips to a global norm of 1")
    return warnings


# ---------------------------------------------------------------------------------- transformations


class MomentsState(NamedTuple):
    """Hold Adam's moving averages of the gradient and its square."""

    mu: Any
    nu: Any


class TrustRatioState(NamedTuple):
    """Hold the last trust ratio of each parameter, a scalar, for the log."""

    trust_ratio: Any  # a scalar for each parameter, kept for the log


def scale_by_uncorrected_adam(
    beta1: float, beta2: float, epsilon: float
) -> optax.GradientTransformation:
    """Replace updates by m / (sqrt(v) + epsilon), without bias correction.

    lamb_optimizer.py:91-101.

    Args:
        beta1: decay of m, the moving average of the gradient.
        beta2: decay of v, the moving average of its square.
        epsilon: added to the square root.

    Returns:
        The transformation.
    """

    def init(params: Any) -> MomentsState:
        return MomentsState(
            jax.tree.map(jnp.zeros_like, params), jax.tree.map(jnp.zeros_like, params)
        )

    def update(updates: Any, state: MomentsState, params: Any = None) -> tuple[Any, MomentsState]:
        del params
        mu = jax.tree.map(lambda m, g: beta1 * m + (1 - beta1) * g, state.mu, updates)
        nu = jax.tree.map(lambda v, g: beta2 * v + (1 - beta2) * g * g, state.nu, updates)
        direction = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + epsilon), mu, nu)
        return direction, MomentsState(mu, nu)

    return optax.GradientTransformation(init, update)


def scale_by_trust_ratio() -> optax.GradientTransformation:
    """Multiply each adapted update by |w| / |u|, or by 1 if either norm is 0.

    The ratio is not clamped. lamb_optimizer.py:109-119.

    Returns:
        The transformation.
    """

    def init(params: Any) -> TrustRatioState:
        return TrustRatioState(jax.tree.map(lambda _: jnp.ones((), jnp.float32), params))

    def update(updates: Any, state: TrustRatioState, params: Any) -> tuple[Any, TrustRatioState]:
        del state

        def ratio(update: Array, param: Array, adapted: bool) -> Array:
            if not adapted:
                return jnp.ones((), jnp.float32)
            w, u = global_norm(param), global_norm(update)
            return jnp.where((w > 0) & (u > 0), w / jnp.where(u > 0, u, 1.0), 1.0)

        ratios = jax.tree.map(ratio, updates, params, is_adapted(params))
        return jax.tree.map(jnp.multiply, updates, ratios), TrustRatioState(ratios)

    return optax.GradientTransformation(init, update)


def lamb(
    schedule: optax.ScalarOrSchedule,
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-6,
    weight_decay: float = 0.01,
    clip_norm: float = 1.0,
    trust_ratio: bool = True,
) -> optax.GradientTransformation:
    """Return ALBERT's LAMB: clipping, uncorrected Adam, decoupled weight decay, trust ratios.

    lamb_optimizer.py:70-124. Differs from the original on many devices: the global gradient is
    clipped, not each replica's.

    Args:
        schedule: the learning rate, or a function from a step to it.
        beta1: decay of the moving average of the gradient.
        beta2: decay of the moving average of its square.
        epsilon: added to the square root of the latter.
        weight_decay: the fraction of the parameters that is added to their updates.
        clip_norm: the gradient's largest global norm; 0 does not clip.
        trust_ratio: scale each parameter's update by its trust ratio; without it, LAMB is `adamw`.

    Returns:
        The optimizer.
    """
    return optax.chain(
        *_clip(clip_norm),
        scale_by_uncorrected_adam(beta1, beta2, epsilon),
        optax.add_decayed_weights(weight_decay, mask=is_adapted),
        *([scale_by_trust_ratio()] if trust_ratio else []),
        optax.scale_by_learning_rate(schedule),
    )


def adamw(
    schedule: optax.ScalarOrSchedule,
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-6,
    weight_decay: float = 0.01,
    clip_norm: float = 1.0,
) -> optax.GradientTransformation:
    """Return the original's AdamW: LAMB without trust ratios. optimization.py:120-207.

    Args:
        schedule: the learning rate, or a function from a step to it.
        beta1: decay of the moving average of the gradient.
        beta2: decay of the moving average of its square.
        epsilon: added to the square root of the latter.
        weight_decay: the fraction of the parameters that is added to their updates.
        clip_norm: the gradient's largest global norm; 0 does not clip.

    Returns:
        The optimizer.
    """
    return lamb(
        schedule,
        beta1=beta1,
        beta2=beta2,
        epsilon=epsilon,
        weight_decay=weight_decay,
        clip_norm=clip_norm,
        trust_ratio=False,
    )


def _clip(clip_norm: float) -> list[optax.GradientTransformation]:
    return [optax.clip_by_global_norm(clip_norm)] if clip_norm else []


def make_optimizer(
    config: OptimizerConfig,
    *,
    steps: int,
    batch_size: int,
    factors: Sequence[tuple[int, float]] = (),
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Return the configured optimizer and its schedule, with the presets filled in.

    Args:
        config: the settings.
        steps: the updates of the run.
        batch_size: sequences in one update.
        factors: factors of the rate, each with the first step that has it.

    Returns:
        The optimizer, and a function from a step to its rate.
    """
    schedule = make_schedule(config, peak_learning_rate(config, batch_size), steps=steps)
    if any(factor != 1 for _, factor in factors):
        schedule = _times(schedule, factors)
    if make := _CORRECTED.get(config.name):
        return optax.chain(*_clip(config.clip_norm), make(config, schedule)), schedule
    optimizer = lamb(
        schedule,
        beta1=config.beta1,
        beta2=config.beta2,
        epsilon=config.epsilon,
        weight_decay=config.weight_decay,
        clip_norm=config.clip_norm,
        trust_ratio=config.name == "lamb",
    )
    return optimizer, schedule


def _of_optax(
    make: Callable[..., optax.GradientTransformation],
    config: OptimizerConfig,
    schedule: optax.Schedule,
) -> optax.GradientTransformation:
    return make(
        schedule,
        b1=config.beta1,
        b2=config.beta2,
        eps=config.epsilon,
        weight_decay=config.weight_decay,
        mask=is_adapted,
    )


def _muon(config: OptimizerConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Return Muon for the kernels, and bias-corrected AdamW for everything else.

    Tables of embeddings are not kernels, because their rows are looked up, and neither are the last
    matrices of the heads, except for span_v2's. Differs from optax.contrib.muon: both parts have
    the same decay, and Adam has no Nesterov momentum.
    """
    kernels = optax.chain(
        optax.contrib.scale_by_muon(weight_dimension_numbers=_as_matrices),
        optax.stateless(lambda updates, _: jax.tree.map(_as_large_as_adams, updates)),
        optax.add_decayed_weights(config.weight_decay),
        optax.scale_by_learning_rate(schedule),
    )
    others = _of_optax(optax.adamw, config, schedule)
    return optax.partition({"muon": kernels, "adamw": others}, _parts)


def _as_matrices(kernels: Any) -> Any:
    return jax.tree.map(lambda _: optax.contrib.MuonDimensionNumbers(), kernels)


def _as_large_as_adams(update: Array) -> Array:
    """Scale an orthogonal update so that one learning rate serves both optimizers.

    The root mean square of Adam's updates is about 0.2. Liu et al. 2025 (Moonlight), section 2.2.
    """
    return 0.2 * math.sqrt(max(update.shape)) * update


def _parts(params: Any) -> Any:
    """Return a tree that names the optimizer of each parameter: muon or adamw."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: "muon" if path_name(path).endswith("kernel") else "adamw", params
    )


_Make = Callable[[OptimizerConfig, optax.Schedule], optax.GradientTransformation]
_CORRECTED: dict[str, _Make] = {  # for Adam's bias
    "optax_adamw": functools.partial(_of_optax, optax.adamw),
    "optax_lamb": functools.partial(_of_optax, optax.lamb),
    "muon": _muon,
}


class WeightAverageState(NamedTuple):
    """Hold a moving average of the parameters, and the number of updates in it."""

    updates: Array  # their number
    average: Any  # as the parameters


def average_weights(tx: optax.GradientTransformation, decay: float) -> optax.GradientTransformation:
    """Return `tx` with a moving average of the parameters after its updates.

    After `t` updates, the parameters after update `i` have the weight `decay**(t - i)`, divided by
    the sum of these weights. The parameters before the first update are not part of it. Adam
    corrects the bias of its moments in the same way.
    """

    def init(params: Any) -> WeightAverageState:
        return WeightAverageState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.array, params))

    def update(updates: Any, state: WeightAverageState, params: Any) -> tuple[Any, Any]:
        made = state.updates + 1
        # Of the newest, 1 at first. decay**made itself is 1 in float32 for a decay near 1.
        share = (1 - decay) / -jnp.expm1(made.astype(jnp.float32) * math.log(decay))
        after = optax.apply_updates(params, updates)
        average = jax.tree.map(lambda old, new: old + share * (new - old), state.average, after)
        return updates, WeightAverageState(made, average)

    return optax.chain(tx, optax.GradientTransformation(init, update))


def averaged_weights(opt_state: Any) -> Any | None:
    """Return the moving average that `average_weights` keeps, or None for other optimizers."""
    found = _part_of(opt_state, WeightAverageState)
    return None if found is None else found.average


def trust_ratios(opt_state: Any) -> dict[str, Array]:
    """Return each adapted parameter's last trust ratio by name; empty for other optimizers."""
    found = _part_of(opt_state, TrustRatioState)
    if found is None:
        return {}
    leaves = jax.tree_util.tree_leaves_with_path(found.trust_ratio)
    names = {path_name(path): ratio for path, ratio in leaves}
    return {name: ratio for name, ratio in names.items() if EXCLUDED.search(name) is None}


_Part = TypeVar("_Part")


def _part_of(opt_state: Any, kind: type[_Part]) -> _Part | None:
    """Return the state of one link in a chain of optimizers, or None if there is no such link."""
    leaves = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, kind))
    return next((leaf for leaf in leaves if isinstance(leaf, kind)), None)

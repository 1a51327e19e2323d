# SPDX-License-Identifier: Apache-2.0
"""Spread a pure step over devices: by shard_map under jit, or by pmap.

Parameters are replicated, batches split. ALBERT's parameters are few (11.8 M to 223 M) and its
activations large, so that one `data` axis is enough.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from albert_jax.distributed import multihost
from albert_jax.models.lowering import Lowering
from albert_jax.utils.errors import UserError
from albert_jax.utils.wording import setting

AXIS = "data"
# Kinds of devices whose matrix units outrun their vector units. By the compiler's estimate v6e
# gains by it, v5e and v5p lose (docs/lab/tpu.md).
_OUTRUN = ("TPU v6",)


@dataclass(frozen=True)
class Placement:
    """Place states and batches in one mode, and compile a step for it.

    `put_state` copies a host or device tree onto the devices. `get_state` returns it as plain
    arrays that any placement takes. `put_batch` takes {name: ndarray [B, …]}; with several
    processes, each gives its own rows. `compile` wraps step(state, batch) and donates the state;
    with donate=False, it wraps step(params_of_state, batch). `axis_name` is the axis that the step
    must reduce over; None, the batch that it sees is the whole. A step's model must be made for
    `lowering`.
    """

    mode: str
    devices: tuple[jax.Device, ...]
    axis_name: str | None
    put_state: Callable[[Any], Any]
    get_state: Callable[[Any], Any]
    put_batch: Callable[[dict[str, np.ndarray]], dict[str, Array]]
    compile: Callable[..., Callable[..., Any]]
    fetch: Callable[[Any], Any]
    state_sharding: NamedSharding

    @property
    def lowering(self) -> Lowering:
        """The lowering of a step's model: these devices, with all layers unrolled."""
        device = self.devices[0]
        return Lowering(
            device.platform,
            self.axis_name,
            unroll=True,
            writes_activations=device.device_kind.startswith(_OUTRUN),
        )

    @property
    def max_in_flight(self) -> int:
        """The number of steps to start ahead of the one whose metrics are fetched."""
        # Several fake CPU devices abort now and then when steps pile up; elsewhere two keep the
        # device busy.
        on_cpu = self.devices[0].platform == "cpu"
        return 0 if on_cpu and len(self.devices) > 1 else 2

    def restore_target(self, shapes: Any) -> Any:
        """Return a tree of shapes with the shardings for a checkpoint's arrays."""
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self.state_sharding), shapes
        )


def local_devices(count: int | None = None) -> tuple[jax.Device, ...]:
    """Return the first `count` local devices, or all; raises UserError if there are fewer."""
    devices = jax.local_devices()
    if count is not None and not 1 <= count <= len(devices):
        raise UserError(
            f"{setting('train.devices')} {count} is not possible; give 1 to {len(devices)}, the "
            f"devices of this machine ({devices[0].platform})"
        )
    return tuple(devices[:count])


def run_devices(count: int | None = None) -> tuple[jax.Device, ...]:
    """Return `local_devices` of every process of the run, process by process.

    In this order, each process's rows of a batch are contiguous.
    """
    mine = local_devices(count)
    if jax.process_count() == 1:
        return mine
    everywhere = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    of_each = itertools.groupby(everywhere, key=lambda device: device.process_index)
    return tuple(d for _, devices in of_each for d in itertools.islice(devices, len(mine)))


def place(tree: Any, sharding: NamedSharding) -> Any:
    """Return a tree of host or local arrays, equal in all processes, placed; typed keys too."""
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)

    def one(leaf: Any) -> Array:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(
                one(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf)
            )
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(one, tree)


def check_batch_size(batch_size: int, accumulate: int, devices: int) -> None:
    """Raise UserError unless every device gets the same number of rows of every micro-batch."""
    unit = accumulate * devices
    if batch_size % unit:
        over = f"{devices} devices" + (f" x {accumulate} micro-batches" if accumulate > 1 else "")
        raise UserError(
            f"{setting('train.batch_size')} {batch_size} does not divide over {over}; use a "
            f"multiple of {unit}"
        )


def make_mesh(devices: Sequence[jax.Device]) -> Mesh:
    """Return a mesh of one `data` axis, explicitly Auto: make_mesh's newer default is Explicit."""
    return Mesh(np.asarray(devices), (AXIS,), axis_types=(AxisType.Auto,))


def make_placement(mode: str, devices: Sequence[jax.Device]) -> Placement:
    """Return the placement of that mode, `jit` or `pmap`, over `devices`.

    With several devices, each takes its rows of the batch through the step, which sums over them by
    its `axis_name`.
    """
    if mode == "pmap":
        if jax.process_count() > 1:
            raise UserError(
                f"{setting('train.mode', 'pmap')} is of one process; give "
                f"{setting('train.mode', 'jit')} with {setting('launch', flag='multihost')}"
            )
        return _pmap_placement(tuple(devices))
    return _jit_placement(tuple(devices))


def _jit_placement(devices: tuple[jax.Device, ...]) -> Placement:
    mesh = make_mesh(devices)
    everywhere, rows = PartitionSpec(), PartitionSpec(AXIS)
    replicated, split = NamedSharding(mesh, everywhere), NamedSharding(mesh, rows)
    axis_name = AXIS if len(devices) > 1 else None

    def compile(step: Callable[..., Any], *, donate: bool = True) -> Callable[..., Any]:
        if axis_name:
            # Not left to XLA, which would sum the gradient over the devices for each unrolled
            # layer, and for each micro-batch.
            step = jax.shard_map(
                step, mesh=mesh, in_specs=(everywhere, rows), out_specs=everywhere, check_vma=False
            )
        return jax.jit(
            step,
            in_shardings=(replicated, split),
            out_shardings=replicated,
            donate_argnums=(0,) if donate else (),
        )

    def put_batch(batch: dict[str, np.ndarray]) -> dict[str, Array]:
        # Not whether `split` is all here: a step may be compiled for many hosts elsewhere.
        if not multihost.several():
            return jax.device_put(batch, split)
        return {name: jax.make_array_from_process_local_data(split, x) for name, x in batch.items()}

    return Placement(
        mode="jit",
        devices=devices,
        axis_name=axis_name,
        # A copy: device_put may alias its argument, and the first donated step would delete it.
        put_state=lambda state: jax.device_put(_copied(state), replicated),
        get_state=lambda state: state,
        put_batch=put_batch,
        compile=compile,
        fetch=jax.device_get,
        state_sharding=replicated,
    )


def _pmap_placement(devices: tuple[jax.Device, ...]) -> Placement:
    count = len(devices)
    split = NamedSharding(make_mesh(devices), PartitionSpec(AXIS))

    def put_state(state: Any) -> Any:
        def stack(leaf: Array) -> Array:
            leaf = jnp.asarray(leaf)
            return jax.device_put(jnp.broadcast_to(leaf, (count, *leaf.shape)), split)

        return jax.tree.map(stack, jax.device_put(_copied(state), devices[0]))

    def first(leaf: Array) -> Array:
        # Not leaf[0], because that would gather over the devices.
        return leaf.addressable_shards[0].data.reshape(leaf.shape[1:])

    def put_batch(batch: dict[str, np.ndarray]) -> dict[str, Array]:
        rows = {
            name: x.reshape(count, x.shape[0] // count, *x.shape[1:]) for name, x in batch.items()
        }
        return jax.device_put(rows, split)

    def compile(step: Callable[..., Any], *, donate: bool = True) -> Callable[..., Any]:
        return jax.pmap(
            step,
            axis_name=AXIS,
            devices=devices,
            donate_argnums=(0,) if donate else (),
        )

    return Placement(
        mode="pmap",
        devices=devices,
        axis_name=AXIS,
        put_state=put_state,
        get_state=lambda state: jax.tree.map(first, state),
        put_batch=put_batch,
        compile=compile,
        fetch=lambda tree: jax.device_get(jax.tree.map(first, tree)),
        state_sharding=NamedSharding(make_mesh(devices[:1]), PartitionSpec()),
    )


@jax.jit  # one program; eager copies would compile one for each shape
def _copied(state: Any) -> Any:
    return jax.tree.map(jnp.copy, state)

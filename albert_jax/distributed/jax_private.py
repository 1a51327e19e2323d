# SPDX-License-Identifier: Apache-2.0
"""Collect the names of JAX that have no public form.

`tests/test_jax_private.py` tests each as it is used here, so that an incompatible JAX shows there
first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, cast

from jax._src import clusters, distributed, xla_bridge
from jaxlib import _jax


class KeyValueStore(Protocol):
    """Define the coordinator's store of small values, which needs no devices."""

    def key_value_set(self, key: str, value: str) -> None: ...
    def blocking_key_value_get(self, key: str, timeout_in_ms: int) -> str: ...
    def key_value_dir_get(self, key: str) -> list[tuple[str, str]]: ...
    def key_value_delete(self, key: str) -> None: ...


class Coordination(Protocol):
    """Hold what a process that has joined knows of the others.

    All None or unset before it joins.
    """

    client: KeyValueStore
    service: Any  # not None in the process that is the coordinator
    process_id: int
    num_processes: int
    coordinator_address: str | None


def coordination() -> Coordination:
    """Return this process's place among the others.

    Private because `jax.distributed` gives no access to its key-value store (orbax uses the same
    name), and `jax.process_index()` starts the devices.
    """
    return cast(Coordination, distributed.global_state)


def detect_cluster(
    coordinator: str | None,
    processes: int | None,
    process: int | None,
    devices: list[int] | None,
    seconds: int,
) -> tuple[str | None, int | None, int | None, Sequence[int] | None]:
    """Return the first four arguments, with what is None filled in by the cluster, if there is one.

    Raises RuntimeError or OSError if a cluster does not answer yet, ValueError or KeyError if its
    answer is wrong. Private because `jax.distributed.initialize` asks the cluster only when it
    joins, and `rendezvous` must know the coordinator before.
    """
    return clusters.ClusterEnv.auto_detect_unset_distributed_params(
        coordinator, processes, process, devices, None, seconds
    )


def reach_cpus_at(address: str) -> None:
    """Let the other processes find this one's CPU devices at an address.

    Call it before devices start. Private because JAX itself uses the address that the host's name
    resolves to, which many /etc/hosts set to 127.0.1.1.
    """

    def make() -> Any:
        collectives = _jax.make_gloo_tcp_collectives(
            distributed_client=distributed.global_state.client, hostname=address
        )
        return xla_bridge.make_cpu_client(collectives)

    xla_bridge.register_backend_factory("cpu", make, priority=0, fail_quietly=False)

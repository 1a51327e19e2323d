# SPDX-License-Identifier: Apache-2.0
"""JAX's private names do what `distributed.jax_private` uses them for."""

import os
import subprocess
import sys
import textwrap

import pytest

from albert_jax.distributed import jax_private, multihost
from tests.helpers.multihost_runs import free_port
from tests.helpers.paths import REPOSITORY


def alone(body: str, *arguments: str) -> str:
    """What a process of its own prints: joining and starting devices cannot be undone."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(body), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_no_other_file_names_what_is_private_in_jax() -> None:
    for path in sorted((REPOSITORY / "albert_jax").rglob("*.py")):
        if path.name != "jax_private.py":
            text = path.read_text(encoding="utf-8")
            assert "jax._src" not in text, path
            assert "jaxlib import _" not in text, path


def test_a_process_that_has_not_joined_is_alone() -> None:
    assert jax_private.coordination().client is None
    assert not multihost.several()


def test_the_store_keeps_gives_lists_and_forgets_values() -> None:
    said = alone(
        """
        import sys
        import jax
        from albert_jax.distributed.jax_private import coordination

        address = f"127.0.0.1:{sys.argv[1]}"
        jax.distributed.initialize(address, 1, 0, cluster_detection_method="deactivate")
        here, store = coordination(), coordination().client
        print(here.process_id, here.num_processes, here.coordinator_address == address)
        print(here.service is not None)
        store.key_value_set("folder/a", "1")
        print(store.blocking_key_value_get("folder/a", 1000), store.key_value_dir_get("folder/"))
        store.key_value_delete("folder/a")
        print(store.key_value_dir_get("folder/"))
        try:
            store.blocking_key_value_get("folder/a", 10)
        except jax.errors.JaxRuntimeError as error:
            print("DEADLINE_EXCEEDED" in str(error))
        jax.distributed.shutdown()
        """,
        str(free_port()),
    )
    assert said.splitlines() == [
        "0 1 True",
        "True",
        "1 [('folder/a', '1')]",
        "[]",
        "True",
    ]


@pytest.mark.parametrize(
    ("address", "found"),
    [("127.0.0.1", "True"), ("192.0.2.1", "Unable to find address for 192.0.2.1")],
)
def test_cpu_devices_are_found_at_the_address_given(address: str, found: str) -> None:
    # gloo refuses an address that is none of this host's, which shows that it was asked for it.
    said = alone(
        """
        import sys
        import jax
        from albert_jax.distributed.jax_private import reach_cpus_at

        jax.distributed.initialize(
            f"127.0.0.1:{sys.argv[1]}", 1, 0, cluster_detection_method="deactivate"
        )
        reach_cpus_at(sys.argv[2])
        try:
            print(jax.local_device_count() > 0)
        except RuntimeError as error:
            print(error)
        """,
        str(free_port()),
        address,
    )
    assert found in said


def test_what_is_given_of_a_cluster_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in os.environ if n.startswith(("SLURM_", "OMPI_", "TPU_"))]:
        monkeypatch.delenv(name)
    assert jax_private.detect_cluster("a:1", 2, 1, [0], 5) == ("a:1", 2, 1, [0])

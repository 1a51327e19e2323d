# SPDX-License-Identifier: Apache-2.0
"""Hosts with addresses of their own on one machine: Linux network namespaces, joined by a bridge.

Everything is in a user namespace, so it takes no rights, and is gone with its processes.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import time
from pathlib import Path

SLEEP = ["sleep", "infinity"]
LISTEN = """
import socket, sys
server = socket.create_server((sys.argv[1], 0))
print(server.getsockname()[1], flush=True)
while True:
    server.accept()
"""
CONNECT = """
import socket, sys
socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=10).close()
"""


class Hosts:
    """`count` hosts 10.7.0.1, 10.7.0.2 …; leaving removes them."""

    def __init__(self, count: int):
        self.count = count
        self._processes: list[subprocess.Popen] = []

    def __enter__(self) -> Hosts:
        try:
            self._add(["unshare", "--user", "--map-root-user", "--net", *SLEEP])
            self._run(0, "ip link set lo up; ip link add bridge type bridge; ip link set bridge up")
            for host in range(1, self.count + 1):
                pid = self._add([*self._entering(0), "unshare", "--net", *SLEEP])
                self._run(
                    0,
                    f"ip link add host{host} type veth peer name eth0 netns {pid}; "
                    f"ip link set host{host} master bridge; ip link set host{host} up",
                )
                self._run(
                    host,
                    f"ip addr add {self.address(host - 1)}/24 dev eth0; ip link set eth0 up; "
                    "ip link set lo up",
                )
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(self._processes):
            process.kill()
            process.wait()

    def address(self, host: int) -> str:
        return f"10.7.0.{host + 1}"

    def entering(self, host: int) -> list[str]:
        """What to put before a command that is to run on a host, from 0."""
        return self._entering(host + 1)

    def unplug(self, host: int) -> None:
        """Nothing reaches the host any more, nor leaves it, and nobody is told."""
        self._run(0, f"ip link set host{host + 1} down")

    def _add(self, command: list[str]) -> int:
        """The process of a new namespace, whose id names it."""
        process = subprocess.Popen(command)
        self._processes.append(process)
        link = Path(f"/proc/{process.pid}/ns/net")
        others = {os.readlink("/proc/self/ns/net")}
        others |= {os.readlink(f"/proc/{p.pid}/ns/net") for p in self._processes[:-1]}
        deadline = time.monotonic() + 60
        while os.readlink(link) in others or not _is_sleeping(process.pid):
            if process.poll() is not None or time.monotonic() > deadline:
                raise OSError(f"no namespace by {' '.join(command)}")
            time.sleep(0.01)
        return process.pid

    def _entering(self, number: int) -> list[str]:
        target = ["--target", str(self._processes[number].pid)]
        return ["nsenter", *target, "--user", "--preserve-credentials", "--net"]

    def _run(self, number: int, script: str) -> None:
        subprocess.run([*self._entering(number), "sh", "-ec", script], check=True)


def _is_sleeping(pid: int) -> bool:
    return Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"sleep\0")


@functools.cache
def why_no_hosts() -> str:
    """Why this machine has no such hosts; "" where it has."""
    try:
        with Hosts(2) as hosts:
            listen = [*hosts.entering(0), sys.executable, "-c", LISTEN, hosts.address(0)]
            with subprocess.Popen(listen, stdout=subprocess.PIPE, text=True) as listening:
                try:
                    assert listening.stdout is not None
                    port = listening.stdout.readline().strip()
                    connect = [*hosts.entering(1), sys.executable, "-c", CONNECT, hosts.address(0)]
                    subprocess.run([*connect, port], check=True, timeout=60)
                    hosts.unplug(1)
                    if not subprocess.run([*connect, port], capture_output=True).returncode:
                        return "a network namespace here cannot be cut off"
                    return ""
                finally:
                    listening.kill()
    except (OSError, subprocess.SubprocessError) as error:
        return f"no network namespaces here ({error})"

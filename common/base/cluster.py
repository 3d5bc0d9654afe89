"""Work on many machines with Ray: connecting to a cluster, and what of its machines one worker takes."""

import logging
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import click

from common.base.errors import PolarDistillError, SettingsError
from common.base.text import count_text, first_line

ANSWER_SECONDS = 10.0
"""How long a cluster may take to answer at all."""

CLIENT_SCHEME, CLIENT_PORT = "ray://", "10001"
NEXT_STEP = "Start one (`ray start --head` on one machine, `ray start --address` on the others), or name another."
NO_MACHINE = "no machine of the cluster has {} now; waiting for one to join. Ctrl-C stops."
WORKER_CPUS = 4
"""Cores of a worker without a GPU at most: more gain it little, and another worker takes memory."""

ray_option = click.option(
    "--ray",
    "address",
    metavar="ADDRESS",
    help="Work on a Ray cluster: auto, local, host:port or ray://host:port. Every machine must have the working folder "
    "and all paths (a shared file system).",
)


class Share(NamedTuple):
    """What one worker takes of a machine: cores, and a GPU or none."""

    cpus: int
    gpus: int

    def __str__(self) -> str:
        return f"{'a GPU and ' * self.gpus}{count_text(self.cpus, 'core')}"

    @property
    def device(self) -> str:
        """What the worker computes on: a GPU, of which it sees no other, or its cores."""
        return "cuda" if self.gpus else "cpu"

    def places(self, machine: dict[str, float]) -> int:
        """Workers for which a machine has room."""
        needed = {name: amount for name, amount in (("CPU", self.cpus), ("GPU", self.gpus)) if amount}
        return int(min(machine.get(name, 0) // amount for name, amount in needed.items()))


@contextmanager
def connected(address: str) -> Iterator[None]:
    """This process as the driver of a Ray cluster; what it started there ends with it.

    Args:
        address: `local` for a cluster of this machine alone that is started now, `auto` for the one that `ray start`
            made here, `host:port` of its head, or `ray://host:port` of its client server.

    Raises:
        SettingsError: Ray is not installed, or no cluster answers at that address.
    """
    # Ray sends statistics of use to its makers unless told not to.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise SettingsError(
            f"--ray needs Ray, which cannot be imported ({error}): pip install 'polar-distill[cluster]'"
        ) from error
    click.echo(f"cluster  connecting to Ray at {address} ...")
    check_answers(address)
    options: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **options)
    # Where something else than Ray answers, Ray gives up after two minutes by ending the process.
    except (ConnectionError, RuntimeError, ValueError, SystemExit) as error:
        raise SettingsError(
            f"--ray {address}: no Ray cluster can be used there ({first_line(error)}). {NEXT_STEP}"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def check_answers(address: str) -> None:
    """Raise a SettingsError if nothing listens at an address that names a machine, or it is no address."""
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS", address)
    if address in ("auto", "local"):
        return
    host, colon, port = address.removeprefix(CLIENT_SCHEME).partition(":")
    if address.startswith(CLIENT_SCHEME) and not colon:
        port = CLIENT_PORT
    if not (host and port.isdecimal()):
        raise SettingsError(f"--ray '{address}' is no address; write auto, local, host:port or ray://host:port")
    try:
        socket.create_connection((host, int(port)), ANSWER_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise SettingsError(f"--ray {address}: nothing answers there ({error}). {NEXT_STEP}") from error


def machines() -> dict[str, dict[str, float]]:
    """What each machine of the cluster has now, by its id in Ray: `CPU`, `GPU` and more."""
    import ray

    return {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}


def share_of(device: str, most_cpus: int = WORKER_CPUS) -> Share:
    """What one worker takes: a GPU and its part of the cores, or up to `most_cpus` cores where there is no GPU.

    Raises:
        SettingsError: the device is one certain GPU, or no machine has what it names.
    """
    if device not in ("auto", "cuda", "cpu"):
        raise SettingsError(
            f"device '{device}': a cluster gives each worker a GPU of its own; choose auto, cuda or cpu"
        )
    found = list(machines().values())
    with_gpus = [machine for machine in found if machine.get("GPU", 0) >= 1]
    if device != "cpu" and with_gpus:
        return min(share_on(machine, "cuda") for machine in with_gpus)
    cpus = max((int(machine.get("CPU", 0)) for machine in found), default=0)
    if device == "cuda" or not cpus:
        raise SettingsError(
            f"device '{device}': no machine of the cluster has a {'GPU' if device == 'cuda' else 'CPU'}"
        )
    return share_on({"CPU": cpus}, "cpu", most_cpus)


def share_on(machine: dict[str, float], device: str, most_cpus: int = WORKER_CPUS) -> Share:
    """As `share_of`, of one machine and for `cuda` or `cpu`: machines need not be alike, and one may lack the room."""
    cores = int(machine.get("CPU", 0))
    if device == "cuda":
        return Share(int(cores // max(machine.get("GPU", 0), 1)), 1)
    return Share(max(1, min(most_cpus, cores)), 0)


def work_in(folder: Path) -> None:
    """Go, in a worker, to the folder that the command was started in, so that names mean there what they mean here.

    Raises:
        PolarDistillError: this machine does not have it.
    """
    try:
        os.chdir(folder)
    except OSError as error:
        raise PolarDistillError(
            f"{socket.gethostname()}: {folder}: {error.strerror}. Start the command in a folder that every machine of "
            "the cluster has, such as one of a shared file system."
        ) from error
    if str(folder) not in sys.path:
        sys.path.append(str(folder))

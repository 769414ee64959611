"""The engine of a Ray cluster: the same pure function over the same items, on many machines.

The only module that imports Ray, and only where a cluster is used: it is the optional dependency `ray`. Which engine a
run takes is chosen in `cem_assets.execution.choice`; how to run a cluster is in docs/distributed.md.

Plain Ray tasks, one for each item, and no more. Ray's own retries are off: what was lost with a process or a node is
submitted again from here, where the items are held until their results have arrived. So nothing has to be reconstructed
on nodes that are gone, and a cluster that makes no progress is noticed.
"""

import hashlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from cem_assets import environment
from cem_assets.errors import DataError, MachineError
from cem_assets.execution.local import Item, Result

logger = logging.getLogger(__name__)

"""Ray's own: `auto` or `host:port` on a node of the cluster, `ray://host:10001` from elsewhere."""
DEFAULT_STALL_SECONDS = 600.0
"""Longer than any single item takes; what a cluster without a living node costs before the run is tried again."""

_IN_FLIGHT_PER_SLOT = 2
_MAX_LOSSES = 5
"""How often an item is submitted again after its process or node was lost."""
_LOOK_AGAIN_SECONDS = 10.0
"""Between looks at the size of the cluster, which may grow and shrink."""
_NODE_SECONDS = 120.0
"""For a first answer of a node, on which processes may have to start."""
_PACKAGES = ("cem-assets", "imagecodecs", "numba", "numpy", "pillow", "pyarrow", "ray", "torch", "torchvision", "zarr")
"""What results, byte for byte, may depend on."""


@dataclass(frozen=True)
class RayEngine:
    """A Ray cluster that runs already.

    Attributes:
        num_gpus: GPUs that each item takes; 0 for work without one.
        stall_seconds: After so long without any result the work is given up with an error.
    """

    num_gpus: int = 0
    stall_seconds: float = DEFAULT_STALL_SECONDS

    @property
    def spans_machines(self) -> bool:
        return True

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Apply `function` to every item on the cluster; yield results in order.

        Args:
            function: Picklable and pure, of a module that every node has. Sent to a process once and kept there, also for
                further maps of an equal one, so what it keeps to itself (a network, say) is made once a process.
            items: Picklable; taken one at a time, two for every CPU (or GPU) of the cluster in flight.

        Yields:
            Results in the order of the items.

        Raises:
            ConnectionError: There is no cluster.
            TimeoutError: The cluster made no progress; another attempt may help.
            RuntimeError: The processes of one item were lost again and again, or a node has other versions.
            Exception: Whatever `function` raised, at the item's turn.
        """
        ray = _connected()
        call = ray.remote(num_cpus=1, num_gpus=self.num_gpus, max_retries=0, max_calls=0, scheduling_strategy="SPREAD")(_call)
        pickled, expected = ray.cloudpickle.dumps(function), installed()
        # Inside a list the reference is handed on as it is; a process asks for the function itself only once.
        boxed, key = [ray.put(pickled)], hashlib.sha256(pickled).hexdigest()
        left = iter(items)
        held: dict[int, tuple[Item, int]] = {}
        running: dict[Any, int] = {}
        done: dict[int, Result | _Failed] = {}
        num_taken = num_yielded = 0
        window, looked = self._window(ray), time.monotonic()
        try:
            while True:
                while num_taken - num_yielded < window:
                    try:
                        item = next(left)
                    except StopIteration:
                        window = 0  # nothing is left to take
                        break
                    held[num_taken] = (item, 0)
                    running[call.remote(key, boxed, expected, item)] = num_taken
                    num_taken += 1
                if num_yielded in done:
                    result = done.pop(num_yielded)
                    num_yielded += 1
                    if isinstance(result, _Failed):
                        raise result.error from result.cause
                    yield result
                    continue
                if not running:
                    return
                for reference in self._finished(ray, list(running)):
                    number = running.pop(reference)
                    item, num_losses = held.pop(number)
                    found = _fetched(ray, reference)
                    if isinstance(found, _Lost):
                        if num_losses == _MAX_LOSSES:
                            found = _Failed(_given_up(found), None)
                        else:
                            logger.warning("item %d was lost (%s); it is submitted again", number, found.reason)
                            held[number] = (item, num_losses + 1)
                            running[call.remote(key, boxed, expected, item)] = number
                            continue
                    done[number] = found
                if window and time.monotonic() - looked > _LOOK_AGAIN_SECONDS:
                    window, looked = self._window(ray), time.monotonic()
        finally:
            for reference in running:
                ray.cancel(reference)

    def _window(self, ray: Any) -> int:
        total = ray.cluster_resources()
        slots = int(total.get("GPU", 0)) // self.num_gpus if self.num_gpus else int(total.get("CPU", 0))
        return _IN_FLIGHT_PER_SLOT * max(1, slots)

    def _finished(self, ray: Any, references: list[Any]) -> list[Any]:
        started = time.monotonic()
        ready, _ = ray.wait(references, num_returns=1, timeout=self.stall_seconds)
        if ready:
            # Whatever else is there by now; a call for each result would cost more than some of them.
            more, _ = ray.wait(references, num_returns=len(references), timeout=0)
            return list(dict.fromkeys([*ready, *more]))
        nodes = "; ".join(f"{node.address}: {node.num_cpus} CPU(s), {node.num_gpus} GPU(s)" for node in nodes_of_cluster())
        raise TimeoutError(
            f"the Ray cluster finished none of {len(references)} item(s) in {time.monotonic() - started:.0f} s. Nodes alive: "
            f"{nodes or 'none'}. Look at `ray status`; add nodes, or raise {environment.RAY_STALL_SECONDS} "
            "where one item may take longer. Run again: finished pieces are not computed twice."
        )

    def on_every_node(self, function: Callable[[], Result]) -> "dict[str, Result | Exception]":
        """Call a function once on every living node that takes work.

        Args:
            function: Picklable, of a module that every node has.

        Returns:
            By address of the node, what it returned or raised; nodes that died meanwhile are left out.
        """
        ray = _connected()
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        asked = {}
        for node in nodes_of_cluster():
            if node.num_cpus:  # asking for none, the call also runs where every CPU is busy
                strategy = NodeAffinitySchedulingStrategy(node.number, soft=False)
                call = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=strategy)(_answer)
                asked[call.remote(installed(), function)] = node
        ready, late = ray.wait(list(asked), num_returns=len(asked), timeout=_NODE_SECONDS) if asked else ([], [])
        answers: dict[str, Any] = {}
        for reference in ready:
            found = _fetched(ray, reference)
            if not isinstance(found, _Lost):
                answers[asked[reference].address] = found.error if isinstance(found, _Failed) else found
        for reference in late:
            ray.cancel(reference)
            answers[asked[reference].address] = TimeoutError(f"it did not answer in {_NODE_SECONDS:.0f} s")
        return answers


@dataclass(frozen=True)
class Node:
    """A living node of the cluster: Ray's name for it, its address, and what it gives to tasks."""

    number: str
    address: str
    num_cpus: int
    num_gpus: int


def nodes_of_cluster() -> list[Node]:
    """List the living nodes, in order of address.

    Raises:
        ConnectionError: There is no cluster.
        RuntimeError: Ray is not installed.
    """
    found = [
        Node(
            node["NodeID"],
            node["NodeManagerAddress"],
            int(node["Resources"].get("CPU", 0)),
            int(node["Resources"].get("GPU", 0)),
        )
        for node in _connected().nodes()
        if node["Alive"]
    ]
    return sorted(found, key=lambda node: (node.address, node.number))


def stall_seconds() -> float:
    """Return CEM_ASSETS_RAY_STALL_SECONDS, else the default.

    Raises:
        DataError: It is no positive number.
    """
    text = environment.text(environment.RAY_STALL_SECONDS)
    try:
        seconds = float(text) if text else DEFAULT_STALL_SECONDS
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise DataError(f"{environment.RAY_STALL_SECONDS} is {text!r}; expected a number of seconds above 0.")
    return seconds


def installed() -> dict[str, str]:
    """Return the versions that results may depend on."""
    found = {"python": f"{sys.version_info.major}.{sys.version_info.minor}"}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


@dataclass(frozen=True)
class _Failed:
    """What the function raised, and what tells where."""

    error: Exception
    cause: BaseException | None


@dataclass(frozen=True)
class _Lost:
    """An item whose process or node is gone."""

    reason: str


def _fetched(ray: Any, reference: Any) -> Any:
    """Return a finished call's result, or say how it ended instead."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, Exception):
            return _Failed(error.cause, error)
        return _Failed(RuntimeError(f"a task of the Ray cluster failed: {error}"), error)
    except ray.exceptions.RayError as error:
        # Killed processes and nodes, results lost with them, processes that Ray itself ended for memory.
        return _Lost(f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}")


def _given_up(lost: _Lost) -> RuntimeError:
    return RuntimeError(
        f"the processes that worked on one item were lost {_MAX_LOSSES + 1} times, most often because memory ran out. Give the "
        f"nodes fewer CPUs for their memory (`ray start --num-cpus`) and run again; finished pieces are not computed twice. "
        f"The last one: {lost.reason}"
    )


def _connected() -> Any:
    """Connect this process to the cluster, once; return the ray module."""
    # A cluster is told to be silent when it starts; this process must be, too.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise MachineError(
            "Ray is not installed here. Install the extra `ray` (make install-ray; in the image the build argument "
            "LOCK=requirements-ray.lock), or set CEM_ASSETS_ENGINE=local."
        ) from error
    if ray.is_initialized():
        return ray
    # Ray takes SIGTERM for itself; whoever runs us has handlers of their own.
    is_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM) if is_main else None
    address = environment.text(environment.RAY_ADDRESS)
    try:
        ray.init(address=address, namespace="cem_assets", logging_level=logging.ERROR, log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ConnectionError(
            f"no Ray cluster can be reached at {address!r} ({type(error).__name__}: {error}). Start one (ray start --head), "
            f"and set {environment.RAY_ADDRESS}: auto or host:port on one of its nodes, ray://host:10001 from elsewhere."
        ) from error
    finally:
        if is_main and handler is not None:
            signal.signal(signal.SIGTERM, handler)
    return ray


# What runs on the nodes

_functions: dict[str, Callable[[Any], Any]] = {}


def _call(key: str, boxed: list[Any], expected: dict[str, str], item: Any) -> Any:
    """Work on one item; the function is kept for the next items, of this map or one of the same function."""
    if key not in _functions:
        import ray

        _check_versions(expected)
        function = ray.cloudpickle.loads(ray.get(boxed[0]))
        _functions.clear()  # the last one may hold a network
        _functions[key] = function
    return _functions[key](item)


def _answer(expected: dict[str, str], function: Callable[[], Any]) -> Any:
    _check_versions(expected)
    return function()


def _check_versions(expected: dict[str, str]) -> None:
    found = installed()
    if found == expected:
        return
    differing = "; ".join(
        f"{name} is {found.get(name)}, expected {wanted}" for name, wanted in expected.items() if found.get(name) != wanted
    )
    raise MachineError(
        f"node {os.uname().nodename} of the Ray cluster does not have what the run has, so results could differ: {differing}. "
        "Run one image everywhere."
    )

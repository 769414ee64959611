"""The engine of a Ray cluster: it applies a pure function to items on many machines.

This is the only module that imports Ray, which is the optional dependency `ray`, and it does so only where a cluster is used.
`cem_assets.execution.choice` chooses the engine of a run; `docs/distributed.md` explains how to run a cluster.

There is one plain Ray task for each item. Ray's own retries are off. This process holds every item until its result has
arrived, and submits it again if it was lost with a process or a node. So Ray never has to reconstruct anything from nodes that
are gone, and a cluster that makes no progress is noticed.
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
from cem_assets.errors import DataError, MachineError, OutOfMemoryError
from cem_assets.execution.local import Item, Result

logger = logging.getLogger(__name__)

DEFAULT_STALL_SECONDS = 600.0
"""Longer than any single item takes. After this time a run on a cluster without a living node fails and is tried again."""

_IN_FLIGHT_PER_SLOT = 2
_MAX_LOSSES = 5
"""An item is submitted again at most so many times after its process or node was lost."""
_LOOK_AGAIN_SECONDS = 10.0
"""The cluster may grow and shrink; its size is looked up again after this time."""
_NODE_SECONDS = 120.0
"""A node must answer within this time; processes may have to start on it first."""
_PACKAGES = ("cem-assets", "imagecodecs", "numba", "numpy", "pillow", "pyarrow", "ray", "torch", "torchvision", "zarr")
"""The packages whose versions may change the bytes of results."""


@dataclass(frozen=True)
class RayEngine:
    """A Ray cluster that is running already.

    Attributes:
        num_gpus: The number of GPUs that each item takes; 0 for work on CPUs.
        stall_seconds: After so long without any result, an error is raised.
    """

    num_gpus: int = 0
    stall_seconds: float = DEFAULT_STALL_SECONDS

    @property
    def spans_machines(self) -> bool:
        return True

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Apply `function` to every item on the cluster and yield the results in order.

        Args:
            function: A pure function that can be pickled, from a module that every node has. It is sent to a process once and
                kept there, also for later maps of an equal function. So whatever it keeps (such as a network) is made once in
                each process.
            items: Items that can be pickled. They are taken as needed; two for every CPU (or GPU) of the cluster are in flight.

        Raises:
            ConnectionError: There is no cluster.
            TimeoutError: The cluster made no progress; another attempt may succeed.
            OutOfMemoryError: The processes of one item were lost again and again.
            MachineError: A node has other versions of libraries.
            Exception: The error that `function` raised for an item, when the item's turn comes.
        """
        ray = _connected()
        call = ray.remote(num_cpus=1, num_gpus=self.num_gpus, max_retries=0, max_calls=0, scheduling_strategy="SPREAD")(_call)
        pickled, expected = ray.cloudpickle.dumps(function), installed()
        # Ray passes a reference inside a list unchanged, so a process fetches the function itself only once.
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
            # Take all results that have arrived by now. A call for each would take longer than computing some of them.
            more, _ = ray.wait(references, num_returns=len(references), timeout=0)
            return list(dict.fromkeys([*ready, *more]))
        nodes = "; ".join(f"{node.address}: {node.num_cpus} CPU(s), {node.num_gpus} GPU(s)" for node in nodes_of_cluster())
        raise TimeoutError(
            f"the Ray cluster finished none of {len(references)} item(s) in {time.monotonic() - started:.0f} s. Nodes alive: "
            f"{nodes or 'none'}. Look at `ray status`; add nodes, or raise {environment.RAY_STALL_SECONDS} "
            "where one item may take longer. Run again: finished pieces are not computed twice."
        )

    def on_every_node(self, function: Callable[[], Result]) -> "dict[str, Result | Exception]":
        """Call a function once on every living node that accepts tasks.

        Args:
            function: A function that can be pickled, from a module that every node has.

        Returns:
            What it returned or raised on each node, by the address of the node; nodes that died meanwhile are left out.
        """
        ray = _connected()
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        asked = {}
        for node in nodes_of_cluster():
            if node.num_cpus:  # the call itself takes no CPU, so that it runs even on busy nodes
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
    """A living node of the cluster: its id in Ray, its address, and the CPUs and GPUs for tasks."""

    number: str
    address: str
    num_cpus: int
    num_gpus: int


def nodes_of_cluster() -> list[Node]:
    """List the living nodes, in order of address.

    Raises:
        ConnectionError: There is no cluster.
        MachineError: Ray is not installed.
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
        DataError: The variable is no positive number.
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
    """Return the versions of Python and of all packages that results may depend on."""
    found = {"python": f"{sys.version_info.major}.{sys.version_info.minor}"}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


@dataclass(frozen=True)
class _Failed:
    """The error that the function raised, and the error of Ray's that has its traceback."""

    error: Exception
    cause: BaseException | None


@dataclass(frozen=True)
class _Lost:
    """The result of an item whose process or node is gone."""

    reason: str


def _fetched(ray: Any, reference: Any) -> Any:
    """Return the result of a finished call, or how it ended otherwise."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, Exception):
            return _Failed(error.cause, error)
        return _Failed(RuntimeError(f"a task of the Ray cluster failed: {error}"), error)
    except ray.exceptions.RayError as error:
        # A killed process or node, a result that was lost with it, or a process that Ray ended because memory ran out.
        return _Lost(f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}")


def _given_up(lost: _Lost) -> OutOfMemoryError:
    return OutOfMemoryError(
        f"the processes that worked on one item were lost {_MAX_LOSSES + 1} times, most often because memory ran out. Give the "
        f"nodes fewer CPUs for their memory (`ray start --num-cpus`) and run again; finished pieces are not computed twice. "
        f"The last one: {lost.reason}"
    )


def _connected() -> Any:
    """Connect this process to the cluster, once; return the ray module."""
    # A cluster's own start switches usage reports off; this process has to do so as well.
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
    # Ray installs its own handler of SIGTERM, which must not replace that of the process.
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
    """Process one item; the function is kept for the next items of this map, or of another map with the same function."""
    if key not in _functions:
        import ray

        _check_versions(expected)
        function = ray.cloudpickle.loads(ray.get(boxed[0]))
        _functions.clear()  # the function before may hold a network
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

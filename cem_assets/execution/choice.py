"""Choosing the engine of a run, and checking that every machine of a cluster can read the store.

`cem_assets.execution.local` defines what an engine is, and `cem_assets.execution.ray` has the engine of a cluster.
"""

import uuid
from dataclasses import dataclass

from cem_assets.errors import MachineError
from cem_assets.execution.local import Engine, EngineChoice, engine_choice
from cem_assets.execution.ray import RayEngine, nodes_of_cluster, stall_seconds
from cem_assets.store.store import Store

_PROBES = "_probe"


def chosen_engine(store: Store, choice: EngineChoice = EngineChoice.default, may_use_gpu: bool = False) -> Engine | None:
    """Return the engine that a run uses.

    Args:
        store: The store that the items read and write.
        choice: The engine that the run's configuration names; `default` takes CEM_ASSETS_ENGINE.
        may_use_gpu: Whether the work is faster on a GPU. Each item then gets one if the cluster has any.

    Returns:
        The engine of a cluster, after a check that its nodes can read the store. None means the local engine; a stage then
        chooses a pool by the number of its items.

    Raises:
        ConnectionError: There is no cluster.
        MachineError: Ray is not installed, or a node cannot read the store or has other versions of libraries.
        DataError: An environment variable is wrong.
    """
    if engine_choice(choice) != EngineChoice.ray:
        return None
    has_gpu = may_use_gpu and any(node.num_gpus for node in nodes_of_cluster())
    engine = RayEngine(num_gpus=int(has_gpu), stall_seconds=stall_seconds())
    if problems := unfit_nodes(engine, store):
        listing = "\n".join(f"  - {address}: {text}" for address, text in problems.items())
        raise MachineError(f"{len(problems)} node(s) of the Ray cluster cannot take part:\n{listing}\n{_remedy(store)}")
    return engine


def unfit_nodes(engine: RayEngine, store: Store) -> dict[str, str]:
    """Write an object and let every node read it.

    Returns:
        What is wrong, by the address of the node; empty if all nodes can read the store.
    """
    key, token = f"{_PROBES}/{uuid.uuid4().hex}", uuid.uuid4().hex.encode()
    store.put(key, token)
    try:
        answers = engine.on_every_node(_Probe(store, key, token))
    finally:
        store.delete([key])
    return {
        address: f"{type(answer).__name__}: {answer}" if isinstance(answer, Exception) else answer
        for address, answer in sorted(answers.items())
        if answer
    }


@dataclass(frozen=True)
class _Probe:
    """Reads an object on a node, and returns what is wrong or an empty text."""

    store: Store
    key: str
    token: bytes

    def __call__(self) -> str:
        try:
            found = self.store.read(self.key)
        except Exception as error:  # noqa: BLE001  every store has errors of its own, and each is the answer
            # A text is returned, because not every error of a store can be pickled.
            return f"cannot read the store {self.store.url} ({type(error).__name__}: {error})"
        return "" if found == self.token else f"sees another store at {self.store.url}"


def _remedy(store: Store) -> str:
    if store.is_local:
        return (
            f"The store is the folder {store.url}. On a cluster it must be a shared disk that all nodes mount under that path. "
            "Or use s3://bucket/prefix, or the local engine."
        )
    return "Give every node the AWS_* variables of this process, and the same image. Keys are never sent to nodes."

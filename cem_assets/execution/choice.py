"""Which engine a run takes, and whether every machine of it can read the store.

What an engine is, is in `cem_assets.execution.local`; the cluster's is `cem_assets.execution.ray`.
"""

import uuid
from dataclasses import dataclass

from cem_assets.errors import MachineError
from cem_assets.execution.local import Engine, EngineChoice, engine_choice
from cem_assets.execution.ray import RayEngine, nodes_of_cluster, stall_seconds
from cem_assets.store.store import Store

_PROBES = "_probe"


def chosen_engine(store: Store, choice: EngineChoice = EngineChoice.default, may_use_gpu: bool = False) -> Engine | None:
    """Return the engine that a run takes.

    Args:
        store: That the items read and write.
        choice: What the run asks for; `default` takes CEM_ASSETS_ENGINE.
        may_use_gpu: Whether the work gains from a GPU; then each item takes one where the cluster has any.

    Returns:
        A cluster's engine, its nodes having been asked whether they can read the store; None for the local engine, whose
        pool a stage chooses by the number of its items.

    Raises:
        ConnectionError: There is no cluster.
        RuntimeError: Ray is not installed, or a node cannot read the store or has other versions.
        ValueError: A variable is wrong.
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
    """Ask every node to read an object that was just written.

    Returns:
        What is wrong, by address of the node; empty where all is well.
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
    """Reads an object on a node; what is wrong, or an empty text."""

    store: Store
    key: str
    token: bytes

    def __call__(self) -> str:
        try:
            found = self.store.read(self.key)
        except Exception as error:  # noqa: BLE001  every store has its own errors; all of them are the answer
            # As text: not every error of a store can be sent on.
            return f"cannot read the store {self.store.url} ({type(error).__name__}: {error})"
        return "" if found == self.token else f"sees another store at {self.store.url}"


def _remedy(store: Store) -> str:
    if store.is_local:
        return (
            f"The store is the folder {store.url}: on a cluster it must be one disk that all nodes mount at that place. Or use "
            "s3://bucket/prefix, or the local engine."
        )
    return "Give every node the AWS_* variables that this process has, and the same image; keys are never sent to nodes."

"""Objects to and from S3: our store beside s3fs, obstore and boto3, on one real server, with the same number of threads.

The peer of a row is the fastest of the three. Rates are medians of several turns, with all clients in each turn. It is asserted
that each client reads what was written. `create` and a whole commit have no peer: they show what the protocol costs.
"""

import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from cem_assets.store.commits import Commit
from cem_assets.store.manifests import Inputs
from cem_assets.store.store import Store, open_store
from perf.peers import absence, peer
from perf.s3_server import s3_bucket
from perf.timing import Measured

NUM_THREADS = 8


@dataclass(frozen=True)
class Client:
    """A client: how it writes, reads, and counts the keys of a folder."""

    write: Callable[[str, bytes], object]
    read: Callable[[str], bytes]
    count: Callable[[str], int]


def clients(bucket: str) -> dict[str, Client]:
    store = open_store(f"s3://{bucket}")
    found = {
        "ours": Client(store.put, store.read, lambda folder: sum(1 for _ in store.walk(folder))),
        "s3fs": Client(
            lambda key, data: store.fs.pipe_file(f"{bucket}/{key}", data),
            lambda key: store.fs.cat_file(f"{bucket}/{key}"),
            lambda folder: len(store.fs.find(f"{bucket}/{folder}")),
        ),
    }
    if peer("obstore") is not None:
        found["obstore"] = by_obstore(bucket)
    if peer("boto3") is not None:
        found["boto3"] = by_boto3(bucket)
    return found


def by_obstore(bucket: str) -> Client:
    import obstore
    from obstore.store import S3Store

    endpoint = os.environ["AWS_ENDPOINT_URL"]
    client = S3Store(bucket, endpoint=endpoint, client_options={"allow_http": endpoint.startswith("http://")})
    return Client(
        lambda key, data: obstore.put(client, key, data),
        lambda key: obstore.get(client, key).bytes().to_bytes(),
        lambda folder: sum(len(page) for page in obstore.list(client, f"{folder}/", chunk_size=1000)),
    )


def by_boto3(bucket: str) -> Client:
    import boto3
    from botocore.config import Config

    client = boto3.client("s3", config=Config(signature_version="s3v4", max_pool_connections=32))
    pages = client.get_paginator("list_objects_v2")
    return Client(
        lambda key, data: client.put_object(Bucket=bucket, Key=key, Body=data),
        lambda key: client.get_object(Bucket=bucket, Key=key)["Body"].read(),
        lambda folder: sum(len(page["Contents"]) for page in pages.paginate(Bucket=bucket, Prefix=f"{folder}/")),
    )


def median_rates(calls: dict[str, Callable[[int], float]], amount: float, repeats: int) -> dict[str, float]:
    """Call the functions in turn with the number of the turn; each returns its seconds."""
    seconds = zip(calls, zip(*turns(calls, repeats), strict=True), strict=True)
    return {name: amount / statistics.median(times) for name, times in seconds}


def turns(calls: dict[str, Callable[[int], float]], repeats: int) -> list[list[float]]:
    return [[call(turn) for call in calls.values()] for turn in range(repeats)]


def row(work: str, unit: str, rates: dict[str, float], note: str) -> Measured:
    others = {name: rate for name, rate in rates.items() if name != "ours"}
    best = max(others, key=others.__getitem__)
    told = ", ".join(f"{name} {rate:.3g}" for name, rate in others.items() if name != best)
    return Measured(work, unit, rates["ours"], others[best], best, 0.8, "; ".join(text for text in (told, note) if text))


def measure(is_quick: bool = False) -> list[Measured]:
    # Each row: bytes of an object, objects in a turn, threads, turns.
    sizes = [(1000, 200, NUM_THREADS, 7), (64_000, 200, NUM_THREADS, 5), (8 << 20, 16, NUM_THREADS, 3), (128 << 20, 2, 1, 3)]
    if is_quick:
        sizes = [(1000, 60, NUM_THREADS, 3), (8 << 20, 4, NUM_THREADS, 1)]
    note = absence("obstore", "boto3")
    with s3_bucket() as bucket:
        ways, rows = clients(bucket), []
        for num_bytes, num_objects, num_threads, repeats in sizes:
            rows += whole_objects(ways, num_bytes, num_objects, num_threads, repeats, note)
        rows.append(listing(ways, 1000 if is_quick else 10_000, 3 if is_quick else 5, note))
        rows += protocol(open_store(f"s3://{bucket}/root"), 20 if is_quick else 100)
    return rows


def whole_objects(
    ways: dict[str, Client], num_bytes: int, num_objects: int, num_threads: int, repeats: int, note: str
) -> list[Measured]:
    data = os.urandom(num_bytes)
    with ThreadPoolExecutor(num_threads) as pool:

        def timed(name: str, turn: int, do: Callable[[str], Any]) -> float:
            started = time.perf_counter()
            for _ in pool.map(lambda n: do(f"{num_bytes}/{name}/{turn}/{n}"), range(num_objects)):
                pass
            return time.perf_counter() - started

        def check(way: Client, key: str) -> None:
            assert len(way.read(key)) == num_bytes

        for name, way in ways.items():  # so that connections are open before anything is timed
            way.write(f"warm/{num_bytes}/{name}", data)
            assert way.read(f"warm/{num_bytes}/{name}") == data
        is_small = num_bytes < 1 << 20
        amount = num_objects if is_small else num_objects * num_bytes / 1e6
        unit = "objects/s" if is_small else "MB/s"
        size = f"{num_bytes // 1000} kB" if is_small else f"{num_bytes >> 20} MiB"
        writes = {n: lambda turn, n=n, w=w: timed(n, turn, lambda key: w.write(key, data)) for n, w in ways.items()}
        reads = {n: lambda turn, n=n, w=w: timed(n, turn, lambda key: check(w, key)) for n, w in ways.items()}
        where = f"{size}, {num_threads} threads" if num_threads > 1 else size
        return [
            row(f"S3: writing objects of {where}", unit, median_rates(writes, amount, repeats), note),
            row(f"S3: reading objects of {where}", unit, median_rates(reads, amount, repeats), note),
        ]


def listing(ways: dict[str, Client], num_keys: int, repeats: int, note: str) -> Measured:
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        list(pool.map(lambda n: ways["ours"].write(f"listed/{n % 10}/{n:06d}.bin", b"x"), range(num_keys)))

    def timed(way: Client) -> float:
        started = time.perf_counter()
        assert way.count("listed") == num_keys
        return time.perf_counter() - started

    calls = {name: lambda _, way=way: timed(way) for name, way in ways.items()}
    return row(f"S3: listing {num_keys:,} keys", "keys/s", median_rates(calls, num_keys, repeats), note)


def protocol(store: Store, num: int) -> list[Measured]:
    started = time.perf_counter()
    assert all(store.create(f"created/{n}", b"%d" % n) for n in range(num))
    creating = time.perf_counter() - started
    started = time.perf_counter()
    for n in range(num // 10):
        commit = Commit(store, Inputs("cem/perf", f"d{n}", "1"))
        for part in range(4):
            commit.write(f"part-{part}", os.urandom(1000))
        commit.finish({})
    committing = time.perf_counter() - started
    return [
        Measured("S3: exclusive creates, one thread", "objects/s", num / creating, 0, "-", 0),
        Measured("S3: commits of four small objects, one thread", "commits/s", (num // 10) / committing, 0, "-", 0),
    ]

"""Which HTTP client costs least: `python transport.py URL_OF_A_LARGE_FILE [MB_OF_A_RANGE] [RANGES]`.

Fetches the same ranges with 16 threads by each client that is installed, each in a process of its own, three times in
turn, and prints the best rate and CPU time. The figures in `liver_dask/archive/remote/http_transport.py` are from
nginx on loopback: 4 MB x 200 side by side, and 0.04 MB x 1000 far apart.
"""

import multiprocessing
import resource
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

THREADS = 16
Get = Callable[[int, int], Any]


def by_urllib3(url: str) -> Get:
    import urllib3

    pool = urllib3.PoolManager(maxsize=THREADS, block=True)
    return lambda start, stop: pool.request("GET", url, headers={"Range": f"bytes={start}-{stop - 1}"}).data


def by_requests(url: str) -> Get:
    import requests

    session = requests.Session()
    session.mount("http://", requests.adapters.HTTPAdapter(pool_maxsize=THREADS))
    return lambda start, stop: session.get(url, headers={"Range": f"bytes={start}-{stop - 1}"}).content


def by_httpx(url: str) -> Get:
    import httpx

    client = httpx.Client(limits=httpx.Limits(max_connections=THREADS))
    return lambda start, stop: client.get(url, headers={"Range": f"bytes={start}-{stop - 1}"}).content


def by_fsspec(url: str) -> Get:
    import fsspec

    fs = fsspec.filesystem("http")
    return lambda start, stop: fs.cat_file(url, start=start, end=stop)


def by_obstore(url: str) -> Get:
    import obstore
    from obstore.store import HTTPStore

    root, _, path = url.partition("//")[2].partition("/")
    store = HTTPStore.from_url(f"http://{root}", client_options={"allow_http": True})
    return lambda start, stop: memoryview(obstore.get_range(store, path, start=start, end=stop))


CLIENTS = {
    "urllib3": by_urllib3,
    "requests": by_requests,
    "httpx": by_httpx,
    "fsspec": by_fsspec,
    "obstore": by_obstore,
}


def measure(client: str, url: str, size: int, count: int, results: Any) -> None:
    """Put (MB/s, CPU seconds) of one run, or None where the client is not installed."""
    try:
        get = CLIENTS[client](url)
    except ImportError:
        results.put(None)
        return
    step = size if size > 1 << 20 else 20 * size
    began = time.perf_counter()
    with ThreadPoolExecutor(THREADS) as threads:
        total = sum(threads.map(lambda i: len(get(1000 + i * step, 1000 + i * step + size)), range(count)))
    assert total == size * count
    used = resource.getrusage(resource.RUSAGE_SELF)
    results.put((total / 1e6 / (time.perf_counter() - began), used.ru_utime + used.ru_stime))


def main(url: str, megabytes: float = 4, count: int = 200) -> None:
    """Measure all clients in turn and print their best."""
    spawn = multiprocessing.get_context("spawn")
    results = spawn.Queue()
    runs: dict[str, list[tuple[float, float]]] = {client: [] for client in CLIENTS}
    for _ in range(3):
        for client in CLIENTS:
            process = spawn.Process(target=measure, args=(client, url, int(megabytes * 1e6), count, results))
            process.start()
            result = results.get(timeout=300)
            process.join()
            runs[client] += [result] if result else []
    for client, measured in runs.items():
        if measured:
            rates, seconds = zip(*measured, strict=True)
            print(f"{client:10} {max(rates):6.0f} MB/s, {min(seconds):.2f} s of CPU (start-up included)")


if __name__ == "__main__":
    main(sys.argv[1], *map(float, sys.argv[2:3]), *map(int, sys.argv[3:4]))

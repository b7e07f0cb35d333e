"""A program that knows nothing of a Ray session but where it listens, and tries one of its doors.

    python stranger.py task|kv HOST:PORT
    python stranger.py job URL FILE          the job is to make FILE
    python stranger.py listeners HOST:PORT ...

Prints `in` where it got in, else `out` and why; of listeners one such line each. Its token, if it has one, is
in the environment, where Ray looks for it.
"""

import json
import os
import sys
import urllib.error
import urllib.request


def task(address: str) -> str:
    """Run code on a worker."""
    import ray
    from ray._private import services

    services.resolve_ip_for_localhost = lambda host: host  # else loopback becomes the outer address
    ray.init(address=address, logging_level="ERROR", log_to_driver=False)
    return f"in {ray.get(ray.remote(lambda: os.getpid()).remote(), timeout=60)}"


def kv(address: str) -> str:
    """Write to the store from which workers unpickle functions."""
    from ray._raylet import GcsClient

    client = GcsClient(address=address)
    client.internal_kv_put(b"stranger", b"was here", True, b"doors")
    return f"in {client.internal_kv_get(b'stranger', b'doors')!r}"


def job(url: str, file: str) -> str:
    """Have the job server run a command."""
    body = json.dumps({"entrypoint": f"touch {file}"}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        request.add_header("Authorization", f"Bearer {token}")
    with urllib.request.urlopen(request, timeout=60) as answer:
        return f"in {answer.read().decode()}"


def listener(address: str) -> str:
    """Ask a port for whatever it may have, in HTTP and in gRPC."""
    try:
        with urllib.request.urlopen(f"http://{address}/api/version", timeout=20) as answer:
            return f"in {answer.read(60)!r}"
    except urllib.error.HTTPError as error:
        return f"out HTTP {error.code}"
    except Exception:  # not HTTP: a server of gRPC ends the connection
        return grpc(address)


def grpc(address: str) -> str:
    import grpc

    channel = grpc.insecure_channel(address)
    for method in (
        "NodeInfoGcsService/GetAllNodeInfo",
        "NodeManagerService/GetNodeStats",
        "ObjectManagerService/Pull",
        "CoreWorkerService/GetCoreWorkerStats",
        "ReporterService/GetTraceback",
    ):
        try:
            channel.unary_unary(f"/ray.rpc.{method}")(b"", timeout=20)
            return f"in {method}"
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.UNIMPLEMENTED:
                known = error.code() is grpc.StatusCode.UNAUTHENTICATED
                return f"{'out' if known else 'unclear'} {method} {error.code().name}"
    return "unclear: no service that is known"


def main() -> None:
    door, *where = sys.argv[1:]
    if door == "listeners":
        for address in where:
            print(listener(address), flush=True)
        return
    try:
        print({"task": task, "kv": kv, "job": job}[door](*where), flush=True)
    except Exception as error:
        print("out", type(error).__name__, error, flush=True)


if __name__ == "__main__":
    main()

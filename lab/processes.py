"""What a launcher gives each of several processes on this machine."""

import os
import socket

import torch


def free_port() -> int:
    """Return a port of this machine that nothing listens on."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port: int = server.getsockname()[1]
        return port


def be_rank(rank: int, count: int, port: int) -> None:
    """Give this process the environment variables that a launcher sets, and one thread.

    Args:
        rank: of this process.
        count: of all processes.
        port: on which they meet.

    """
    torch.set_num_threads(1)
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_PORT": port}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", **{name: str(number) for name, number in numbers.items()}}

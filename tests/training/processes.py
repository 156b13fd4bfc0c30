"""Runs of two processes on this machine, which exchange gradients over gloo."""

import os
import socket

import torch


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def be_rank(rank, count, port):
    """Give this process the surroundings that a launcher gives it."""
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def _call(rank, function, arguments, port, count):
    be_rank(rank, count, port)
    function(rank, *arguments)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def on_two_processes(function, *arguments):
    """Call a function of a module with the rank and the arguments on two new processes."""
    torch.multiprocessing.spawn(_call, (function, arguments, free_port(), 2), nprocs=2)

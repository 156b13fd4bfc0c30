"""Two processes of a gloo group, which stay and run one check after the other: starting them takes seconds."""

import datetime
import multiprocessing
import os
import traceback

import torch

from lab.processes import be_rank, free_port

TIMEOUT = 60
"""Seconds after which a process gives up waiting for the other."""


class Pair:
    """Runs checks, functions of the rank, in both processes at once; a failure ends the processes, and new ones follow.

    Args:
        folder: a folder of its own, to meet in.

    """

    def __init__(self, folder):
        self._folder = folder
        self._context = multiprocessing.get_context("forkserver")
        # The server imports once what both processes need, and forks them. It must not have run autograd before.
        self._context.set_forkserver_preload(["torch", "transformers", "accelerate", "peft"])
        self._processes = []
        self._started = 0

    def run(self, check, *arguments):
        """Run ``check(rank, *arguments)`` in both processes, and return their results in the order of the ranks."""
        if not self._processes:
            self._start()
        for _, connection in self._processes:
            connection.send((check, arguments))
        answers = [self._answer(connection) for _, connection in self._processes]
        failures = [f"rank {rank}: {answer[1]}" for rank, answer in enumerate(answers) if not answer[0]]
        if failures:
            self.stop()
            raise AssertionError("\n".join(failures))
        return [answer[1] for answer in answers]

    def stop(self):
        """End both processes."""
        for process, connection in self._processes:
            connection.close()
            process.terminate()
            process.join()
        self._processes = []

    def _start(self):
        self._started += 1
        port = free_port()
        for rank in range(2):
            ours, theirs = self._context.Pipe()
            meeting = self._folder / f"pair-{self._started}"
            process = self._context.Process(target=_work, args=(rank, meeting, port, theirs), daemon=True)
            process.start()
            self._processes.append((process, ours))

    def _answer(self, connection):
        try:
            if connection.poll(3 * TIMEOUT):
                return connection.recv()
        except EOFError:
            return False, "the process ended"
        return False, "no answer"


def _work(rank, meeting, port, connection):
    be_rank(rank, 2, port)
    os.environ |= {"ACCELERATE_USE_CPU": "true", "DS_ACCELERATOR": "cpu"}
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{meeting}",
        rank=rank,
        world_size=2,
        timeout=datetime.timedelta(seconds=TIMEOUT),
    )
    while True:
        try:
            check, arguments = connection.recv()
        except EOFError:
            return
        torch.manual_seed(0)
        try:
            connection.send((True, check(rank, *arguments)))
        except BaseException:
            connection.send((False, traceback.format_exc()))

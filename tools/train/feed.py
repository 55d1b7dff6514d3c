"""Batches for a training loop, made ahead by other processes and put on the device by a thread.

A batch is a dictionary of arrays. Without workers each is made when it is asked for, which gives the same
batches every time; with workers their order depends on who is first.
"""

from __future__ import annotations

import itertools
import multiprocessing
import queue
import threading
import traceback
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

Batch = dict[str, Any]


class Feed:
    """An endless iterator over batches.

    Args:
        make: makes the batch of a number at a share of the training. Called in the workers.
        device: where arrays go; other values stay as they are.
        workers: processes that make batches. They are forked: build this before anything uses the GPU.
        first: number of the first batch.
        replays: how often a batch may be given again while no new one is ready.
    """

    def __init__(
        self,
        make: Callable[[int, float], Batch],
        device: torch.device,
        workers: int = 0,
        first: int = 0,
        replays: int = 0,
    ) -> None:
        self.make, self.device, self.number = make, device, first
        self.replays, self.fresh = replays, 0
        self.old: deque[list[Any]] = deque(maxlen=48)
        self.workers: list[Any] = []
        if not workers:
            return
        context = multiprocessing.get_context("fork")
        self.share = context.Value("d", 0.0, lock=False)
        self.made = context.Queue(2 * workers)
        self.ready: queue.Queue[Batch] = queue.Queue(3)
        for worker in range(workers):
            task = context.Process(target=self._work, args=(first + worker, workers), daemon=True)
            task.start()
            self.workers.append(task)
        threading.Thread(target=self._fetch, daemon=True).start()

    def _work(self, first: int, step: int) -> None:
        torch.set_num_threads(1)
        try:
            for number in itertools.count(first, step):
                self.made.put(self.make(number, self.share.value))
        except Exception:  # the trainer raises it: this process has nobody to tell
            self.made.put({"error": traceback.format_exc()})

    def _fetch(self) -> None:
        try:
            while True:
                self.ready.put(self._place(self.made.get()))
        except Exception:  # as of a worker
            self.ready.put({"error": traceback.format_exc()})

    def _place(self, batch: Batch) -> Batch:
        placed = {}
        for key, value in batch.items():
            if isinstance(value, np.ndarray):
                tensor = torch.from_numpy(value)
                if self.device.type == "cuda":
                    tensor = tensor.pin_memory()
                placed[key] = tensor.to(self.device, non_blocking=True)
            else:
                placed[key] = value
        return placed

    def next(self, share: float) -> Batch:
        """The next batch, at a share of the training between 0 and 1.

        Raises:
            RuntimeError: a worker failed; its traceback is in the message. Or one was killed: then batches
                would lack, and the others may wait for a lock that it held.
        """
        if not self.workers:
            self.number += 1
            self.fresh += 1
            return self._place(self.make(self.number - 1, share))
        self.share.value = share
        again = next((entry for entry in self.old if entry[1] < self.replays), None)
        batch: Batch | None = None
        while batch is None:
            killed = {task.exitcode for task in self.workers} - {None, 0}
            if killed:
                raise RuntimeError(f"A process that makes batches was killed (exit code {killed.pop()}).")
            try:
                batch = self.ready.get(block=again is None, timeout=1)
            except queue.Empty:
                if again is not None:
                    again[1] += 1
                    return dict(again[0])
        if "error" in batch:
            raise RuntimeError(f"A process that makes batches failed:\n{batch['error']}")
        self.fresh += 1
        if self.replays:
            self.old.append([batch, 0])
        return dict(batch)

    def close(self) -> None:
        """End the processes."""
        for task in self.workers:
            task.terminate()

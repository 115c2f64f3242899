"""Processes that do not outlive who started them, or do not end by themselves, and what they tell of errors."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import pickle
import signal
import subprocess
import threading
import traceback
from collections import defaultdict
from collections.abc import Mapping
from multiprocessing.connection import wait

from ticketry.errors import RunnerError


def end_with_parent() -> None:
    """From now on, end this process at once when its parent is gone."""
    threading.Thread(target=_watch, daemon=True).start()


def _watch() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def portable(error: Exception) -> Exception:
    """The error, or what it says if another process could not read it (it would take it for a lost worker)."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RunnerError(f"training failed in a worker process:\n{''.join(traceback.format_exception(error))}")
    return error


def kill_with_children(pid: int) -> None:
    """End a process and all that it started with SIGKILL, itself first, so that it begins nothing in their place."""
    found = [pid]
    children = _children()
    for one in found:
        found += children[one]
    for one in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(one, signal.SIGKILL)


def _children() -> defaultdict[int, list[int]]:
    """Of each process of this machine."""
    found = defaultdict[int, list[int]](list)
    told = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    for line in told.splitlines():
        pid, parent = line.split()
        found[int(parent)].append(int(pid))
    return found


_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
"""Numbers of glibc's <malloc.h>."""
_LARGE, _LEFT = 1 << 20, 1 << 17
"""Bytes of a block that is given back by itself, and of what is free at the end of the heap; the latter as glibc has
it."""
_MOST = 2**31 - 1
"""What an int holds."""


def keep_freed_memory() -> bool:
    """Let this process keep large blocks that are freed, for the next step; whether it does (with glibc only).

    By default glibc gives blocks of more than 32 MiB, and what is free at the end of its heap, back to the system at
    once. The next step gets them anew, and the system writes zeros into each page: a step of a language model,
    whose scores over a vocabulary of 10,000 words are such blocks, spends a third of its time so. What is kept is at
    most what the process has once had, and goes with it: this is for processes that train and nothing else.
    """
    return _set_malloc({_MMAP_MAX: 0, _TRIM_THRESHOLD: _MOST})


def give_back_freed_memory() -> bool:
    """Let this process give each large block back to the system when it is freed; whether it does (with glibc only).

    By default glibc does so with the first ones, and then has more and more of them in its heap, up to blocks of 32
    MiB. There, what stays (gradients, moments) comes to lie between what goes (gathered layers), and holes are of no
    use to anything larger: a process with half a network in parts had 2.3 GB so, of which it used 1. It costs the zeros
    that the system writes into a block that comes anew.
    """
    return _set_malloc({_MMAP_THRESHOLD: _LARGE, _TRIM_THRESHOLD: _LEFT})


def _set_malloc(options: Mapping[int, int]) -> bool:
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library, another system
        return False
    mallopt.argtypes, mallopt.restype = (ctypes.c_int, ctypes.c_int), ctypes.c_int
    done = [mallopt(option, value) for option, value in options.items()]
    return all(done)

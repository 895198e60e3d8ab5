"""What a worker process and the process that supervises it owe each other.

BentoML starts the workers with circus, which looks after them every ten seconds, and which tells
them nothing when it is killed.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import threading
import time
from typing import Any

from sdxl_bento.config import supervisor_pid

logger = logging.getLogger(f"bentoml.{__name__}")
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_LOOK_EVERY_S = 0.5
_AGAIN_S = 0.2
_REST_S = 3.0  # at least, between two replacements: a worker may die as soon as it starts


def end_with_parent() -> None:
    """End this worker, as by SIGTERM, as soon as its parent process has ended.

    A worker without its parent would serve for ever, and keep its port.
    """
    parent = os.getppid()
    if supervisor_pid() not in (None, parent):  # the parent had ended before this could be asked
        os.kill(os.getpid(), signal.SIGTERM)
        return
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)
    else:
        threading.Thread(target=_watch, args=(parent,), name="sdxl-parent", daemon=True).start()


def replace_dead_workers_at_once() -> None:
    """Let the supervisor, which is this process, replace a worker as soon as it dies.

    Otherwise up to ten seconds pass until the supervisor looks. BentoML has no setting for that, so
    its supervisor is extended, where it still has the expected form.
    """
    try:
        from bentoml._internal.utils import circus

        class PromptArbiter(circus.Arbiter):  # type: ignore[misc, unused-ignore]
            def initialize(self) -> None:
                super().initialize()
                self._next_look = time.monotonic()
                self._managing = False
                signal.signal(signal.SIGCHLD, self._child_has_ended)

            def _child_has_ended(self, *_: object) -> None:
                self.loop.add_callback_from_signal(self._look_soon)

            def _look_soon(self) -> None:
                now = time.monotonic()
                delay = max(self._next_look - now, 0)
                self._next_look = now + delay + _REST_S
                self.loop.call_later(delay, self._look_after_workers)

            def _look_after_workers(self) -> None:
                if self.manage_watchers() is None and not self._stopping:
                    self.loop.call_later(_AGAIN_S, self._look_after_workers)

            def manage_watchers(self) -> Any:
                # circus makes this exclude all other commands, and drops those that come meanwhile:
                # SIGTERM would be lost. Here, it only gives way to them.
                if self._managing or self._restarting or self._exclusive_running_command:
                    return None
                self._managing = True
                done = super().manage_watchers.__wrapped__(self)
                done.add_done_callback(lambda _: setattr(self, "_managing", False))
                return done

        circus.Arbiter = PromptArbiter  # type: ignore[misc]
    except (ImportError, AttributeError) as error:
        logger.info("a worker that dies is replaced only after some seconds: %s", error)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_LOOK_EVERY_S)
    os.kill(os.getpid(), signal.SIGTERM)

"""Errors of the page's handlers, which Gradio would print, with what the visitor has written."""

from __future__ import annotations

import logging
import sys
from types import SimpleNamespace

import gradio as gr
import gradio.queueing

logger = logging.getLogger(f"bentoml.{__name__}")


def log_failures() -> None:
    """Let Gradio's queue log errors as the rest of the service does.

    Gradio calls `traceback.print_exc`, and has no hook. Values that do not fit an element (Gradio's
    own `Error`) are the visitor's mistake, who is told of them. Of other errors, each kind is
    logged once with its traceback.
    """
    seen: set[tuple[str, int]] = set()

    def log() -> None:
        error = sys.exc_info()[1]
        if error is None or isinstance(error, gr.Error):
            return
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        kind = type(error).__name__, 0 if trace is None else trace.tb_lineno
        logger.error("the page failed with %s", kind[0], exc_info=kind not in seen)
        seen.add(kind)

    gradio.queueing.traceback = SimpleNamespace(print_exc=log)

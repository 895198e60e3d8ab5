"""The facade over the engine of this process: orders in, pictures out.

What it is made of does the work, and can be asked directly: `models` (look-up, lists), `planner`
(defaults and limits), `calls` (cancel, position), `activity` (statistics).
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection
from functools import partial
from typing import TYPE_CHECKING

from sdxl_bento.engine.async_engine import AsyncEngine
from sdxl_bento.engine.core import Engine
from sdxl_bento.serving.activity import Activity
from sdxl_bento.serving.calls import Call, Calls, OnProgress
from sdxl_bento.serving.planner import Planner
from sdxl_bento.serving.registry import ModelRegistry
from sdxl_bento.serving.results import Generation, Provenance

if TYPE_CHECKING:
    from sdxl_bento.config import Settings
    from sdxl_bento.order import Order, Resolved


class Generator:
    """Orders in, pictures out. Light to make: `start` loads the models in a thread.

    Attributes:
        models: the loaded models, by name.
        planner: what an order would be drawn as.
        calls: the calls that are being drawn.
        activity: how busy the engine is.
    """

    def __init__(self, settings: Settings, worker_index: int = 0, *, warm: bool = True) -> None:
        """
        Args:
            settings: of the service.
            worker_index: of this process among the server's, from 0; it chooses the GPU.
            warm: draw something before the first call, so that its time is that of all others.
                For a single call that is not worth its while.
        """
        self._settings = settings
        self._warm = warm
        self._worker_index = worker_index
        self._engine = AsyncEngine(self._build)
        self._keep_profiles: Callable[[], None] = lambda: None
        self.models = ModelRegistry(lambda: self.state)
        self.planner = Planner(self.models, settings)
        self.calls = Calls(self._engine)
        self.activity = Activity(self._engine, self.models)

    @property
    def state(self) -> str:
        """`new`, `loading`, `ready`, `draining`, `stopped` or `dead`."""
        return str(self._engine.state)

    @property
    def state_reason(self) -> str:
        """Why the engine is dead; empty otherwise."""
        return self._engine.reason

    def start(self) -> None:
        """Begin to load the models; returns at once."""
        self._engine.start()

    async def stop(self) -> None:
        """Take no more calls, let the running ones end within `drain_s`, then stop."""
        await self._engine.stop(self._settings.drain_s)
        self._keep_profiles()

    def resolve(self, order: Order) -> Resolved:
        """The order as it would be drawn now, every default filled in.

        Raises:
            InvalidInput, NotFound, NotReady, EngineDead: see `errors`.
        """
        self._engine.engine  # noqa: B018  raises unless it is ready
        return self.planner.resolve(order)

    async def draw(
        self,
        order: Resolved,
        *,
        request_id: str | None = None,
        on_progress: OnProgress | None = None,
        skip: Collection[int] = (),
    ) -> Generation:
        """Draw the pictures of an order, but for those whose index is in `skip`.

        Cancelling the awaiting task cancels the pictures. `on_progress` is called in the event
        loop, and asks for previews.

        Raises:
            InvalidInput, NotFound, Refused, RequestCancelled, RequestFailed: see `errors`.
        """
        self._engine.engine  # noqa: B018  raises unless it is ready
        plan = partial(self.planner.plan, wants_preview=on_progress is not None)
        call = Call(request_id or secrets.token_hex(8), order, plan)
        return await self.calls.run(call, on_progress, skip)

    def provenance(self, order: Resolved) -> Provenance:
        """What would draw the order now. May read adapters' files: call it from a thread.

        Raises:
            NotFound, NotReady: see `errors`.
        """
        return self.planner.provenance(order)

    def _build(self, wake: Callable[[], None]) -> Engine:
        """Runs in the engine's thread: PyTorch is imported there, and not before."""
        from sdxl_bento.serving.loading import load

        engine, models, self._keep_profiles = load(
            self._settings, self._worker_index, wake, self.activity.note, warm=self._warm
        )
        self.models.publish(models)
        return engine

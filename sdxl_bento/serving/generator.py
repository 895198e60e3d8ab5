"""The facade over the engine of this process: orders in, pictures out.

The work is done by the objects that it consists of. They can be used directly: `models` (look-up
and lists), `planner` (defaults and limits), `calls` (cancelling and positions), `activity`
(statistics).
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection
from functools import partial
from typing import TYPE_CHECKING

from sdxl_bento.engine.async_engine import AsyncEngine, EngineState
from sdxl_bento.engine.core import Engine
from sdxl_bento.errors import NotReady
from sdxl_bento.serving.activity import Activity
from sdxl_bento.serving.calls import Call, Calls, OnProgress
from sdxl_bento.serving.planner import Planner
from sdxl_bento.serving.registry import ModelRegistry
from sdxl_bento.serving.results import CallWarning, Generation, Provenance
from sdxl_bento.serving.verification import Verification

if TYPE_CHECKING:
    from sdxl_bento.config import Settings
    from sdxl_bento.order import Order, Resolved


class Generator:
    """Draws orders. Creating it is cheap; `start` loads the models in a thread of their own.

    Attributes:
        models: the loaded models, by name.
        planner: decides how an order is drawn.
        calls: the calls that are being drawn.
        activity: how busy the engine is.
    """

    def __init__(self, settings: Settings, worker_index: int = 0, *, warm: bool = True) -> None:
        """
        Args:
            settings: of the service.
            worker_index: the number of this process among the server's, from 0. It selects the GPU.
            warm: draw something before the first call, so that the first call takes no longer than
                any other. That does not pay for a process that draws a single call.
        """
        self._settings = settings
        self._warm = warm
        self._worker_index = worker_index
        self._engine = AsyncEngine(self._build)
        self._verification = Verification(settings.verify)
        self._keep_profiles: Callable[[], None] = lambda: None
        self.models = ModelRegistry(lambda: self.state, settings.model_aliases)
        self.planner = Planner(self.models, settings)
        self.calls = Calls(self._engine)
        self.activity = Activity(self._engine, self.models, self._verification)

    @property
    def state(self) -> str:
        """`new`, `loading`, `ready`, `draining`, `stopped`, `dead` or `damaged`.

        It is `damaged` if the check in the background has found that a file of a model differs.
        """
        state = self._engine.state
        if state is EngineState.READY and self._verification.reason:
            return "damaged"
        return str(state)

    @property
    def state_reason(self) -> str:
        """Why the engine is dead or the model damaged; empty otherwise."""
        return self._engine.reason or self._verification.reason

    def start(self) -> None:
        """Begin to load the models. Returns at once."""
        self._engine.start()

    async def stop(self) -> None:
        """Refuse new calls, give the running ones `drain_s` seconds to end, then stop."""
        await self._engine.stop(self._settings.drain_s)
        self._keep_profiles()

    async def look_up_adapters(self, order: Order) -> None:
        """Look at the files of the adapters that an order names, and for those that are unknown."""
        await self.models.adapter_files.check([lora.name for lora in order.params.loras])

    def resolve(self, order: Order) -> Resolved:
        """The order as it would be drawn now, with every default filled in.

        Raises:
            InvalidInput, NotFound, NotReady, EngineDead: see `errors`.
        """
        self._require_ready()
        return self.planner.resolve(order)

    async def draw(
        self,
        order: Resolved,
        *,
        request_id: str | None = None,
        on_progress: OnProgress | None = None,
        skip: Collection[int] = (),
    ) -> Generation:
        """Draw the pictures of an order, except those whose index is in `skip`.

        Cancelling the awaiting task cancels the pictures. If `on_progress` is given, previews are
        made, and it is called in the event loop.

        Raises:
            InvalidInput, NotFound, Refused, RequestCancelled, RequestFailed: see `errors`.
        """
        self._require_ready()
        plan = partial(self.planner.plan, wants_preview=on_progress is not None)
        call = Call(request_id or secrets.token_hex(8), order, plan)
        return await self.calls.run(call, on_progress, skip)

    def provenance(self, order: Resolved) -> Provenance:
        """What would draw the order now. It may read adapters' files, so call it from a thread.

        Raises:
            NotFound, NotReady: see `errors`.
        """
        return self.planner.provenance(order)

    def warnings(self, order: Resolved) -> tuple[CallWarning, ...]:
        """What a drawn order lacks of what was asked for. It takes a while, so use a thread.

        Raises:
            NotFound, NotReady: see `errors`.
        """
        return self.planner.warnings(order)

    def _require_ready(self) -> None:
        """Raises NotReady or EngineDead unless the engine takes requests."""
        _ = self._engine.engine
        if self.state == "damaged":
            raise NotReady("damaged")

    def _build(self, wake: Callable[[], None]) -> Engine:
        """Load the models. Runs in the engine's thread, so that only there PyTorch is imported."""
        from sdxl_bento.serving.loading import load

        engine, models, self._keep_profiles = load(
            self._settings,
            self._worker_index,
            wake,
            self.activity.note,
            warm=self._warm,
            verification=self._verification,
        )
        self.models.publish(models)
        return engine

"""The handlers of Gradio's page: they call the native API and show what it answers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import gradio as gr

from sdxl_bento.drawing import Answer
from sdxl_bento.errors import SDXLError
from sdxl_bento.order import Task
from sdxl_bento.protocols.http.api import API
from sdxl_bento.protocols.http.errors import error_body, logged
from sdxl_bento.ui import render, updates
from sdxl_bento.ui.album import Album, Start
from sdxl_bento.ui.choices import choices, nearest_size
from sdxl_bento.ui.form import (
    Form,
    from_call,
    keep_weights,
    show_size,
    to_call,
    to_refining,
    without_base,
)
from sdxl_bento.ui.layout import Layout
from sdxl_bento.ui.progress import PageCall, Snapshot
from sdxl_bento.ui.updates import Updates
from sdxl_bento.ui.uploads import picture_of, thumbnail

# Scroll to the picture, which is below the button on a narrow page.
_LOOK = """() => {
  if (matchMedia('(max-width: 52rem)').matches)
    document.querySelector('#sb-result').scrollIntoView({behavior: 'smooth'});
}"""
# No queue, because the engine has its own; no overlays; no entry in Gradio's own API.
_PLAIN: Mapping[str, Any] = {
    "concurrency_limit": None,
    "show_progress": "hidden",
    "api_visibility": "private",
}


class Events:
    """The handlers, one object for all visits. The state of a visit is in its `Album`."""

    def __init__(self, api: API, layout: Layout) -> None:
        self._api = api
        self._on = layout
        # The calls that are running, by Gradio's hash of the visit; `_end` needs them.
        self._drawings: defaultdict[str, set[PageCall]] = defaultdict(set)

    def connect(self, blocks: gr.Blocks) -> None:
        """Attach the handlers to the elements, inside the open `blocks`."""
        on = self._on
        pictures = [on.stage, on.actions, on.details, on.gallery]
        drawing = [*pictures, on.notice, on.draw, on.stop]
        own = (on.fields[name] for name in ("sampler", *updates.OF_MODEL))
        model = [*updates.of_model(on), *own]
        begin = [on.start_box, on.start, on.task]

        for ready in (blocks.load, on.timer.tick):
            ready(self._fill, None, [on.head, on.timer, *model], **_PLAIN)
        on.model.input(self._choose_model, on.model, model, **_PLAIN)
        on.chips.select(self._take_prompt, on.model, on.prompt, **_PLAIN)
        weights = [on.lora_names, *on.weights]
        on.loras.input(self._weigh, [on.loras, *weights], weights, **_PLAIN)
        on.random.change(self._ask_seed, on.random, on.seed, **_PLAIN)

        for go in (on.draw.click, on.prompt.submit):
            go(self._draw, [on.album, on.task, *on.form], drawing, **_PLAIN)
            go(None, js=_LOOK, **_PLAIN)
        on.refine.click(self._refine, on.album, drawing, **_PLAIN)
        on.stop.click(self._stop, None, on.stop, **_PLAIN)
        on.gallery.select(self._choose, on.album, pictures, **_PLAIN)

        form = list(dict.fromkeys((*on.form, *updates.of_model(on), *begin)))
        on.again.click(self._again, on.album, form, **_PLAIN)
        on.over.click(self._begin_with_chosen, on.album, [*begin, on.size], **_PLAIN)
        upload = [on.upload, on.album, on.model]
        on.upload.upload(self._begin_with_upload, upload, [*begin, on.size, on.notice], **_PLAIN)
        on.clear.click(self._begin_without, on.album, begin, **_PLAIN)
        blocks.unload(self._leave)

    def busy(self) -> bool:
        """Whether any visitor is waiting for a picture."""
        return bool(self._drawings)

    async def _fill(self) -> Updates:
        on, generator = self._on, self._api.generator
        state = generator.state
        head = render.headline(generator.models.summaries(), state, generator.state_reason)
        if state == "ready":
            await generator.models.adapter_files.look()
        offered = choices(generator)
        if offered is None:  # ask again, unless the engine has ended for good
            return {on.head: head, on.timer: gr.Timer(active=state != "dead")}
        return {on.head: head, on.timer: gr.Timer(active=False), **updates.first(on, offered)}

    async def _choose_model(self, name: str) -> Updates:
        offered = choices(self._api.generator, name)
        return {} if offered is None else updates.first(self._on, offered)

    async def _take_prompt(self, model: str | None, event: gr.EventData) -> str:
        offered = choices(self._api.generator, model)
        return "" if offered is None else offered.prompts[event.pick % len(offered.prompts)]

    async def _weigh(self, names: Sequence[str], before: Sequence[str], *weights: float) -> Updates:
        return updates.weigh(self._on, names, keep_weights(before, names, weights))

    async def _ask_seed(self, random: bool) -> Any:
        return gr.Textbox(visible=not random)

    async def _draw(
        self, request: gr.Request, album: Album, task: Task, *values: Any
    ) -> AsyncGenerator[Updates]:
        start = None if album.start is None else replace(album.start, task=task)
        form = Form.of(values)
        try:
            fields = to_call(form, with_picture=start is not None)
            if start is not None:
                fields |= await picture_of(start)
                if start.task == "refine":
                    fields = without_base(fields)
        except SDXLError as error:
            yield updates.idle(self._on, album, error_body(error)["error"])
            return
        async with aclosing(self._run(album, fields, start, request)) as shown:
            async for each in shown:
                yield each

    async def _refine(self, album: Album, request: gr.Request) -> AsyncGenerator[Updates]:
        entry = album.picture
        if entry is None:
            return
        start = Start(entry.src, image_id=entry.image_id, task="refine")
        fields = {**to_refining(entry.call, entry.seed), **await picture_of(start)}
        async with aclosing(self._run(album, fields, start, request)) as shown:
            async for each in shown:
                yield each

    async def _run(
        self, album: Album, fields: Mapping[str, Any], start: Start | None, request: gr.Request
    ) -> AsyncGenerator[Updates]:
        drawing, visit = PageCall.of(self._api, fields), str(request.session_hash)
        self._drawings[visit].add(drawing)
        try:
            yield updates.busy(self._on)
            async with aclosing(drawing.follow(_task(start))) as events:
                async for event in events:
                    yield self._shown(album, drawing, event, start)
        finally:
            self._drawings[visit].discard(drawing)
            if not self._drawings[visit]:
                del self._drawings[visit]

    def _shown(
        self,
        album: Album,
        drawing: PageCall,
        event: Snapshot | Answer | Exception,
        start: Start | None,
    ) -> Updates:
        if isinstance(event, Snapshot):
            return {self._on.stage: render.at_work(event)}
        if isinstance(event, Answer):
            album.add(event, start)
            remarks = "\n".join(warning.message for warning in event.warnings)
            return updates.idle(self._on, album, render.remark(remarks))
        if drawing.stopped:
            return updates.idle(self._on, album, render.remark("Stopped."))
        body = error_body(logged(event, drawing.call.request_id), drawing.call.request_id)
        return updates.idle(self._on, album, body["error"])

    async def _stop(self, request: gr.Request) -> Any:
        self._end(request)
        return gr.Button(interactive=False)

    async def _leave(self, request: gr.Request) -> None:
        self._end(request)

    def _end(self, request: gr.Request) -> None:
        for drawing in tuple(self._drawings.get(str(request.session_hash), ())):
            drawing.end()

    async def _choose(self, album: Album, event: gr.EventData, request: gr.Request) -> Updates:
        album.choose(event.pick)
        shown = updates.pictures(self._on, album)
        if str(request.session_hash) in self._drawings:  # the stage shows a call's progress
            del shown[self._on.stage], shown[self._on.actions]
        return shown

    async def _again(self, album: Album) -> Updates:
        entry = album.picture
        if entry is None:
            return {}
        form = from_call(entry.call, entry.seed, with_picture=entry.start is not None)
        offered = choices(self._api.generator, form.model)
        if offered is None:
            return {}
        album.start = entry.start
        begin = updates.beginning(self._on, album.start, offered.model.has_refiner)
        return {**updates.again(self._on, offered, form), **begin}

    async def _begin_with_chosen(self, album: Album) -> Updates:
        entry = album.picture
        if entry is None:
            return {}
        album.start = Start(entry.src, image_id=entry.image_id)
        begin = self._begin(album, entry.call["model"])
        return {**begin, self._on.size: show_size(entry.width, entry.height)}

    async def _begin_with_upload(self, path: str, album: Album, model: str | None) -> Updates:
        on = self._on
        try:
            small = await thumbnail(path, self._api)
        except SDXLError as error:
            return {on.notice: render.failure(error_body(error)["error"])}
        album.start = Start(small.src, path=path)
        shown = {**self._begin(album, model), on.notice: ""}
        offered = choices(self._api.generator, model)
        if offered is not None:
            shown[on.size] = nearest_size(offered.sizes, small.width, small.height)
        return shown

    async def _begin_without(self, album: Album) -> Updates:
        album.start = None
        return updates.beginning(self._on, None, refines=False)

    def _begin(self, album: Album, model: str | None) -> Updates:
        offered = choices(self._api.generator, model)
        refines = offered is not None and offered.model.has_refiner
        return updates.beginning(self._on, album.start, refines)


def _task(start: Start | None) -> Task:
    return "generate" if start is None else start.task

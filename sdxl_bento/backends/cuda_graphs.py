"""A CUDA graph for each shape: the launches of a whole forward become one.

A UNet is some thousand kernels. At 512² and few rows the host takes longer to launch them than the
device to run them. A CUDA graph records the launches once, over buffers that stay where they are,
and replays them in one call (https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, Protocol
from weakref import WeakValueDictionary

from cachetools import LRUCache

from sdxl_bento.backends.parts import Part
from sdxl_bento.manifest import BackendInfo

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(f"bentoml.{__name__}")

MOST_GRAPHS: Final = 32  # of one part; each keeps its inputs, its output and its launches
WARM_UPS: Final = 3  # runs before a capture, which choose kernels and allocate workspaces
CELL: Final = 8  # pixels of a latent cell's side, in the whole SDXL family
# Large tables that stay where they are from step to step: a graph reads them in place, so their
# address is part of its key and nothing is copied. The rest is copied into the graph's buffers.
IN_PLACE: Final = ("down", "up")

Key = tuple[object, ...]
Run = Callable[[Mapping[str, "torch.Tensor"]], "torch.Tensor"]


class Captured(Protocol):
    """A recorded forward of one shape."""

    def replay(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The output for these inputs, in memory of its own."""
        ...

    def free(self) -> None:
        """Give the recording and its buffers back."""
        ...


Capture = Callable[[Run, Mapping[str, "torch.Tensor"]], Captured]


class GraphedPart:
    """A UNet part that replays a graph for the shapes that its manifest names, as they come.

    Other shapes run as they are. So does a shape whose capture has failed, and the log says so.
    The least recently used graph makes room for a new one.
    """

    def __init__(
        self,
        part: Part,
        info: BackendInfo,
        capture: Capture | None = None,
        most: int = MOST_GRAPHS,
    ) -> None:
        self._part = part
        self._rows = frozenset(info.rows)
        self._sizes = frozenset((size.height // CELL, size.width // CELL) for size in info.sizes)
        self._capture = capture or capture_graph
        self._graphs: LRUCache[Key, Captured] = LRUCache(most)
        self._refused: set[Key] = set()

    def __call__(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        if not self._named(inputs):
            return self._part(inputs)
        key = _key(inputs)
        if key in self._refused:
            return self._part(inputs)
        graph = self._graphs.get(key) or self._new(key, inputs)
        if graph is None:
            return self._part(inputs)
        return graph.replay(inputs)

    def unload(self) -> None:
        while self._graphs:
            self._graphs.popitem()[1].free()
        self._part.unload()

    def _named(self, inputs: Mapping[str, torch.Tensor]) -> bool:
        rows, _, height, width = inputs["sample"].shape
        return rows in self._rows and (height, width) in self._sizes

    def _new(self, key: Key, inputs: Mapping[str, torch.Tensor]) -> Captured | None:
        # Before the capture, which needs the memory, and not by the cache itself after it.
        while self._graphs.currsize >= self._graphs.maxsize:
            self._graphs.popitem()[1].free()
        try:
            graph = self._capture(self._part, inputs)
        except RuntimeError as error:  # those for a lack of memory are RuntimeErrors too
            shape = list(inputs["sample"].shape)
            logger.warning("no CUDA graph for %s, running without: %s", shape, error)
            self._refused.add(key)
            return None
        self._graphs[key] = graph
        return graph


def _key(inputs: Mapping[str, torch.Tensor]) -> Key:
    return tuple(
        (name, tuple(x.shape), x.dtype, x.data_ptr() if name in IN_PLACE else None)
        for name, x in sorted(inputs.items())
    )


class _Graph:
    """One `torch.cuda.CUDAGraph` with its buffers."""

    def __init__(
        self,
        graph: torch.cuda.CUDAGraph,
        inputs: Mapping[str, torch.Tensor],
        output: torch.Tensor,
        pool: _Pool,
    ) -> None:
        self._graph, self._inputs, self._output = graph, dict(inputs), output
        self._pool: _Pool | None = pool

    def replay(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        for name, buffer in self._inputs.items():
            if name not in IN_PLACE:
                buffer.copy_(inputs[name], non_blocking=True)
        self._graph.replay()
        # Graphs share one pool of memory: the next replay of any of them may write here.
        return self._output.clone()

    def free(self) -> None:
        self._graph.reset()
        self._inputs.clear()
        self._pool = None
        del self._output


def capture_graph(run: Run, inputs: Mapping[str, torch.Tensor]) -> Captured:
    """Record one forward on the current device. Raises RuntimeError where it cannot be recorded."""
    import torch

    buffers = {
        name: x if name in IN_PLACE else x.clone(memory_format=torch.contiguous_format)
        for name, x in inputs.items()
    }
    device = inputs["sample"].device
    pool = _pool(device)
    current, side = torch.cuda.current_stream(device), pool.stream
    side.wait_stream(current)
    with torch.cuda.stream(side), torch.no_grad():
        for _ in range(WARM_UPS):
            run(buffers)
    current.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # Other threads load adapters meanwhile; what they allocate is no concern of this capture.
    with (
        torch.no_grad(),
        torch.cuda.graph(graph, pool=pool.handle, stream=side, capture_error_mode="thread_local"),
    ):
        output = run(buffers)
    return _Graph(graph, buffers, output, pool)


class _Pool:
    """Memory for all graphs of a device, and the stream they are captured on.

    Only one graph runs at a time, so they share their memory; torch lets them only if they were
    captured on one stream. A pool ends with its last graph: torch refuses to capture into one that
    has been given up.
    """

    def __init__(self, device: torch.device) -> None:
        import torch

        make_stream: Any = torch.cuda.Stream
        self.stream = make_stream(device)
        with torch.cuda.device(device):
            self.handle: Any = torch.cuda.graph_pool_handle()


_POOLS: WeakValueDictionary[str, _Pool] = WeakValueDictionary()


def _pool(device: torch.device) -> _Pool:
    """That of the device's graphs, or a new one if there are none."""
    pool = _POOLS.get(str(device))
    if pool is None:
        pool = _POOLS[str(device)] = _Pool(device)
    return pool

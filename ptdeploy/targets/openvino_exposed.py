"""A bundle's graph as OpenVINO runs it, once, with its inner values as outputs too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ptdeploy.backends.openvino.engine_file import engine_info
from ptdeploy.backends.openvino.errors import run_error
from ptdeploy.backends.openvino.kv_cache import BlockCache
from ptdeploy.backends.openvino.open import (
    Computing,
    Opening,
    compile_graph,
    keeps_kv,
    read_for,
)
from ptdeploy.backends.openvino.session import shared
from ptdeploy.bfloat16 import to_stored
from ptdeploy.bundle import Bundle, Manifest
from ptdeploy.runtime.kv_layout import KVLayout
from ptdeploy.runtime.paged_kv import step_inputs
from ptdeploy.targets.openvino_options import OpenVinoOptions

Arrays = dict[str, NDArray[Any]]


def run_exposed(bundle: Bundle, inner: tuple[str, ...], feed: Mapping[str, NDArray[Any]]) -> Arrays:
    """Its outputs and those inner values that OpenVINO has, by name.

    `feed` is what the graph in the bundle takes, and what comes back has the shapes that it gives,
    though OpenVINO runs a decoder's tokens as rows of their own; keys and values are in what the
    engine computes in, whatever the bundle keeps them in. Raises EngineFault.
    """
    path, manifest = bundle.in_folder("model"), bundle.manifest
    assert path is not None, "the caller read it"
    paged = keeps_kv(manifest)
    kept = BlockCache(OpenVinoOptions().keeps(manifest.precision))
    given = _paged(manifest, feed, kept) if paged else dict(feed)
    try:
        graph = read_for(manifest, path, False, lambda _: None)
        _expose(graph, inner)
        opening = Opening(manifest.device)
        info = msgspec.structs.replace(engine_info(bundle), kv_precision=kept.precision)
        computing = Computing(manifest.precision, info)
        request = compile_graph(graph, computing, opening).create_infer_request()
        for name, array in given.items():
            request.set_tensor(name, shared(array))
        request.infer()
        ports = request.model_outputs
        arrays = [np.array(request.get_tensor(port).data) for port in ports]
    except Exception as error:  # openvino's own errors share no public base class
        raise run_error(error) from error
    found = {
        name: array for port, array in zip(ports, arrays, strict=True) for name in port.get_names()
    }
    return _as_rows(manifest, feed, found) if paged else found


def _expose(graph: Any, inner: tuple[str, ...]) -> None:
    """Make outputs of those inner values that the graph still has; a value may have more names."""
    wanted = set(inner)
    ports = [port for node in graph.get_ordered_ops() for port in node.outputs()]
    graph.add_outputs([port for port in ports if port.get_names() & wanted])


def _paged(manifest: Manifest, feed: Mapping[str, NDArray[Any]], kept: BlockCache) -> Arrays:
    """A dense step's inputs as those of the paged program, each row's slots in blocks."""
    layout = KVLayout.of(manifest)
    ids, lengths = feed[layout.ids], feed[layout.lengths]
    rows, new = ids.shape
    block = kept.block
    needed = -(-int(lengths.max() + new) // block)
    tables = np.arange(rows * needed, dtype=np.int32).reshape(rows, needed)
    caches: Arrays = {}
    for number, name in enumerate(layout.past):
        dense = feed[name]
        slots = np.zeros((rows, layout.heads, needed * block, layout.width), np.float32)
        count = min(dense.shape[2], slots.shape[2])
        slots[:, :, :count] = dense[:, :, :count]
        split = slots.reshape(rows, layout.heads, needed, block, layout.width)
        kind = ("key", "value")[number % 2]
        blocks = split.transpose(0, 2, 1, 3, 4).reshape(-1, layout.heads, block, layout.width)
        caches[f"{kind}_cache.{number // 2}"] = to_stored(np.ascontiguousarray(blocks), kept.dtype)
    positions = feed[layout.positions]
    sampled = (np.arange(rows)[:, None] * new + positions).reshape(-1)
    step = step_inputs(layout, list(ids), lengths, list(tables), block, sampled)
    own = (layout.ids, layout.lengths, layout.positions, *layout.past)
    return {**step, **caches, **{name: one for name, one in feed.items() if name not in own}}


def _as_rows(manifest: Manifest, feed: Mapping[str, NDArray[Any]], found: Arrays) -> Arrays:
    """Values of tokens that were rows, (tokens, ..., 1, ...), as (rows, ..., new, ...)."""
    layout = KVLayout.of(manifest)
    rows, new = feed[layout.ids].shape
    result: Arrays = {}
    for name, array in found.items():
        count = feed[layout.positions].size if name == layout.logits else new
        places = [axis for axis, size in enumerate(array.shape[1:], 1) if size == 1]
        if array.ndim < 2 or len(array) != rows * count or not places:
            result[name] = array
            continue
        apart = array.squeeze(places[0]).reshape(rows, count, *array.shape[1 : places[0]], -1)
        apart = apart.reshape(rows, count, *np.delete(array.shape, [0, places[0]]))
        result[name] = np.moveaxis(apart, 1, places[0])
    return result

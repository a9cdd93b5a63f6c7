"""Engines that write, each asked in the way that its own documentation shows for speed."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from worker import Cost, Decoder, Refused, some_ids

# Text in front of each row, where an engine cannot take virtual tokens.
_SEED = 7


def past_ids(tokens: int, vocabulary: int) -> np.ndarray:
    return np.random.default_rng(_SEED).integers(0, vocabulary, tokens)


class Ptdeploy(Decoder):
    """A bundle; its past is its prompt, whose prefix KV is in each row."""

    def __init__(self, path: Path, threads: int) -> None:
        import ptdeploy

        self._engine: Any = ptdeploy.load(path, threads=threads)

    def answer(self, asked: dict[str, Any]) -> dict[str, float]:
        """A first token through the public generate(), further ones through the loop inside it."""
        engine, rows, new = self._engine, asked["rows"], asked["new"]
        if engine.prompt.length != asked["past"]:
            raise Refused(f"its prompt has {engine.prompt.length} virtual tokens")
        ids = some_ids(rows, asked["tokens"], asked["vocabulary"])
        cost = Cost()
        if not new:
            with cost.measured():
                engine.generate(ids.tolist(), 1, do_sample=False, eos_token_ids=())
            return cost.of(1)
        from ptdeploy.runtime.generation import decode

        begun = engine.buffers.take([engine.prompt] * rows, [ids.shape[1] + new + 2] * rows)
        options = engine.options(new + 2, {"do_sample": False, "eos_token_ids": ()})
        writing = engine.started(list(ids), options, None, (), False, [new + 2] * rows)
        first = begun.prefill_all(list(ids))
        steps = decode(begun.kv, first, writing, engine.buffers.words, None)
        next(steps)
        next(steps)
        for _ in range(new):
            with cost.measured():
                next(steps)
        engine.buffers.keep(begun)
        return cost.of(new)

    def tokens(self, asked: dict[str, Any]) -> list[int]:
        """The base model's, with the past as text."""
        ids = some_ids(1, asked["tokens"], asked["vocabulary"])[0]
        row = [*past_ids(asked["past"], asked["vocabulary"]).tolist(), *ids.tolist()]
        found: list[int] = self._engine.greedy([row], asked["new"], prompt=None)[0]
        return found


class LlamaCpp(Decoder):
    """llama.cpp through the C API, with its own defaults for all but threads and room."""

    def __init__(self, path: Path, threads: int) -> None:
        import ctypes

        import llama_cpp

        self._api = llama_cpp
        self._quiet = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self._quiet, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(
            str(path).encode(), llama_cpp.llama_model_default_params()
        )
        assert self._model, path
        self._vocabulary = llama_cpp.llama_vocab_n_tokens(
            llama_cpp.llama_model_get_vocab(self._model)
        )
        self._threads, self._context, self._shape = threads, None, (0, 0, 0)

    def begin(self, rows: int, past: int, room: int) -> None:
        api = self._api
        shape = (rows, past, -(-(past + room) // 256) * 256)
        if shape != self._shape:
            if self._context:
                api.llama_free(self._context)
            options = api.llama_context_default_params()
            options.n_ctx, options.n_seq_max = rows * shape[2], rows
            options.n_threads = options.n_threads_batch = self._threads
            self._context = api.llama_init_from_model(self._model, options)
            assert self._context
            self._lengths, self._shape = np.zeros(rows, np.int64), shape
            self._batch = api.llama_batch_init(rows * shape[2], 0, 1)
            if past:
                self.feed(np.tile(past_ids(past, self._vocabulary), (rows, 1)))
        memory = api.llama_get_memory(self._context)
        for row in range(rows):
            assert api.llama_memory_seq_rm(memory, row, past, -1)
        self._lengths[:] = past

    def feed(self, ids: np.ndarray) -> np.ndarray:
        rows, new = ids.shape
        batch = self._batch
        batch.n_tokens = rows * new
        for row, tokens in enumerate(ids.tolist()):
            length = int(self._lengths[row])
            for place, token in enumerate(tokens):
                at = row * new + place
                batch.token[at], batch.pos[at] = token, length + place
                batch.n_seq_id[at], batch.seq_id[at][0] = 1, row
                batch.logits[at] = place == new - 1
        assert self._api.llama_decode(self._context, batch) == 0
        self._lengths += new
        size = (self._vocabulary,)
        lasts = ((row + 1) * new - 1 for row in range(rows))
        logits = (self._api.llama_get_logits_ith(self._context, last) for last in lasts)
        return np.array([np.ctypeslib.as_array(one, size).argmax() for one in logits])


class Ctranslate2(Decoder):
    """CTranslate2's generate_batch; the past is its cached static prompt."""

    def __init__(self, path: Path, threads: int) -> None:
        import ctranslate2

        # The folder's name ends with what it computes in.
        kind = path.name.rpartition("-")[2]
        self._generator = ctranslate2.Generator(
            str(path), device="cpu", compute_type=kind, intra_threads=threads, inter_threads=1
        )
        self._asked: dict[str, Any] = {}

    def answer(self, asked: dict[str, Any]) -> dict[str, float]:
        """Its loop says when each step is done; the first one holds the prefill."""
        ids = some_ids(asked["rows"], asked["tokens"], asked["vocabulary"])
        rows = [[f"t{one}" for one in row] for row in ids.tolist()]
        past = [f"t{one}" for one in past_ids(asked["past"], asked["vocabulary"]).tolist()]
        new = asked["new"]
        if asked != self._asked:
            # It fills the cache.
            self._generate(rows, past, 1)
            self._asked = asked
        if not new:
            cost = Cost()
            with cost.measured():
                self._generate(rows, past, 1)
            return cost.of(1)
        done: dict[int, tuple[float, float]] = {}

        def told(result: Any) -> bool:
            # The last row's is what stays.
            done[result.step] = time.perf_counter(), time.process_time()
            return False

        self._generate(rows, past, new + 2, told)
        first, *_, last = (done[step] for step in range(1, new + 2))
        return {"wall": (last[0] - first[0]) / new, "cpu": (last[1] - first[1]) / new}

    def tokens(self, asked: dict[str, Any]) -> list[int]:
        ids = some_ids(1, asked["tokens"], asked["vocabulary"])[0].tolist()
        past = past_ids(asked["past"], asked["vocabulary"]).tolist()
        self._generate([[f"t{one}" for one in ids]], [f"t{one}" for one in past], asked["new"])
        return list(self._found[0].sequences_ids[0])

    def _generate(
        self, rows: list[list[str]], past: list[str], tokens: int, told: Any = None
    ) -> None:
        self._found = self._generator.generate_batch(
            rows,
            max_length=tokens,
            min_length=tokens,
            sampling_topk=1,
            include_prompt_in_result=False,
            static_prompt=past,
            cache_static_prompt=True,
            callback=told,
        )


class OnnxruntimeGenai(Decoder):
    """onnxruntime-genai's own generator."""

    def __init__(self, path: Path, threads: int) -> None:
        import onnxruntime_genai

        self._api = onnxruntime_genai
        config = onnxruntime_genai.Config(str(path))
        options = {"intra_op_num_threads": threads}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
        self._model = onnxruntime_genai.Model(config)
        self._vocabulary = json.loads((path / "genai_config.json").read_text())["model"][
            "vocab_size"
        ]

    def begin(self, rows: int, past: int, room: int) -> None:
        if rows > 1:
            raise Refused("its generator takes tokens behind a past for one row only")
        self._start(rows, past + room)
        self._generator.append_tokens(past_ids(past, self._vocabulary)[None].astype(np.int32))

    def answer(self, asked: dict[str, Any]) -> dict[str, float]:
        """Steps of several rows can be had: past and text then come in at once."""
        if asked["rows"] == 1 or not asked["new"]:
            return super().answer(asked)
        cost = Cost()
        past = np.tile(past_ids(asked["past"], self._vocabulary), (asked["rows"], 1))
        ids = some_ids(asked["rows"], asked["tokens"], self._vocabulary)
        self._start(asked["rows"], asked["past"] + asked["tokens"] + asked["new"] + 2)
        self._generator.append_tokens(np.concatenate([past, ids], axis=1).astype(np.int32))
        self._generator.generate_next_token()
        self._generator.generate_next_token()
        for _ in range(asked["new"]):
            with cost.measured():
                self._generator.generate_next_token()
        return cost.of(asked["new"])

    def _start(self, rows: int, length: int) -> None:
        options = self._api.GeneratorParams(self._model)
        options.set_search_options(
            max_length=length, min_length=length, do_sample=False, batch_size=rows
        )
        self._generator = self._api.Generator(self._model, options)

    def feed(self, ids: np.ndarray) -> np.ndarray:
        # A token that it chose itself is in it already.
        if ids.shape[1] > 1:
            self._generator.append_tokens(ids.astype(np.int32))
        self._generator.generate_next_token()
        return np.asarray(self._generator.get_next_tokens(), np.int64)


class Openvino(Decoder):
    """OpenVINO alone over a stateful model, as optimum-intel exports it and OpenVINO GenAI runs it.

    In fp32 it is told so; of quantized models it chooses the precision of its KV cache itself.
    """

    def __init__(self, path: Path, threads: int) -> None:
        import openvino

        options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
        if path.stem.endswith("fp32"):
            options |= {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
        self._request = openvino.Core().compile_model(path, "CPU", options).create_infer_request()
        self._openvino, self._begun = openvino, (0, 0)
        self._vocabulary = self._request.get_compiled_model().output("logits").partial_shape[2]

    def begin(self, rows: int, past: int, room: int) -> None:
        """Filled once; afterwards the KV cache is put back to what it was then."""
        states = self._request.query_state()
        if (rows, past) != self._begun:
            self._request.reset_state()
            self._length = 0
            ids = past_ids(past, self._vocabulary.get_length())
            self.feed(np.tile(ids, (rows, 1)))
            self._kept = {one.name: np.array(one.state.data) for one in states}
            self._begun = (rows, past)
        for one in states:
            one.state = self._openvino.Tensor(self._kept[one.name])
        self._length = past

    def feed(self, ids: np.ndarray) -> np.ndarray:
        rows, new = ids.shape
        places = np.arange(self._length, self._length + new)
        self._request.infer(
            {
                "input_ids": ids,
                "position_ids": np.tile(places, (rows, 1)),
                "beam_idx": np.arange(rows, dtype=np.int32),
            },
            share_inputs=True,
        )
        self._length += new
        logits = self._request.get_tensor("logits").data
        return np.asarray(logits[:, -1].argmax(-1))


KINDS: dict[str, type[Decoder]] = {
    "ptdeploy": Ptdeploy,
    "llama.cpp": LlamaCpp,
    "CTranslate2": Ctranslate2,
    "onnxruntime-genai": OnnxruntimeGenai,
    "OpenVINO": Openvino,
}

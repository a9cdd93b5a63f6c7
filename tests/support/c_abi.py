"""The C ABI of the built library, called from Python."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

OK, INPUT, FAULT, OUT_OF_MEMORY = 0, 2, 4, 5
NONE = None
ON_TEXT = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.POINTER(ctypes.c_char), ctypes.c_size_t
)


class Options(ctypes.Structure):
    _fields_ = (
        ("size", ctypes.c_size_t),
        ("max_new_tokens", ctypes.c_int64),
        ("min_new_tokens", ctypes.c_int64),
        ("top_k", ctypes.c_int64),
        ("do_sample", ctypes.c_int),
        ("temperature", ctypes.c_double),
        ("top_p", ctypes.c_double),
        ("min_p", ctypes.c_double),
        ("repetition_penalty", ctypes.c_double),
        ("eos_token_ids", ctypes.POINTER(ctypes.c_int64)),
        ("num_eos_token_ids", ctypes.c_size_t),
        ("has_seed", ctypes.c_int),
        ("seed", ctypes.c_uint64),
        ("cancel", ctypes.c_void_p),
        ("on_token", ctypes.c_void_p),
        ("user", ctypes.c_void_p),
        ("stop", ctypes.POINTER(ctypes.c_char_p)),
        ("num_stop", ctypes.c_size_t),
        ("on_text", ctypes.c_void_p),
    )


class Library:
    """The library's C ABI, with one engine open."""

    def __init__(self, built: Path, bundle: Path) -> None:
        import onnxruntime

        assert onnxruntime, "its library is loaded where ours looks for it"
        self.bundle, self.expected = bundle, (OK, INPUT)
        (found,) = {path.resolve() for path in built.rglob("libptdeploy.so*")}
        self.c = ctypes.CDLL(str(found))
        self.c.ptdeploy_last_error.restype = ctypes.c_char_p
        self.c.ptdeploy_last_fix.restype = ctypes.c_char_p
        self.c.ptdeploy_default_options.restype = Options
        self.engine = ctypes.c_void_p()
        path = str(bundle).encode()
        assert self.c.ptdeploy_open(path, NONE, 0, 0, ctypes.byref(self.engine)) == OK

    def said(self, status: int) -> str:
        """The words of a call that was refused; nothing but what is `expected` may happen."""
        assert status in self.expected, self.c.ptdeploy_last_error()
        words: str = "" if status == OK else self.c.ptdeploy_last_error().decode()
        assert words or status == OK
        return words

    def options(self, **changes: Any) -> Options:
        options: Options = self.c.ptdeploy_default_options()
        options.max_new_tokens = 4
        for name, value in changes.items():
            setattr(options, name, value)
        return options

    def generate(
        self, options: Any, ids: Any = (5, 6), lengths: Any = (2,), rows: int = 1, capacity: int = 4
    ) -> tuple[str, int]:
        """What is said, and how many tokens the first row gets."""
        tokens, counts = (ctypes.c_int64 * 64)(), (ctypes.c_size_t * 8)()
        stopped = (ctypes.c_int * 8)()
        status = self.c.ptdeploy_generate(
            self.engine,
            NONE if ids is None else (ctypes.c_int64 * max(len(ids), 1))(*ids),
            NONE if lengths is None else (ctypes.c_size_t * max(len(lengths), 1))(*lengths),
            ctypes.c_size_t(rows),
            NONE if options is None else ctypes.byref(options),
            ctypes.c_size_t(capacity),
            tokens,
            counts,
            stopped,
            NONE,
        )
        return self.said(status), int(counts[0])

    def encode(self, text: bytes, capacity: int) -> tuple[str, int, list[int]]:
        """What is said, how many token ids there are, and those that were given."""
        ids, count = (ctypes.c_int64 * 64)(*[-1] * 64), ctypes.c_size_t()
        status = self.c.ptdeploy_encode(
            self.engine,
            text,
            ctypes.c_size_t(len(text)),
            ids,
            ctypes.c_size_t(capacity),
            ctypes.byref(count),
        )
        return self.said(status), count.value, [one for one in ids if one >= 0]

    def decode(self, ids: list[int], capacity: int) -> tuple[str, int, bytes]:
        """What is said, how many bytes the text has, and what was written, zero byte and all."""
        text, size = ctypes.create_string_buffer(b"\xff" * 255), ctypes.c_size_t()
        status = self.c.ptdeploy_decode(
            self.engine,
            (ctypes.c_int64 * max(len(ids), 1))(*ids),
            ctypes.c_size_t(len(ids)),
            text,
            ctypes.c_size_t(capacity),
            ctypes.byref(size),
        )
        return self.said(status), size.value, text.raw.split(b"\xff")[0]

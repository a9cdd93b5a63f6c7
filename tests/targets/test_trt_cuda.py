"""CUDA's calls as cuda-bindings takes them, and where rows of its memory lie."""

from __future__ import annotations

import numpy as np
import pytest
from support.trt import NO_GPU

from ptdeploy.backends.trt import cuda


@NO_GPU
@pytest.mark.parametrize(
    "use",
    [
        lambda: cuda.device(),
        lambda: cuda.Stream(),
        lambda: cuda.Block(16),
        lambda: cuda.pinned((2, 3), np.dtype(np.float32)),
        lambda: memory().read(),
        lambda: memory().write(np.zeros((2, 3, 5, 4), np.float32)),
        lambda: memory().write_slots(np.array([0, 1]), memory((2, 3, 1, 4))),
        lambda: stream().wait(),
        lambda: stream().capture(lambda: None),
        lambda: cuda.Graph(cuda.runtime().cudaGraph_t(0)),
        lambda: graph().launch(stream()),
        lambda: cuda.current(),
        # What is reached only after a call that needs a driver, as it is called there.
        lambda: cuda.call(cuda.runtime().cudaSetDevice, 0),
        lambda: cuda.call(cuda.runtime().cudaGetLastError),
        lambda: cuda.call(cuda.runtime().cudaStreamEndCapture, stream().handle),
        lambda: cuda.call(cuda.runtime().cudaGraphDestroy, cuda.runtime().cudaGraph_t(0)),
        lambda: cuda.call(cuda.runtime().cudaGraphExecDestroy, graph()._instance),
        lambda: cuda.call(cuda.runtime().cudaStreamDestroy, stream().handle),
        lambda: cuda.call(cuda.runtime().cudaFree, 4096),
        lambda: cuda.call(cuda.runtime().cudaFreeHost, 4096),
    ],
)
def test_every_call_reaches_the_driver_that_is_not_there(use):
    """Not an execution: it shows that cuda-bindings takes the arguments as they are passed."""
    with pytest.raises(cuda.CudaError, match="driver"):
        use()


def stream() -> cuda.Stream:
    made = cuda.Stream.__new__(cuda.Stream)
    made.handle = 1
    return made


def graph() -> cuda.Graph:
    made = cuda.Graph.__new__(cuda.Graph)
    made._instance = cuda.runtime().cudaGraphExec_t(1)
    return made


def memory(shape=(2, 3, 5, 4)) -> cuda.Memory:
    block = cuda.Block.__new__(cuda.Block)
    block.pointer, block.size = 4096, 480
    return cuda.Memory(block, 4096, shape, np.dtype(np.float32), stream())


def test_rows_of_memory_begin_where_the_row_does():
    part = memory().rows(slice(1, 2))
    assert (part.pointer, part.shape, part.nbytes) == (4096 + 240, (1, 3, 5, 4), 240)

"""What runs a bundle: numpy, tokenizers and an engine; never torch or transformers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ptdeploy import arguments
from ptdeploy.arguments import MOST_THREADS, checked, maybe
from ptdeploy.backends import get_backend
from ptdeploy.bundle import Bundle, check_hashes, read_bundle, whole
from ptdeploy.bundle.task import Task
from ptdeploy.runtime.causal import CausalLM
from ptdeploy.runtime.classifier import Classifier
from ptdeploy.runtime.engine import Engine, OpenOptions
from ptdeploy.runtime.layout import check_manifest
from ptdeploy.runtime.token_classifier import TokenClassifier
from ptdeploy.runtime.tokenizer import load_tokenizer

ENGINES: dict[Task, type[Engine]] = {
    Task.SEQ_CLS: Classifier,
    Task.TOKEN_CLS: TokenClassifier,
    Task.CAUSAL_LM: CausalLM,
}


# By module: `text` and `path` may be modules of this package.
@checked(
    path=arguments.path,
    device=maybe(arguments.text),
    threads=maybe(arguments.whole(0, MOST_THREADS)),
    map_weights=arguments.flag,
)
def load(
    path: str | Path,
    device: str | None = None,
    threads: int | None = None,
    map_weights: bool = False,
) -> Engine:
    """Open a bundle as a Classifier, a TokenClassifier or a CausalLM, by its task.

    `device` is the one it was compiled for unless told; `threads` is the engine's own default.
    `map_weights` leaves a CPU's weights in their file, which processes then share.
    Raises BundleError if the bundle is damaged, TargetUnavailable if its engine cannot run here.
    """
    return whole(path, lambda: _load(path, device, threads, map_weights))


def _load(path: str | Path, device: str | None, threads: int | None, map_weights: bool) -> Engine:
    bundle = read_bundle(path, hashes=False)
    # Hashing gigabytes takes as long as opening them, so both run at once. A damaged file is
    # reported as that, whatever the engine said of it; no engine is given out before its hash.
    with ThreadPoolExecutor(1) as pool:
        hashed = pool.submit(check_hashes, bundle)
        try:
            return open_engine(bundle, device, threads, map_weights)
        finally:
            hashed.result()


def open_engine(
    bundle: Bundle,
    device: str | None = None,
    threads: int | None = None,
    map_weights: bool = False,
) -> Engine:
    """Open a bundle that was read already."""
    manifest = bundle.manifest
    task_engine = ENGINES[manifest.task]
    check_manifest(bundle, task_engine.manifest_problems(manifest))
    backend = get_backend(manifest.target)
    session = backend.load(bundle, device or manifest.device, threads, map_weights)
    engine = task_engine(bundle, session, load_tokenizer(bundle))
    engine.options_given = OpenOptions(device, threads, map_weights)
    return engine


__all__ = ["CausalLM", "Classifier", "Engine", "TokenClassifier", "load", "open_engine"]

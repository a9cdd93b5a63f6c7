"""What runs a bundle: numpy, tokenizers and an engine; never torch or transformers."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from ptdeploy import arguments
from ptdeploy.arguments import MOST, MOST_THREADS, checked, maybe
from ptdeploy.backends import get_backend
from ptdeploy.backends.session import Session
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
    bundle=arguments.path,
    device=maybe(arguments.text),
    threads=maybe(arguments.whole(0, MOST_THREADS)),
    map_weights=arguments.flag,
    max_prompts=maybe(arguments.whole(1, MOST)),
)
def load(
    bundle: str | Path,
    device: str | None = None,
    threads: int | None = None,
    map_weights: bool = False,
    max_prompts: int | None = None,
) -> Engine:
    """Open a bundle as a Classifier, a TokenClassifier or a CausalLM, by its task.

    `device` is the one it was compiled for unless told; `threads` is the engine's own default.
    `map_weights` leaves a CPU's weights in their file, which processes then share.
    `max_prompts` is how many prompts stay in memory beside those that requests are using: of more,
    the least recently used is read again from its file when it is asked for.
    Raises BundleError if the bundle is damaged, TargetUnavailable if its engine cannot run here.
    """
    options = OpenOptions(device, threads, map_weights, max_prompts)
    return whole(bundle, lambda: _load(bundle, options))


def _load(path: str | Path, options: OpenOptions) -> Engine:
    bundle = read_bundle(path, hashes=False)
    # Hashing gigabytes takes as long as opening them, so both run at once. A damaged file is
    # reported as that, whatever the engine said of it; no engine is given out before its hash.
    # Other prompts than the default one are hashed when they are read.
    # Where there is no room for another thread, this one hashes when it is done with the rest.
    check = partial(check_hashes, bundle, (bundle.manifest.default_prompt,))
    with ThreadPoolExecutor(1) as pool:
        try:
            hashed = pool.submit(check).result
        except RuntimeError:
            hashed = check
        try:
            return _open(bundle, options)
        finally:
            hashed()


def open_engine(
    bundle: Bundle,
    device: str | None = None,
    threads: int | None = None,
    map_weights: bool = False,
    max_prompts: int | None = None,
    around: Callable[[Session], Session] = lambda session: session,
) -> Engine:
    """Open a bundle that was read already. The engine runs what `around` makes of its session."""
    return _open(bundle, OpenOptions(device, threads, map_weights, max_prompts), around)


def _open(
    bundle: Bundle,
    options: OpenOptions,
    around: Callable[[Session], Session] = lambda session: session,
) -> Engine:
    manifest = bundle.manifest
    task_engine = ENGINES[manifest.task]
    check_manifest(bundle, task_engine.manifest_problems(manifest))
    device = options.device or manifest.device
    backend = get_backend(manifest.target)
    session = backend.load(bundle, device, options.threads, options.map_weights)
    engine = task_engine(bundle, around(session), load_tokenizer(bundle), options.max_prompts)
    engine.options_given = options
    return engine


__all__ = ["CausalLM", "Classifier", "Engine", "TokenClassifier", "load", "open_engine"]

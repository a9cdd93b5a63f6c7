"""What runs a bundle: numpy, tokenizers and an engine; never torch or transformers."""

from __future__ import annotations

from pathlib import Path

from ptdeploy.bundle import Bundle, read_bundle
from ptdeploy.runtime.causal import CausalLM
from ptdeploy.runtime.classifier import Classifier, TokenClassifier
from ptdeploy.runtime.engine import Engine
from ptdeploy.runtime.tokenizer import load_tokenizer
from ptdeploy.targets import get_target
from ptdeploy.task import Task

ENGINES: dict[Task, type[Engine]] = {
    Task.SEQ_CLS: Classifier,
    Task.TOKEN_CLS: TokenClassifier,
    Task.CAUSAL_LM: CausalLM,
}


def load(path: str | Path, device: str | None = None, threads: int | None = None) -> Engine:
    """Open a bundle as a Classifier, a TokenClassifier or a CausalLM, by its task.

    `device` is the one it was compiled for unless told; `threads` is the engine's own default.
    Raises BundleError if the bundle is damaged, TargetUnavailable if its engine cannot run here.
    """
    return open_engine(read_bundle(path), device, threads)


def open_engine(bundle: Bundle, device: str | None = None, threads: int | None = None) -> Engine:
    """Open a bundle that was read already."""
    manifest = bundle.manifest
    session = get_target(manifest.target).load(bundle, device or manifest.device, threads)
    return ENGINES[manifest.task](bundle, session, load_tokenizer(bundle))


__all__ = ["CausalLM", "Classifier", "Engine", "TokenClassifier", "load", "open_engine"]

"""The user's own data: a JSONL file of texts or token ids, with labels or a reference if known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ptdeploy.bundle.task import Head
from ptdeploy.errors import InputError
from ptdeploy.parity.measure import finite
from ptdeploy.parity.quality import next_token_surprise
from ptdeploy.parity.thresholds import Overrides
from ptdeploy.runtime import Engine
from ptdeploy.runtime.engine import Metric
from ptdeploy.text_files import read_lines

_MOST_ROWS = 100_000


@dataclass(frozen=True)
class DataRow:
    """One line: its token ids, and what is known of it.

    `labels` holds one class for SEQ_CLS, one for each token for TOKEN_CLS, -1 where there is none
    and None where no token has one; for a sigmoid head it is 0 or 1 for each class. `values` are
    what a regression should give. `logits` is a reference that came with the line, as in a failing
    case. `wanted_ids` is what the text, or the pair of it and `pair`, must be encoded as, where
    both were given. `type_ids` are the segments, all 0 where None.
    """

    ids: NDArray[np.int64]
    text: str | None = None
    pair: str | None = None
    type_ids: NDArray[np.int64] | None = None
    labels: NDArray[np.int64] | None = None
    values: NDArray[np.float64] | None = None
    logits: NDArray[np.float32] | None = None
    wanted_ids: tuple[int, ...] | None = None

    @property
    def given(self) -> Any:
        """Its text or pair, as an engine takes it."""
        return self.text if self.pair is None else (self.text, self.pair)


class TaskMetric(msgspec.Struct, frozen=True):
    """How well the engine does on labelled data, and how well PEFT does where it was run.

    `name` is "accuracy" (the share of labels found; of a sigmoid head, of texts whose whole set of
    classes was), for a regression "mean squared error", for CAUSAL_LM "perplexity" of the data.
    `engine` is null where a row's logits are not finite, which never passes. `missed` are bounds
    that do not hold, in words; `stopped` says why the engine gave none of a row.
    """

    name: str
    rows: int
    engine: float | None
    reference: float | None
    passed: bool
    stopped: str | None = None
    missed: tuple[str, ...] = ()


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    text: str | None = None
    text_pair: str | None = None
    ids: list[int] | None = None
    token_type_ids: list[int] | None = None
    label: str | int | float | list[str | int | float | None] | None = None
    logits: list[Any] | None = None


def read_data(path: str | Path, engine: Engine) -> tuple[DataRow, ...]:
    """Read a data file through the bundle's tokenizer and labels.

    Raises InputError, naming the line, if it is not such a file or a row does not fit the bundle.
    """
    rows = []
    for number, line in enumerate(read_lines(path, "--data"), 1):
        if not line.strip():
            continue
        try:
            rows.append(_row(msgspec.json.decode(line, type=_Line), engine))
        except (msgspec.DecodeError, RecursionError, OverflowError) as error:
            raise InputError(
                f"--data {path}: line {number} is not a data row ({error}).",
                'A line is {"text": "..."} or {"ids": [1, 2, 3]}, and may have a "label", and a '
                '"text_pair" or "token_type_ids".',
            ) from error
        except InputError as error:
            raise InputError(f"--data {path}: line {number}: {error.problem}", error.fix) from error
        if len(rows) > _MOST_ROWS:
            raise InputError(f"--data {path}: has over {_MOST_ROWS} rows.", "Take a sample.")
    if not rows:
        raise InputError(
            f"--data {path}: holds no rows.",
            'Give a row a line: {"text": "some text", "label": "some class"}',
        )
    return tuple(rows)


def has_whole_logits(row: DataRow, engine: Engine) -> bool:
    """Whether a row brings logits at every position at which the engine has them."""
    return row.logits is not None and len(np.atleast_2d(row.logits)) == engine.positions(
        row.ids.size
    )


def task_metric(
    engine: Engine,
    rows: Sequence[DataRow],
    ours: Sequence[NDArray[np.float32]],
    reference: Sequence[NDArray[np.float32]] | None,
    overrides: Overrides,
    stopped: str | None,
) -> TaskMetric | None:
    """Accuracy on what is labelled, or for CAUSAL_LM perplexity; None where nothing can be said.

    `ours` are the engine's logits of every row, NaN where it `stopped`.
    """
    if stopped is not None or not all(np.isfinite(one).all() for one in ours):
        return TaskMetric(engine.metric, len(rows), None, None, False, stopped)
    evaluated = _Evaluated(engine.manifest.prompt.head, rows, ours, reference, overrides)
    return _METRICS[engine.metric](evaluated)


@dataclass(frozen=True)
class _Evaluated:
    """Rows with the engine's logits and the reference's, and what was asked of the metric."""

    head: Head
    rows: Sequence[DataRow]
    ours: Sequence[NDArray[np.float32]]
    reference: Sequence[NDArray[np.float32]] | None
    overrides: Overrides


def _perplexity(evaluated: _Evaluated) -> TaskMetric | None:
    rows, reference = evaluated.rows, evaluated.reference
    got = _perplexity_of(rows, evaluated.ours)
    want = _perplexity_of(rows, reference) if reference is not None else None
    if got is None:
        return None
    ratio = evaluated.overrides.max_perplexity_ratio
    missed = []
    if ratio is not None and want is not None and not got <= ratio * want:
        missed.append(f"at most {ratio:.6g} times PEFT's (max_perplexity_ratio)")
    return _metric("perplexity", len(rows), finite(got), want, missed)


def _accuracy(evaluated: _Evaluated) -> TaskMetric | None:
    rows, ours, reference = evaluated.rows, evaluated.ours, evaluated.reference
    labelled = [i for i, row in enumerate(rows) if row.labels is not None]
    if not labelled:
        return None
    head, overrides = evaluated.head, evaluated.overrides
    got = _share_right(rows, ours, labelled, head)
    want = _share_right(rows, reference, labelled, head) if reference is not None else None
    least, drop = overrides.min_accuracy, overrides.max_accuracy_drop
    missed = []
    if least is not None and not got >= least:
        missed.append(f"at least {least:.6g} (min_accuracy)")
    if drop is not None and want is not None and not want - got <= drop:
        missed.append(f"at most {drop:.6g} under PEFT's (max_accuracy_drop)")
    return _metric("accuracy", len(labelled), got, want, missed)


def _squared_error(evaluated: _Evaluated) -> TaskMetric | None:
    known = [(i, row.values) for i, row in enumerate(evaluated.rows) if row.values is not None]
    if not known:
        return None

    def error(found: Sequence[NDArray[np.float32]]) -> float:
        return float(np.mean([(found[i].astype(np.float64) - values) ** 2 for i, values in known]))

    reference = evaluated.reference
    got, want = error(evaluated.ours), None if reference is None else error(reference)
    most = evaluated.overrides.max_squared_error
    missed = []
    if most is not None and not got <= most:
        missed.append(f"at most {most:.6g} (max_squared_error)")
    return _metric("mean squared error", len(known), finite(got), want, missed)


def _metric(
    name: str, rows: int, got: float | None, want: float | None, missed: Sequence[str]
) -> TaskMetric:
    return TaskMetric(name, rows, got, want, not missed, missed=tuple(missed))


_METRICS: dict[Metric, Callable[[_Evaluated], TaskMetric | None]] = {
    "accuracy": _accuracy,
    "mean squared error": _squared_error,
    "perplexity": _perplexity,
}


def _row(line: _Line, engine: Engine) -> DataRow:
    if line.text is None and line.ids is None:
        raise InputError("has neither text nor ids.")
    if line.text_pair is not None and line.text is None:
        raise InputError("has a text_pair, but no text before it.")
    if line.token_type_ids is not None and line.ids is None:
        raise InputError("has token_type_ids, but no ids that they belong to.")
    wanted = None if line.text is None or line.ids is None else tuple(line.ids)
    text = line.text if line.text_pair is None else (line.text, line.text_pair)
    given: Any = line.ids if line.ids is not None else text
    types = None if line.token_type_ids is None else [line.token_type_ids]
    (encoding,) = engine.encode([given], token_type_ids=types)
    ids = np.asarray(encoding.ids, np.int64)
    segments = None
    if engine.takes_segments and any(encoding.type_ids):
        segments = np.asarray(encoding.type_ids, np.int64)
    labels, values = None, None
    if line.label is not None and engine.manifest.prompt.head == "regression":
        values = _numbers(line.label, len(engine.manifest.prompt.labels))
    elif line.label is not None:
        labels = _labels(line.label, engine, ids.size)
    logits = None if line.logits is None else _logits(line.logits, engine, ids.size)
    return DataRow(ids, line.text, line.text_pair, segments, labels, values, logits, wanted)


def _labels(given: Any, engine: Engine, tokens: int) -> NDArray[np.int64] | None:
    if problem := engine.label_problem(given, tokens):
        raise InputError(problem)
    values = given if isinstance(given, list) else [given]
    several = engine.manifest.prompt.head == "sigmoid"
    names = engine.manifest.prompt.labels
    indices = []
    for value in values:
        if value is None:
            indices.append(-1)
        elif isinstance(value, str) and value in names:
            indices.append(names.index(value))
        elif isinstance(value, int) and 0 <= value < len(names):
            indices.append(value)
        else:
            raise InputError(f"its label {value!r} is none of {', '.join(names)}.")
    if several:
        return np.isin(np.arange(len(names)), indices).astype(np.int64)
    return np.asarray(indices, np.int64) if max(indices) >= 0 else None


def _numbers(given: Any, outputs: int) -> NDArray[np.float64]:
    values = given if isinstance(given, list) else [given]
    fits = len(values) == outputs and all(isinstance(one, (int, float)) for one in values)
    if not fits:
        raise InputError(
            f"its label {given!r} is not {'a number' if outputs == 1 else f'{outputs} numbers'}, "
            "as a regression gives."
        )
    return np.asarray(values, np.float64)


def _logits(given: list[Any], engine: Engine, tokens: int) -> NDArray[np.float32]:
    try:
        array = np.asarray(given, np.float32)
    except (ValueError, TypeError):
        array = np.zeros(0, np.float32)
    width = engine.logit_shape(engine.manifest, tokens)[-1]
    flat = engine.one_answer
    if array.ndim != (1 if flat else 2) or array.shape[-1] != width:
        raise InputError(f"its logits are not {width} numbers{'' if flat else ' a position'}.")
    if not flat and not 1 <= len(array) <= tokens:
        raise InputError(f"has logits at {len(array)} positions, but {tokens} tokens.")
    if not np.isfinite(array).all():
        raise InputError("its logits are not finite.")
    return array


def _share_right(
    rows: Sequence[DataRow],
    logits: Sequence[NDArray[np.float32]],
    chosen: Sequence[int],
    head: Head,
) -> float:
    right = total = 0
    for i in chosen:
        labels = rows[i].labels
        assert labels is not None, "chosen are those with labels"
        if head == "sigmoid":
            right += int(np.array_equal(logits[i] >= 0, labels == 1))
            total += 1
            continue
        found = np.atleast_2d(logits[i]).argmax(-1)
        known = labels >= 0
        right += int((found[known] == labels[known]).sum())
        total += int(known.sum())
    return right / total


def _perplexity_of(rows: Sequence[DataRow], logits: Sequence[NDArray[np.float32]]) -> float | None:
    nll = [
        next_token_surprise(row.ids, one)
        for row, one in zip(rows, logits, strict=True)
        if row.ids.size > 1 and len(one) == row.ids.size
    ]
    if not nll:
        return None
    return float(np.exp(min(float(np.concatenate(nll).mean(dtype=np.float64)), 700.0)))

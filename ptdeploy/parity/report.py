"""The outcome of a parity check: what was compared, what came of it, and where it goes wrong."""

from __future__ import annotations

import msgspec

from ptdeploy.bundle import ParitySummary, Quantization
from ptdeploy.bundle.precision import Thresholds
from ptdeploy.parity import checks
from ptdeploy.parity.cases import Padding, Source
from ptdeploy.parity.data import TaskMetric
from ptdeploy.parity.effect import PromptEffect
from ptdeploy.parity.quality import Quality


class OutputError(msgspec.Struct, frozen=True):
    """One output of a head that chooses no one class, and by how much it is off at most."""

    output: int
    max_abs: float | None
    allowed: float


class CaseResult(msgspec.Struct, frozen=True):
    """One batch, compared at every real position; null where a number is not finite.

    `stopped` says why the engine gave no numbers at all: it failed on a request it must take.
    `rows` are the reference's rows it was made of, `histogram` how many logits differ by how much,
    in the bins of the report's `histogram_edges`. Of a `mixed` batch they are the rows of the
    report's prompt, among those of others. Rows `without_prompt` ran as the base model alone, of a
    bundle that has a prompt. `own_max_abs` is of quantized weights, and of rows that
    ran beside others: the largest difference of a logit from the same engine's own row alone.
    `output` is of a head that chooses no one class: the output that is furthest over what it, by
    the size of its own values, may be off by; null where none is. `own_output` is the same of the
    engine's own rows alone.
    """

    name: str
    source: Source
    padding: Padding
    rows: tuple[int, ...]
    lengths: tuple[int, ...]
    max_abs: float | None
    mean_abs: float | None
    cosine: float | None
    kl: float | None
    top1_agreement: float
    histogram: tuple[int, ...]
    passed: bool
    stopped: str | None = None
    mixed: bool = False
    own_max_abs: float | None = None
    output: OutputError | None = None
    own_output: OutputError | None = None
    without_prompt: bool = False

    @property
    def held_to_own(self) -> bool:
        """Whether its rows ran beside others, so that a quantized engine is held to itself."""
        return self.mixed or len(self.rows) > 1


class GreedyResult(msgspec.Struct, frozen=True):
    """One row's greedy tokens, generated in a batch: how many agree before the first mismatch.

    `stopped` says why the engine generated none. The other rows of a `mixed` batch have other
    prompts, and one `without_prompt` is continued by the base model alone. Given the text and its
    tokens alone and at once, the same engine finds a token's log probability to be off by
    `steps_apart` at most and, in a row with a mismatch, a token to lie below the likeliest one by
    `behind`; null where that is not finite.
    """

    length: int
    agreed: int
    total: int
    passed: bool
    stopped: str | None = None
    mixed: bool = False
    behind: float | None = None
    steps_apart: float | None = None
    without_prompt: bool = False

    @property
    def held_to_own(self) -> bool:
        """Always: its tokens are computed in steps."""
        return True


class PositionError(msgspec.Struct, frozen=True):
    """The largest logits difference at tokens `first` to `last` of a row.

    Over all cases whose rows have the prompt, and no other prompt or none beside them.
    """

    first: int
    last: int
    max_abs: float | None


class ModuleError(msgspec.Struct, frozen=True):
    """One tensor of the model, PyTorch's against the engine's, in the order PyTorch computes them.

    `module` is its path in the transformers model; `what` says whether it is the module's output or
    what goes into it. `relative` is the largest difference over the tensor's own largest value; of
    logits of a head that chooses no one class, over each output's.
    """

    module: str
    what: str
    value: str
    relative: float | None
    mismatch: bool


class Located(msgspec.Struct, frozen=True):
    """The first module whose tensor does not match, and why as far as it is known.

    `module` is empty where every tensor that can be compared agrees. `operators` are the graph's
    nodes between the last tensors that match and the one that does not, that one's last.
    """

    module: str
    operator: str
    dtype: str
    operators: tuple[str, ...]
    cause: str
    lengths: tuple[int, ...]
    compared: int
    modules: tuple[ModuleError, ...]


class Failing(msgspec.Struct, frozen=True):
    """The smallest input found that fails: its rows' lengths, its file, and how to run it."""

    lengths: tuple[int, ...]
    file: str
    command: str


class ParityReport(msgspec.Struct, frozen=True):
    """The outcome of a parity check. `bool(report.passed)` is what CI asks.

    `prompt` is the one that the engine was asked with. `prompts` are the reports of the bundle's
    other prompts, and `passed` is of all of them. `thresholds` and `largest_allowed` are null where
    weights are quantized and the caller gave no such bounds: rows alone then only have to
    be finite. `own_allowed` is what a case's `own_max_abs` may be, and `effects` say whether the
    engine has the prompt; null and none where no weights are quantized. `decode_allowed` is what a
    continued row's `steps_apart` and `behind` may be. `first_other_text` is the number of the first
    row of the given data whose text is encoded otherwise than the row says.
    """

    passed: bool
    target: str
    device: str
    precision: str
    reference: str
    thresholds: Thresholds | None
    largest_allowed: float | None
    cases: tuple[CaseResult, ...]
    greedy: tuple[GreedyResult, ...]
    texts_agreed: int
    texts_total: int
    quality: Quality | None
    quality_allowed: Quantization | None
    notes: tuple[str, ...]
    positions: tuple[PositionError, ...] = ()
    histogram_edges: tuple[float, ...] = ()
    data: TaskMetric | None = None
    located: Located | None = None
    failing: Failing | None = None
    prompt: str | None = None
    prompts: tuple[ParityReport, ...] = ()
    own_allowed: float | None = None
    decode_allowed: float | None = None
    effects: tuple[PromptEffect, ...] = ()
    first_other_text: int | None = None

    def each(self) -> tuple[ParityReport, ...]:
        """A report of each prompt alone, this one's own first."""
        return checks.alone(self), *self.prompts

    @property
    def judges_cases(self) -> bool:
        """Whether a case that is finite may fail, whatever ran beside it."""
        return self.quality_allowed is None or self.thresholds is not None

    def holds_to_own(self, case: CaseResult) -> bool:
        """Whether a case is held to what the same engine gives for each of its rows alone."""
        return self.own_allowed is not None and case.held_to_own

    @property
    def max_abs(self) -> float:
        return max((_worst(case.max_abs) for case in self.cases), default=0.0)

    @property
    def top1_agreement(self) -> float:
        return min((case.top1_agreement for case in self.cases), default=1.0)

    def summary(self) -> ParitySummary:
        quality = self.quality
        return ParitySummary(
            self.passed,
            len(self.cases),
            self.max_abs,
            self.top1_agreement if quality is None else quality.agreement_of_all,
            self.reference,
            None if quality is None else quality.perplexity_ratio,
        )

    @property
    def runs(self) -> tuple[CaseResult | GreedyResult, ...]:
        """Everything that the engine was run on."""
        return *self.cases, *self.greedy

    @property
    def engine_failed(self) -> bool:
        """Whether the engine failed on a request that it must take."""
        return any(one.stopped for one in (*self.runs, self.quality, self.data) if one)

    def faults(self) -> list[str]:
        """Why the engine failed, each reason once, with how often and where first."""
        return checks.faults(self)

    def failures(self) -> list[str]:
        """Where the engine failed and what does not hold; cases on your own data first."""
        return checks.failures(self)


def _worst(number: float | None) -> float:
    return float("inf") if number is None else number

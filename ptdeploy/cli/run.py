"""The command `run`: texts, lines of a file or token ids in, an answer or an error for each out."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import msgspec

from ptdeploy.cli import options
from ptdeploy.cli.console import complain, show, show_json, show_raw
from ptdeploy.cli.parser import path
from ptdeploy.errors import InputError
from ptdeploy.printable import printable
from ptdeploy.text_files import lines_of, read_content

if TYPE_CHECKING:
    from ptdeploy.runtime import CausalLM
    from ptdeploy.runtime.labelling import Labelling

SUMMARY = "Run a bundle on text."
GENERATION: dict[str, dict[str, Any]] = {
    "max_new_tokens": {"type": int, "metavar": "N", "help": "default: the model's"},
    "min_new_tokens": {"type": int, "metavar": "N", "help": "no EOS before"},
    "temperature": {"type": float, "metavar": "T", "help": "sample; 0 takes the likeliest token"},
    "top_k": {"type": int, "metavar": "K", "help": "sample from the K likeliest; 0: from all"},
    "top_p": {"type": float, "metavar": "P", "help": "sample from the likeliest with P together"},
    "min_p": {"type": float, "metavar": "P", "help": "drop tokens under P times the likeliest"},
    "repetition_penalty": {"type": float, "metavar": "R", "help": "over 1 avoids repeats"},
    "seed": {"type": int, "metavar": "S", "help": "makes sampling repeatable"},
    "stop": {"action": "append", "default": [], "metavar": "TEXT", "help": "end before this text"},
    "chat": {"action": "store_true", "help": "ask through the model's chat template"},
    "chat_template_kwargs": {
        "metavar": "JSON",
        "help": "variables of the chat template: '{\"enable_thinking\": false}'",
    },
    "logprobs": {"action": "store_true", "help": "log probabilities of the tokens, with --json"},
}
# As many lines are run together as a classifier takes at once anyway.
_TOGETHER = 16


@dataclass(frozen=True)
class Asked:
    """One input. `line` is its number in --file, 0 elsewhere; `problem` is why it cannot be run."""

    given: str | tuple[str, str] | list[int]
    line: int = 0
    problem: str = ""

    def of(self) -> dict[str, Any]:
        """The fields of its answer that say which it is."""
        line = {"line": self.line} if self.line else {}
        return {**line, "input": self.given}


Answered = tuple[Asked, Any | InputError]


def add_options(sub: argparse.ArgumentParser) -> None:
    options.add_bundle(sub)
    sub.add_argument(
        "text", nargs="*", default=[], metavar="TEXT", help="to classify, or to continue"
    )
    sub.add_argument(
        "--file", type=path, metavar="FILE", help="one text a line; - for standard input"
    )
    sub.add_argument(
        "--ids", metavar="1,2,3", action="append", default=[], help="token ids instead of text"
    )
    sub.add_argument(
        "--pair",
        metavar="TEXT",
        action="append",
        default=[],
        help="the second text of a pair, one for each text; classifiers only",
    )
    sub.add_argument(
        "--pairs", action="store_true", help="a line of --file is two texts, a tab between them"
    )
    sub.add_argument(
        "--token-type-ids",
        metavar="0,0,1",
        action="append",
        default=[],
        help="the segment of each of --ids; default: all 0",
    )
    sub.add_argument("--truncate", action="store_true", help="cut texts that are too long")
    options.add_prompt(sub)
    sub.add_argument("--device", choices=options.devices(), help="default: the bundle's")
    options.add_threads(sub)
    options.add_quiet(sub)
    sub.add_argument(
        "--map-weights",
        action="store_true",
        help="leave weights in the file: opens fast, runs slower",
    )
    causal = sub.add_argument_group(
        "causal models",
        "What is not given is the model's default. --temperature, --top-k, --top-p and --min-p ask "
        "for sampling; --seed alone does not.",
    )
    for name, settings in GENERATION.items():
        causal.add_argument(f"--{name.replace('_', '-')}", **settings)


def run(arguments: argparse.Namespace) -> int:
    """Answer each input. With --file a line that is refused gets its error, and all others run."""
    import ptdeploy

    inputs = _inputs(arguments)
    segments = _segments(arguments)
    with options.progress(arguments).waiting("open the bundle"):
        engine = ptdeploy.load(
            arguments.bundle,
            device=arguments.device,
            threads=arguments.threads,
            map_weights=arguments.map_weights,
        )
    if arguments.prompt is not None:
        # Said once, before any answer.
        engine.prompt_info(arguments.prompt)
    if engine.writes:
        if segments is not None:
            raise InputError(f"{arguments.bundle}: has no segments; leave --token-type-ids out.")
        return _run_writer(arguments, cast("CausalLM", engine), inputs)
    return _run_labelling(arguments, cast("Labelling", engine), inputs, segments)


def _run_labelling(
    arguments: argparse.Namespace,
    engine: Labelling,
    inputs: list[Asked],
    segments: list[list[int]] | None,
) -> int:
    for name, value in _generation(arguments).items():
        # 0 is given; what is not is one of these.
        if value not in (None, []) and value is not False:
            option = f"--{name.replace('_', '-')}"
            raise InputError(
                f"{arguments.bundle}: is a classifier; {option} does not apply.",
                f"Leave {option} out.",
            )

    def answer(given: Sequence[Any]) -> list[Any]:
        return engine.records(given, arguments.truncate, segments, options.prompt(arguments))

    refused = _Refused()
    answers = _answers(inputs, answer, bool(arguments.file))
    counted = options.progress(arguments).counted(answers, len(inputs), "answered")
    for number, (asked, result) in enumerate(counted):
        if isinstance(result, InputError):
            refused.show(asked, result, arguments.json)
        elif arguments.json:
            show_json({**asked.of(), "result": result})
        else:
            if number and not engine.one_answer:
                show()
            for line in engine.lines(result):
                show(line)
    return refused.end(len(inputs))


def _run_writer(arguments: argparse.Namespace, engine: CausalLM, inputs: list[Asked]) -> int:
    asking: dict[str, Any] = _generation(arguments)
    asking["stop"] = tuple(asking["stop"])
    chat, logprobs = asking.pop("chat"), asking.pop("logprobs")
    if arguments.truncate:
        raise InputError(
            "--truncate is for classifiers: a cut text would be continued elsewhere.",
            "Leave --truncate out, and give a shorter text.",
        )
    if logprobs and not arguments.json:
        raise InputError("--logprobs needs --json.", "Add --json, or leave --logprobs out.")
    variables = _variables(asking.pop("chat_template_kwargs"), chat)
    if chat and arguments.ids:
        raise InputError(
            "--chat needs text, not --ids.", "Give the text itself, or leave --chat out."
        )
    # An option that is wrong is wrong for all: it is said once, before any answer.
    general = {name: asking[name] for name in asking if name not in ("stop", "seed")}
    engine.options(general.pop("max_new_tokens"), general)
    asking["prompt"] = options.prompt(arguments)

    def answer(asked: Asked) -> None:
        given: Any = asked.given
        if isinstance(given, tuple):
            raise InputError(
                "A pair of texts is for classifiers; a causal model continues one.",
                "Join them to one text as the model was trained on.",
            )
        if chat:
            given = engine.chat_ids([{"role": "user", "content": given}], **variables)
        if arguments.json or not isinstance(asked.given, str):
            (one,) = engine.generate([given], logprobs=logprobs, **asking)
            if arguments.json:
                result = {"text": one.text, "token_ids": one.token_ids, "stopped": one.stopped}
                if logprobs:
                    result["logprobs"] = one.logprobs
                show_json({**asked.of(), "result": result})
            else:
                show_raw(one.text or ",".join(map(str, one.token_ids)))
            return
        pieces = engine.stream(given, **asking)
        # The first piece before anything is printed: a refused request prints its error alone.
        first = next(pieces, "")
        show_raw(first if chat else asked.given + first, end="", flush=True)
        for piece in pieces:
            show_raw(piece, end="", flush=True)
        show()

    refused = _Refused()
    for asked in options.progress(arguments).counted(inputs, len(inputs), "answered"):
        try:
            if asked.problem:
                raise InputError(asked.problem)
            answer(asked)
        except InputError as error:
            if not arguments.file:
                raise
            refused.show(asked, error, arguments.json)
    return refused.end(len(inputs))


class _Refused:
    """The inputs that got an error instead of an answer."""

    def __init__(self) -> None:
        self._count, self._first, self._code = 0, "", 0

    def show(self, asked: Asked, error: InputError, as_json: bool) -> None:
        """Print an error in its answer's place, so that what follows keeps its row."""
        where = f"line {asked.line}" if asked.line else printable(repr(asked.given)[:40])
        words = f"{where}: {printable(error.problem)}"
        self._count += 1
        self._code = max(self._code, error.exit_code)
        self._first = self._first or f"{words}\n{error.fix}".strip()
        if as_json:
            show_json({**asked.of(), "error": error.problem, "fix": error.fix})
        else:
            show(f"error: {words}")

    def end(self, inputs: int) -> int:
        """Say how many there were; gives the exit code."""
        if not self._count:
            return 0
        complain(
            f"ptdeploy: {self._count} of {inputs} inputs have no answer. The first is {self._first}"
        )
        return self._code


def _answers(
    inputs: Sequence[Asked], answer: Callable[[Sequence[Any]], list[Any]], each: bool
) -> Iterator[Answered]:
    """Answers in order. With `each` one that is refused has its error, without it all are."""
    if not each:
        yield from zip(inputs, answer([one.given for one in inputs]), strict=True)
        return
    for start in range(0, len(inputs), _TOGETHER):
        yield from _part(inputs[start : start + _TOGETHER], answer)


def _part(inputs: Sequence[Asked], answer: Callable[[Sequence[Any]], list[Any]]) -> list[Answered]:
    sound = [one.given for one in inputs if not one.problem]
    try:
        results = iter(answer(sound) if sound else [])
    except InputError:
        # Somebody's line is refused; who it is shows when each runs alone.
        results = iter([_alone(one, answer) for one in sound])
    return [(one, InputError(one.problem) if one.problem else next(results)) for one in inputs]


def _alone(given: Any, answer: Callable[[Sequence[Any]], list[Any]]) -> Any | InputError:
    try:
        (result,) = answer([given])
    except InputError as error:
        return error
    return result


def _inputs(arguments: argparse.Namespace) -> list[Asked]:
    found = [Asked(text) for text in arguments.text]
    if arguments.file:
        found += [
            _two_texts(one) if arguments.pairs else one
            for one in (
                Asked(line.text, line.number, f"The line {line.problem}." if line.problem else "")
                for line in lines_of(read_content(arguments.file, "--file"))
            )
        ]
    elif arguments.pairs:
        raise InputError(
            "--pairs says what a line of --file is.", 'Give a pair with --pair "text".'
        )
    if arguments.pair:
        if arguments.file or len(arguments.pair) != len(arguments.text):
            raise InputError(
                f"--pair is given {len(arguments.pair)} times for {len(arguments.text)} texts.",
                'Each text needs its own: ptdeploy run BUNDLE "first" --pair "second". In a file '
                "give pairs with --pairs.",
            )
        pairs = zip(found, arguments.pair, strict=True)
        found = [Asked((str(one.given), two)) for one, two in pairs]
    found += [Asked(_numbers("--ids", ids)) for ids in arguments.ids]
    if not found and arguments.file:
        what = "standard input" if arguments.file == "-" else "it"
        raise InputError(
            f"--file {arguments.file}: {what} is empty.", "Give texts in UTF-8, one a line."
        )
    if not found:
        raise InputError("Nothing to run.", 'Give text: ptdeploy run BUNDLE "text", or --file.')
    if len({isinstance(one.given, list) for one in found}) > 1:
        raise InputError("Give either text or --ids, not both.", "Run the command once for each.")
    return found


def _variables(given: str | None, chat: bool) -> dict[str, Any]:
    if given is None:
        return {}
    if not chat:
        raise InputError(
            "--chat-template-kwargs needs --chat.",
            "Add --chat, or leave --chat-template-kwargs out.",
        )
    try:
        variables: dict[str, Any] = msgspec.json.decode(given, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError) as error:
        raise InputError(
            f"--chat-template-kwargs: not a JSON object ({error}).",
            """For example --chat-template-kwargs '{"enable_thinking": false}'.""",
        ) from error
    return variables


def _two_texts(line: Asked) -> Asked:
    """A line of --file as a pair, with --pairs."""
    if line.problem or not isinstance(line.given, str):
        return line
    first, *rest = line.given.split("\t")
    if len(rest) != 1:
        needs = f"The line has {len(rest)} tabs, but needs one between its two texts."
        return dataclasses.replace(line, problem=needs)
    return dataclasses.replace(line, given=(first, rest[0]))


def _segments(arguments: argparse.Namespace) -> list[list[int]] | None:
    """--token-type-ids, one for each --ids."""
    given: list[str] = arguments.token_type_ids
    if not given:
        return None
    if len(given) != len(arguments.ids):
        raise InputError(
            f"--token-type-ids is given {len(given)} times, and --ids {len(arguments.ids)} times.",
            "Give one for each row: --ids 2,5,3,7,3 --token-type-ids 0,0,0,1,1",
        )
    return [_numbers("--token-type-ids", row) for row in given]


def _numbers(option: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError(
            f"{option} {text}: not whole numbers with commas between.",
            f"Give them as in {option} 5,6,7.",
        ) from error


def _generation(arguments: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(arguments, name) for name in GENERATION}

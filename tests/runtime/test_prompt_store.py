"""Prompts are taken in and out while requests run; memory has as many of them as it was told."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from support.damage import PROMPT, edit, flip
from support.siblings import renamed

import ptdeploy
from ptdeploy.runtime.prompt_choice import DEFAULT

ROWS = [[5, 6, 7], [40], [9, 10, 11, 12]]


@pytest.fixture
def classifiers(siblings):
    return siblings("bert", "SEQ_CLS")


@pytest.fixture
def decoders(siblings):
    return siblings("qwen2", "CAUSAL_LM")


def same(found: Any, wanted: Any) -> bool:
    return all(map(np.array_equal, found, wanted))


def test_what_can_be_asked_for_is_listed(classifiers):
    engine = classifiers.engine()
    assert list(engine.prompts) == ["default", "long", "short"]
    assert engine.default_prompt == "default"
    assert [info.num_virtual_tokens for info in engine.prompts.values()] == [5, 9, 3]
    with pytest.raises(TypeError):
        engine.prompts["more"] = engine.prompts["long"]
    with pytest.raises(ptdeploy.InputError, match="no prompt 'lang'; it has 'default', 'long', 's"):
        engine.classify(ROWS, prompt="lang")


def test_a_pack_is_taken_in_as_its_bundle_has_it(compiled, packed):
    engine = ptdeploy.load(compiled("qwen2", "CAUSAL_LM").bundle)
    pack = packed("qwen2", "CAUSAL_LM").path
    engine.load_prompt(pack)
    engine.load_prompt(pack, "again")
    assert list(engine.prompts) == ["default", "other", "again"]
    assert same(engine.logits(ROWS, prompt="other"), engine.logits(ROWS, prompt="again"))
    assert not same(engine.logits(ROWS, prompt="other"), engine.logits(ROWS))


def test_a_bundle_gives_no_prompt_under_a_name_that_it_has_not(compiled, packed, tmp_path):
    """Not the only one that it has either: it may have lost the one that was meant."""
    first = compiled("qwen2", "CAUSAL_LM").bundle
    shutil.copytree(first, tmp_path / "b")
    ptdeploy.prompt_add(tmp_path / "b", packed("qwen2", "CAUSAL_LM").path, name="legal")
    engine = ptdeploy.load(first)
    engine.load_prompt(tmp_path / "b", "legal")
    ptdeploy.prompt_remove(tmp_path / "b", "legal")
    engine.unload_prompt("legal")
    with pytest.raises(ptdeploy.InputError, match="has no prompt 'legal'; it has 'default'"):
        engine.load_prompt(tmp_path / "b", "legal")
    assert list(engine.prompts) == ["default"]


def test_a_bundle_of_several_prompts_gives_the_one_that_is_named(compiled, packed, tmp_path):
    first = compiled("qwen2", "CAUSAL_LM").bundle
    shutil.copytree(first, tmp_path / "b")
    ptdeploy.prompt_add(tmp_path / "b", packed("qwen2", "CAUSAL_LM").path, name="legal")
    several, engine = ptdeploy.load(tmp_path / "b"), ptdeploy.load(first)
    assert list(several.prompts) == ["default", "legal"]
    engine.load_prompt(tmp_path / "b", "legal")
    assert same(engine.logits(ROWS, prompt="legal"), several.logits(ROWS, prompt="legal"))
    with pytest.raises(ptdeploy.InputError, match="has no prompt 'lagel'; it has 'default', 'leg"):
        engine.load_prompt(tmp_path / "b", "lagel")
    for given in (None, ["legal"], 3):
        with pytest.raises(ptdeploy.InputError, match="name is"):
            engine.prompt_info(given)
    # It is loaded, but not the bundle's own.
    with pytest.raises(ptdeploy.InputError, match="no prompt 'legal' of its own; it has 'default'"):
        engine.by_default("legal")


def test_names_that_none_can_have_or_one_has_are_refused(classifiers):
    engine = classifiers.engine()
    long = classifiers.of("long").bundle
    with pytest.raises(ptdeploy.InputError, match="There is a prompt 'long' already"):
        engine.load_prompt(long, "long")
    # Unless told it has the name that it has there.
    with pytest.raises(ptdeploy.InputError, match="There is a prompt 'long' already"):
        engine.load_prompt(long)
    for name in ("", "../x", "a b", "x" * 65, ".x"):
        with pytest.raises(ptdeploy.InputError):
            engine.load_prompt(long, name)
    assert list(engine.prompts) == ["default", "long", "short"]


def test_a_prompt_of_another_engine_is_refused(compiled, classifiers):
    engine = classifiers.engine()
    for other in (("roberta", "SEQ_CLS"), ("bert", "TOKEN_CLS")):
        with pytest.raises(ptdeploy.BundleError, match="its engine is another one than that of"):
            engine.load_prompt(compiled(*other).bundle)
    assert "other" not in engine.prompts


def test_a_prompt_that_leaves_no_room_or_lies_is_refused(classifiers, tmp_path):
    bundle = renamed(classifiers.of("long").bundle, tmp_path / "b", "other")
    engine = classifiers.engine()
    info = engine.prompts["long"]

    def say(field: str, value: Any) -> Callable[[dict[str, Any]], object]:
        return lambda manifest: manifest["prompts"]["other"].__setitem__(field, value)

    for field, value, problem in (
        ("num_virtual_tokens", 64, "leaves no room in limits.max_context"),
        ("num_virtual_tokens", 8, "has shape"),
        ("labels", [], "labels are missing"),
        ("labels", ["a", "b", "c"], "has shape"),
        ("sha256", "0" * 64, "are not those of prompt.sha256"),
    ):
        edit(bundle, say(field, value))
        with pytest.raises(ptdeploy.BundleError, match=problem):
            engine.load_prompt(bundle, "other")
        edit(bundle, say(field, getattr(info, field)))
    engine.load_prompt(bundle, "other")
    engine.unload_prompt("other")
    flip(bundle / PROMPT, 0.9)
    with pytest.raises(ptdeploy.BundleError, match="was changed"):
        engine.load_prompt(bundle, "other")
    assert "other" not in engine.prompts


def test_a_classifiers_row_needs_a_prompt(classifiers):
    engine = classifiers.engine()
    for prompt in (None, [None, "long", "long"]):
        with pytest.raises(ptdeploy.InputError, match="a head belongs to a prompt"):
            engine.logits(ROWS, prompt=prompt)


def test_there_is_one_prompt_for_each_row_or_for_all(decoders):
    engine = decoders.engine()
    with pytest.raises(ptdeploy.InputError, match="prompt names 2, but the request has 3 rows"):
        engine.generate(ROWS, 2, prompt=["long", "short"])
    with pytest.raises(ptdeploy.InputError, match="prompt names 0"):
        engine.logits(ROWS, prompt=[])
    mixed = engine.logits(ROWS, prompt=[DEFAULT, "default", DEFAULT])
    assert same(mixed, engine.logits(ROWS))


def test_an_unloaded_prompt_is_unknown_and_may_come_back(classifiers, tmp_path):
    engine = classifiers.engine()
    before = engine.logits(ROWS, prompt="long")
    engine.unload_prompt("long")
    assert list(engine.prompts) == ["default", "short"]
    for call in (lambda: engine.logits(ROWS, prompt="long"), lambda: engine.unload_prompt("long")):
        with pytest.raises(ptdeploy.InputError, match="has no prompt 'long'"):
            call()
    engine.load_prompt(renamed(classifiers.of("short").bundle, tmp_path / "b", "long"))
    assert same(engine.logits(ROWS, prompt="long"), engine.logits(ROWS, prompt="short"))
    engine.unload_prompt("long")
    engine.load_prompt(classifiers.of("long").bundle, "long")
    assert same(engine.logits(ROWS, prompt="long"), before)


def test_the_default_prompt_stays(classifiers):
    engine = classifiers.engine()
    with pytest.raises(ptdeploy.InputError, match="is the prompt of requests that name none"):
        engine.unload_prompt("default")


def test_the_default_prompt_of_an_engine_with_another_stays(compiled, packed, tmp_path):
    bundle = shutil.copytree(compiled("qwen2", "CAUSAL_LM").bundle, tmp_path / "b")
    ptdeploy.prompt_add(bundle, packed("qwen2", "CAUSAL_LM").path, name="other")
    engine = ptdeploy.load(bundle).by_default("other")
    # The bundle's own is that of the engine that it shares its prompts with.
    for name in ("other", "default"):
        with pytest.raises(ptdeploy.InputError, match="is the prompt of requests that name none"):
            engine.unload_prompt(name)
    assert list(engine.prompts) == ["default", "other"]


def test_nothing_of_an_unloaded_prompt_is_kept(decoders):
    engine = decoders.engine()
    engine.generate(ROWS, 2, prompt=["long", "short", None])
    engine.unload_prompt("long")
    assert not engine.buffers._spare
    assert all(prompt.name != "long" for key in engine._of_prompts._stacks for prompt in key)


def test_unloading_waits_for_the_requests_that_use_it(decoders):
    engine = decoders.engine()
    pieces = engine._held("long")
    pieces.__enter__()
    with ThreadPoolExecutor(1) as pool:
        gone = pool.submit(engine.unload_prompt, "long")
        while "long" in engine.prompts:
            time.sleep(0.001)
        # Nobody new may have it, and it is not gone while somebody does.
        with pytest.raises(ptdeploy.InputError, match="has no prompt 'long'"):
            engine.generate(ROWS, 2, prompt="long")
        assert not gone.done()
        pieces.__exit__(None, None, None)
        gone.result(60)


@contextmanager
def interrupted(when: Callable[[], bool], then: Callable[[], object]) -> Iterator[None]:
    """Ctrl-C in this thread, once it waits and another thread did something meanwhile."""

    def press() -> None:
        while not when():
            time.sleep(0.001)
        then()
        signal.pthread_kill(main, signal.SIGINT)

    main, before = threading.get_ident(), signal.signal(signal.SIGINT, signal.default_int_handler)
    presser = threading.Thread(target=press)
    presser.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            yield
    finally:
        presser.join()
        signal.signal(signal.SIGINT, before)


def test_an_interrupted_unloading_leaves_the_prompt_there(decoders):
    engine = decoders.engine()
    before = engine.logits(ROWS, prompt="long")
    pieces = engine._held("long")
    pieces.__enter__()
    with interrupted(lambda: "long" not in engine.prompts, lambda: None):
        engine.unload_prompt("long")
    assert same(engine.logits(ROWS, prompt="long"), before)
    pieces.__exit__(None, None, None)
    engine.unload_prompt("long")
    assert all(prompt.name != "long" for key in engine._of_prompts._stacks for prompt in key)


def test_an_interrupted_unloading_gives_way_to_what_took_the_name(decoders, tmp_path):
    engine = decoders.engine()
    other = renamed(decoders.of("short").bundle, tmp_path / "b", "long")
    short = engine.logits(ROWS, prompt="short")
    pieces = engine._held("long")
    old = pieces.__enter__().prompts[0]
    engine.logits(ROWS, prompt="long")
    with interrupted(
        lambda: "long" not in engine.prompts,
        lambda: engine.load_prompt(other),
    ):
        engine.unload_prompt("long")
    assert same(engine.logits(ROWS, prompt="long"), short)
    assert any(prompt is old for key in engine._of_prompts._stacks for prompt in key)
    pieces.__exit__(None, None, None)
    assert not any(prompt is old for key in engine._of_prompts._stacks for prompt in key)


def test_a_stream_uses_its_prompt_until_it_is_closed(siblings):
    engine = siblings("qwen2", "CAUSAL_LM", tokenizer="characters").engine()
    pieces = engine.stream("ab", 8, prompt="long", eos_token_ids=())
    next(pieces)
    assert engine._store._entries["long"].uses == 1
    pieces.close()
    assert engine._store._entries["long"].uses == 0
    engine.unload_prompt("long")


def test_a_stream_that_is_dropped_before_its_first_piece_lets_go_of_its_prompt(siblings):
    engine = siblings("qwen2", "CAUSAL_LM", tokenizer="characters").engine()
    pieces = engine.stream("ab", 8, prompt="long", eos_token_ids=())
    assert engine._store._entries["long"].uses == 1, "it is held from the call on"
    del pieces
    assert engine._store._entries["long"].uses == 0
    with pytest.raises(ptdeploy.InputError, match="No option 'foo'"):
        engine.stream("ab", 8, prompt="long", foo=3)
    assert engine._store._entries["long"].uses == 0


def test_a_stream_for_which_there_is_no_memory_says_so(siblings, monkeypatch):
    engine = siblings("qwen2", "CAUSAL_LM", tokenizer="characters").engine()

    def none(*given: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(engine.buffers, "take", none)
    pieces = engine.stream("ab", 8, prompt="long")
    with pytest.raises(ptdeploy.OutOfMemory, match="not enough memory"):
        next(pieces)
    assert engine._store._entries["long"].uses == 0


@pytest.mark.parametrize("options", [{}, {"freeze_kv": False}], ids=["frozen", "run"])
def test_a_session_goes_on_after_its_prompt_was_unloaded(siblings, options):
    engine = siblings("qwen2", "CAUSAL_LM", options=options).engine()
    (wanted,) = engine.greedy([ROWS[0]], 9, prompt="long")
    talk = engine.session(prompt="long")
    talk.append(ROWS[0])
    first = talk.generate(3, eos_token_ids=()).token_ids
    engine.unload_prompt("long")
    assert first + talk.fork().generate(6, eos_token_ids=()).token_ids == wanted
    assert first + talk.generate(6, eos_token_ids=()).token_ids == wanted


def test_memory_has_the_prompts_used_last(classifiers):
    engine = classifiers.engine(max_prompts=2)
    wanted = {name: classifiers.engine().logits(ROWS, prompt=name) for name in classifiers.names}

    def here() -> set[str]:
        return {one.name for one in engine._store._entries.values() if one.prompt is not None}

    assert here() == {"long", "short"}
    for name in ("default", "long", "short", "long", "default", "default", "short"):
        assert same(engine.logits(ROWS, prompt=name), wanted[name])
        assert name in here()
        assert len(here()) == 2
    # A request has all that it names, however many.
    mixed = engine.logits(ROWS, prompt=["default", "long", "short"])
    assert len(mixed) == 3
    assert len(here()) == 2


def test_a_file_that_is_gone_or_another_is_not_read_again(classifiers, tmp_path):
    for name in ("long", "short"):
        shutil.copytree(classifiers.of(name).bundle, tmp_path / name)
    engine = ptdeploy.load(classifiers.first.bundle, max_prompts=1)
    for name in ("long", "short"):
        engine.load_prompt(tmp_path / name, name)
    engine.logits(ROWS)
    shutil.copy(tmp_path / "short" / PROMPT, tmp_path / "long" / PROMPT)
    with pytest.raises(ptdeploy.BundleError, match="was changed since the prompt was loaded"):
        engine.logits(ROWS, prompt="long")
    shutil.rmtree(tmp_path / "short")
    with pytest.raises(ptdeploy.BundleError, match="cannot be read"):
        engine.logits(ROWS, prompt="short")
    # Others go on, and so does that one once its file is back.
    assert engine.logits(ROWS)
    shutil.copytree(classifiers.of("short").bundle, tmp_path / "short")
    assert engine.logits(ROWS, prompt="short")


def test_a_bundle_that_was_moved_keeps_its_own_prompts(classifiers, packed, compiled, tmp_path):
    bundle = tmp_path / "b"
    shutil.copytree(compiled("qwen2", "CAUSAL_LM").bundle, bundle)
    ptdeploy.prompt_add(bundle, packed("qwen2", "CAUSAL_LM").path)
    engine = ptdeploy.load(bundle, max_prompts=1)
    wanted = engine.logits(ROWS, prompt="other")
    engine.logits(ROWS)
    bundle.rename(tmp_path / "moved")
    assert same(engine.logits(ROWS, prompt="other"), wanted)


def test_threads_take_prompts_in_and_out_while_requests_run(classifiers, tmp_path):
    engine = classifiers.engine(max_prompts=2)
    long = classifiers.of("long").bundle
    guests = {name: renamed(long, tmp_path / name, name) for name in ("guest0", "guest1")}
    wanted = {name: engine.logits(ROWS, prompt=name) for name in classifiers.names}
    stop, refused = threading.Event(), list[str]()

    def come_and_go(name: str) -> int:
        times = 0
        while not stop.is_set() or not times:
            engine.load_prompt(guests[name])
            engine.unload_prompt(name)
            times += 1
        return times

    def ask(seed: int) -> None:
        random = np.random.default_rng(seed)
        for _ in range(25):
            names = random.choice(["default", "long", "short", "guest0", "guest1"], 3).tolist()
            try:
                found = engine.logits(ROWS, prompt=names)
            except ptdeploy.InputError as error:
                refused.append(error.problem)
                continue
            for row, name in enumerate(names):
                known = wanted["long" if name.startswith("guest") else name][row]
                assert np.abs(found[row] - known).max() < 1e-5

    with ThreadPoolExecutor(6) as pool:
        moving = [pool.submit(come_and_go, name) for name in guests]
        asked = [pool.submit(ask, seed) for seed in range(4)]
        try:
            for one in asked:
                one.result(120)
        finally:
            stop.set()
        assert all(one.result(60) for one in moving)
    assert all("has no prompt 'guest" in problem for problem in refused)
    assert list(engine.prompts) == ["default", "long", "short"]
    assert all(one.uses == 0 for one in engine._store._entries.values())


def test_of_threads_that_ask_for_one_prompt_one_reads_it(classifiers, monkeypatch):
    engine = classifiers.engine(max_prompts=1)
    engine.logits(ROWS)
    entry = engine._store._entries["long"]
    assert entry.prompt is None
    read, times = type(entry.place).read, []

    def counted(place: Any) -> Any:
        times.append(place)
        time.sleep(0.05)
        return read(place)

    monkeypatch.setattr(type(entry.place), "read", counted)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: engine.logits(ROWS, prompt="long"), range(4)))
    assert len(times) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_forked_process_counts_its_own_requests(classifiers):
    engine = classifiers.engine()
    with engine._held("long"):
        # Whatever another thread does just now, it does not do it there.
        engine._store._changed.acquire()
        child = os.fork()
        if not child:
            try:
                engine.unload_prompt("long")
                os._exit(0 if "long" not in engine.prompts else 1)
            finally:
                os._exit(2)
        engine._store._changed.release()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert "long" in engine.prompts


class Store(RuleBasedStateMachine):
    """Whatever is taken in, out and asked for: what is known is what was taken in."""

    folders: dict[tuple[str, str], Path]
    first: Path
    wanted: dict[str, list[np.ndarray]]

    def __init__(self) -> None:
        super().__init__()
        self.engine: Any = ptdeploy.load(self.first, max_prompts=2)
        self.known = {"default": "default"}

    @rule(name=st.sampled_from("abc"), of=st.sampled_from(["long", "short"]))
    def load(self, name: str, of: str) -> None:
        if name in self.known:
            with pytest.raises(ptdeploy.InputError, match="already"):
                self.engine.load_prompt(self.folders[of, name], name)
        else:
            self.engine.load_prompt(self.folders[of, name], name)
            self.known[name] = of

    @rule(name=st.sampled_from("abc"))
    def unload(self, name: str) -> None:
        if name in self.known:
            self.engine.unload_prompt(name)
            del self.known[name]
        else:
            with pytest.raises(ptdeploy.InputError, match="has no prompt"):
                self.engine.unload_prompt(name)

    @rule(names=st.lists(st.sampled_from(["a", "b", "c", "default"]), min_size=3, max_size=3))
    def ask(self, names: list[str]) -> None:
        if set(names) <= set(self.known):
            found = self.engine.logits(ROWS, prompt=names)
            for row, name in enumerate(names):
                wanted = self.wanted[self.known[name]][row]
                assert np.abs(found[row] - wanted).max() < 1e-5
        else:
            with pytest.raises(ptdeploy.InputError, match="has no prompt"):
                self.engine.logits(ROWS, prompt=names)

    @invariant()
    def what_is_known_is_listed_and_memory_has_no_more_than_it_may(self) -> None:
        assert set(self.engine.prompts) == set(self.known)
        entries = self.engine._store._entries.values()
        assert sum(one.prompt is not None for one in entries) <= 2
        assert all(one.uses == 0 for one in entries)


def test_any_order_of_taking_in_out_and_asking_keeps_the_books(classifiers, tmp_path):
    engine = classifiers.engine()
    Store.first = classifiers.first.bundle
    Store.folders = {
        (of, name): renamed(one.bundle, tmp_path / f"{of} as {name}", name)
        for of, one in classifiers.others.items()
        for name in "abc"
    }
    Store.wanted = {name: engine.logits(ROWS, prompt=name) for name in classifiers.names}
    run_state_machine_as_test(
        Store,
        settings=settings(
            max_examples=12,
            stateful_step_count=15,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )

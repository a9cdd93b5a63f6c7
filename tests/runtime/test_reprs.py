"""What an engine and a session are, said in a line where somebody prints them."""

from __future__ import annotations

import shutil
import typing

import ptdeploy


def test_an_engine_says_its_bundle_its_target_and_its_prompts(compiled, packed, tmp_path):
    path = shutil.copytree(compiled("qwen2", "CAUSAL_LM").bundle, tmp_path / "b")
    engine = ptdeploy.load(path, device="cpu")
    of = f"<CausalLM of {str(path)!r}: ort on cpu, fp32; prompts: "
    assert repr(engine) == f"{of}'default', by default 'default'>"
    engine.load_prompt(packed("qwen2", "CAUSAL_LM").path)
    assert repr(engine) == f"{of}'default', 'other', by default 'default'>"


def test_a_session_says_its_prompt_and_how_full_it_is(compiled):
    path = compiled("qwen2", "CAUSAL_LM").bundle
    engine = ptdeploy.load(path)
    session = engine.session(max_tokens=20)
    session.append([5, 6, 7])
    assert repr(session) == f"<Conversation of {str(path)!r}: prompt 'default', 3 of 20 tokens>"
    alone = engine.session(max_tokens=20, prompt=None)
    assert repr(alone) == f"<Conversation of {str(path)!r}: no prompt, 0 of 20 tokens>"


def test_what_a_causal_model_gives_can_be_imported_from_ptdeploy():
    gives = [
        typing.get_type_hints(method)["return"]
        for method in (ptdeploy.CausalLM.session, ptdeploy.Conversation.generate)
    ]
    assert gives == [ptdeploy.Conversation, ptdeploy.Generated]

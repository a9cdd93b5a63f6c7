# ruff: noqa: RUF001 - letters that look like others are meant
"""By the tokenizer's program C++ gives the ids that Python gives, and the text of ids."""

from __future__ import annotations

import json
import shutil
import subprocess
import unicodedata
from pathlib import Path

import pytest
from support import native
from support.c_abi import Library
from support.damage import replace
from support.spelling import listed
from support.tools import tool

import ptdeploy
from ptdeploy.bundle import TokenizerInfo, read_bundle
from ptdeploy.cli.main import main
from ptdeploy.program.text_program.convert import write_text_program
from ptdeploy.program.text_program.nasty import nasty_texts

MODELS = native.REPOSITORY / "models"
PROGRAM = ("tokenizer.xml", "tokenizer.bin")


@pytest.fixture(scope="module", autouse=True)
def _openvino() -> None:
    native.need_openvino()


@pytest.fixture(scope="module")
def writer(tmp_path_factory) -> Path:
    """The storyteller, with its tokenizer's program."""
    place = tmp_path_factory.mktemp("storyteller") / "bundle"
    folder = MODELS / "storyteller"
    ptdeploy.compile(
        folder / "adapter",
        base=str(folder / "base"),
        target="ort",
        output=place,
        cpp_tokenizer=True,
    )
    return place


@pytest.fixture(scope="module")
def lower(bundles, tmp_path_factory) -> Path:
    """A classifier with BERT's uncased tokenizer, and its program."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    letters = {unicodedata.normalize("NFD", chr(n))[0].lower() for n in range(33, 0x250)}
    letters |= {"α", "σ", "ς", "μ", "東", "京", "ß", "ſ", "ı", "'", "“", "…", "한", "\u1112"}
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *sorted(letters), "the", "##er", "compil"]
    words += [f"##{one}" for one in sorted(letters)]
    made = Tokenizer(models.WordPiece({one: n for n, one in enumerate(words)}, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    made.add_special_tokens(words[:4])
    made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    bundle = tmp_path_factory.mktemp("lower") / "bundle"
    shutil.copytree(bundles("encoder classifier"), bundle)
    made.save(str(bundle / "tokenizer.json"))
    info = TokenizerInfo(origin="given", type="BertTokenizer", size=len(words))
    entries = write_text_program(bundle / "tokenizer.json", info, bundle)
    listed(bundle, [("tokenizer.json", "tokenizer"), *((one.path, one.role) for one in entries)])
    return bundle


def same_text(probe: native.Probe, bundle: Path) -> int:
    """Both encode and decode alike; of how many texts."""
    assert probe.ask("open", "e", bundle) == {}
    truth = ptdeploy.load(bundle).tokenizer
    texts = [*nasty_texts(sorted(truth.special)), "\0", "a\0", "a\0b \0"]
    for text in texts:
        ids = truth.encode(text).ids
        assert probe.ask("encode", "e", text.encode().hex()) == ids, text
        assert probe.ask("decode", "e", ",".join(map(str, ids))) == truth.decode(ids), text
    return len(texts)


def test_a_byte_level_tokenizers_ids_and_texts_are_pythons(writer, probe):
    assert same_text(probe, writer) > 600


def test_a_lower_casing_tokenizers_ids_and_texts_are_pythons(lower, probe):
    assert same_text(probe, lower) > 600


def test_every_letter_is_lowered_as_the_tokenizer_does(lower, probe):
    """Also where OpenVINO would fold its case: a final sigma is one, and a micro sign."""
    assert probe.ask("open", "e", lower) == {}
    truth = ptdeploy.load(lower).tokenizer
    kinds = ("Ll", "Lu", "Lt", "Po", "Pd", "Mn", "Zs")
    every = [chr(n) for n in range(1, 0x3000) if unicodedata.category(chr(n)) in kinds]
    for start in range(0, len(every), 40):
        text = " ".join(f"a{one}b {one}" for one in every[start : start + 40])
        assert probe.ask("encode", "e", text.encode().hex()) == truth.encode(text).ids
    assert truth.encode("ς").ids != truth.encode("σ").ids


def test_the_examples_take_text(writer, built):
    program = built / "ptdeploy-library" / "examples" / "generate"
    said = native.checked([str(program), str(writer), "Once upon a time"])
    (wanted,) = ptdeploy.load(writer).generate(["Once upon a time"])
    assert wanted.text.strip() in said


def test_the_c_abi_takes_and_gives_text(writer, built):
    library = Library(built, writer)
    text = "Once upon a time — naïve 東京\0!"
    ids = ptdeploy.load(writer).tokenizer.encode(text).ids
    assert library.encode(text.encode(), 64) == ("", len(ids), ids)
    said = f"The answer has {len(ids)} token ids, but capacity is {len(ids) - 1}."
    assert library.encode(text.encode(), len(ids) - 1) == (said, len(ids), [])
    assert library.encode(b"\xff", 64)[0] == "The text is not UTF-8."
    none = ptdeploy.load(writer).tokenizer.encode("").ids
    assert library.encode(b"", 64) == ("", len(none), none)
    assert library.decode(ids, 64) == ("", len(text.encode()), text.encode() + b"\0")


def test_ids_that_name_no_token_have_no_text(writer, probe):
    assert probe.ask("open", "e", writer) == {}
    truth = ptdeploy.load(writer).tokenizer
    for ids in ([5, 10**9, 7], [-1, 5], [2**40 + 5], [5, 2**31]):
        assert probe.ask("decode", "e", ",".join(map(str, ids))) == truth.decode(ids)


def test_text_that_is_none_is_refused(writer, probe):
    assert probe.ask("open", "e", writer) == {}
    for content in (b"\xff", b"a\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82"):
        answer = probe.ask("encode", "e", content.hex())
        assert (answer["error"], answer["problem"]) == ("InputError", "The text is not UTF-8.")


def test_a_bundle_without_a_program_says_how_to_write_it(bundles, probe):
    assert probe.ask("open", "e", bundles("fused")) == {}
    answer = probe.ask("encode", "e", b"text".hex())
    assert answer["error"] == "InputError"
    assert "--cpp-tokenizer" in answer["fix"]


def test_tokenizers_that_are_not_there_are_named(writer, built):
    probe = native.Probe(
        str(built / "probe"), env={"PTDEPLOY_OPENVINO_TOKENIZERS": "/no/such/library.so"}
    )
    assert probe.ask("open", "e", writer) == {}
    answer = probe.ask("encode", "e", b"text".hex())
    assert answer["error"] == "TargetUnavailable"
    assert "/no/such/library.so" in answer["problem"]
    probe.close()


def test_a_program_that_is_none_is_a_damaged_bundle(writer, probe, tmp_path):
    shutil.copytree(writer, tmp_path / "bundle")
    replace(tmp_path / "bundle", "tokenizer.xml", b"<net>")
    assert probe.ask("open", "e", tmp_path / "bundle") == {}
    assert probe.ask("encode", "e", b"text".hex())["error"] == "BundleError"


def test_a_program_that_makes_no_ids_is_a_damaged_bundle(writer, probe, tmp_path):
    from ptdeploy.backends.telemetry import import_openvino

    openvino = import_openvino()
    given = openvino.opset13.parameter([1], openvino.Type.f32)
    openvino.save_model(openvino.Model([given], [given]), str(tmp_path / "same.xml"))
    shutil.copytree(writer, tmp_path / "bundle")
    for end in ("xml", "bin"):
        replace(tmp_path / "bundle", f"tokenizer.{end}", (tmp_path / f"same.{end}").read_bytes())
    assert probe.ask("open", "e", tmp_path / "bundle") == {}
    answer = probe.ask("encode", "e", b"text".hex())
    assert answer["error"] == "BundleError"
    assert "does not make token ids of a text" in answer["problem"]


def test_ids_of_another_bundles_program_are_held_against_the_vocabulary(
    writer, bundles, probe, tmp_path
):
    bundle = tmp_path / "bundle"
    shutil.copytree(bundles("encoder classifier"), bundle)
    roles = {"tokenizer.json": "tokenizer"}
    roles |= {"tokenizer.xml": "tokenizer_program", "tokenizer.bin": "tokenizer_weights"}
    for name in roles:
        shutil.copy(writer / name, bundle / name)
    listed(bundle, [*roles.items()])
    assert probe.ask("open", "e", bundle) == {}
    ids = probe.ask("encode", "e", b"Once upon a time".hex())
    assert max(ids) > 100
    answer = probe.ask("classify", "e", ",".join(map(str, ids)))
    assert (answer["error"], "outside 0 to 100" in answer["problem"]) == ("InputError", True)


def test_a_new_project_takes_and_gives_text(writer, built, tmp_path, capsys):
    """Its own words name OpenVINO's folders, and its program writes what Python writes."""
    assert main(["cpp-new", str(tmp_path / "app"), str(writer)]) == 0
    words = capsys.readouterr().out
    for name, value in native.with_openvino().items():
        assert f"-D{name}={value}" in words
    library = built / "ptdeploy-library"
    native.checked(
        [
            *(tool("c++"), "-std=c++17", str(tmp_path / "app" / "main.cc")),
            *(f"-I{native.REPOSITORY / 'ptdeploy' / 'cpp' / 'include'}", f"-L{library}"),
            *(f"-Wl,-rpath,{library}", "-lptdeploy", "-o", str(tmp_path / "app" / "app")),
        ]
    )
    texts = ["Once upon a time", "The little dog"]
    done = subprocess.run(
        [tmp_path / "app" / "app", *texts], capture_output=True, text=True, check=True
    )
    engine = ptdeploy.load(writer)
    wanted = [one.text for text in texts for one in engine.generate([text], 16)]
    assert done.stdout == "".join(f"{text}\n" for text in wanted)


# Writing it.


def test_a_tokenizer_that_openvino_sees_otherwise_is_not_written(writer, tmp_path):
    state = json.loads((writer / "tokenizer.json").read_text())
    # OpenVINO's own: a final sigma becomes another one.
    state["normalizer"] = {"type": "Lowercase"}
    state["model"]["vocab"] |= {}
    (tmp_path / "tokenizer.json").write_text(json.dumps(state))
    with pytest.raises(ptdeploy.InputError, match=r"--cpp-tokenizer: OpenVINO's program .* gives"):
        write_text_program(tmp_path / "tokenizer.json", None, tmp_path)
    assert [one.name for one in tmp_path.iterdir()] == ["tokenizer.json"]


def test_a_decoder_that_cpp_does_not_know_is_not_written(writer, tmp_path):
    state = json.loads((writer / "tokenizer.json").read_text())
    blank = {"type": "Replace", "pattern": {"Regex": "_+"}, "content": " "}
    state["decoder"] = {"type": "Sequence", "decoders": [state["decoder"], blank]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(state))
    with pytest.raises(ptdeploy.InputError, match="decoder looks for regular expressions"):
        write_text_program(tmp_path / "tokenizer.json", None, tmp_path)


def test_settings_that_no_tokenizer_json_has_are_held_too(writer, tmp_path):
    shutil.copy(writer / "tokenizer.json", tmp_path)
    info = TokenizerInfo(origin="given", type="T", size=9, split_special_tokens=True)
    with pytest.raises(ptdeploy.InputError, match="--cpp-tokenizer"):
        write_text_program(tmp_path / "tokenizer.json", info, tmp_path)


def test_the_same_tokenizer_gives_the_same_bytes(writer, tmp_path):
    info = read_bundle(writer).manifest.tokenizer
    write_text_program(writer / "tokenizer.json", info, tmp_path)
    for name in PROGRAM:
        assert (tmp_path / name).read_bytes() == (writer / name).read_bytes()


def test_compile_asks_for_a_tokenizer(compiled, tmp_path):
    trained = compiled("bert", "SEQ_CLS").trained
    with pytest.raises(ptdeploy.InputError, match=r"^cpp_tokenizer=True: no tokenizer was found"):
        ptdeploy.compile(
            trained.adapter,
            base=str(trained.base),
            target="ort",
            output=tmp_path / "bundle",
            cpp_tokenizer=True,
        )
    assert not (tmp_path / "bundle").exists()

"""Bad input: exit code 2, one clear message, no traceback, nothing half written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import tiny

from ptdeploy.bundle.task import Task
from ptdeploy.cli.main import main
from ptdeploy.source.checkpoint import read_checkpoint

ADAPTER = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tiny.Trained:
    return tiny.make(tmp_path_factory.mktemp("trained"), "bert", "SEQ_CLS")


@pytest.fixture
def refuse(tmp_path: Path, capsys) -> Callable[..., str]:
    """Compile what must be refused, check that nothing was left behind, and give the message."""
    out = tmp_path / "out"
    out.mkdir()

    def run(checkpoint: Path, base: Path | None, *options: str, code: int = 2) -> str:
        arguments = ["compile", str(checkpoint), "--target", "ort", "-o", str(out / "bundle")]
        if base is not None:
            arguments += ["--base", str(base)]
        assert main([*arguments, *options]) == code
        assert list(out.iterdir()) == []
        captured = capsys.readouterr()
        assert captured.out == ""
        assert "Traceback" not in captured.err
        return captured.err.split("ptdeploy: ", 1)[1]

    return run


@pytest.fixture
def adapter(trained: tiny.Trained, tmp_path: Path) -> Path:
    """A copy of the adapter folder, to break."""
    return Path(shutil.copytree(trained.adapter, tmp_path / "adapter"))


def edit_config(adapter: Path, **changes: object) -> None:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def edit_tensor(adapter: Path, name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    tensors = load_file(adapter / ADAPTER)
    save_file({**tensors, name: change(tensors[name]).contiguous()}, adapter / ADAPTER)


def test_a_missing_config(adapter, trained, refuse):
    (adapter / "adapter_config.json").unlink()
    assert "no adapter_config.json" in refuse(adapter, trained.base)


@pytest.mark.parametrize("content", ["{", "[]", "\x00", '{"peft_type": "P_TUNING"}'])
def test_a_broken_config(adapter, trained, refuse, content):
    (adapter / "adapter_config.json").write_text(content)
    assert "adapter_config.json" in refuse(adapter, trained.base)


@pytest.mark.parametrize(
    ("kind", "advice"), [("LORA", "merge_and_unload"), ("IA3", "P_TUNING, PROMPT_TUNING")]
)
def test_another_kind_of_adapter(adapter, trained, refuse, kind, advice):
    edit_config(adapter, peft_type=kind)
    message = refuse(adapter, trained.base)
    assert kind in message
    assert advice in message


PEFTS_TASKS = {"QUESTION_ANS", "FEATURE_EXTRACTION", "SEQ_2_SEQ_LM"}


@pytest.mark.parametrize("task", sorted(PEFTS_TASKS - set(Task)))
def test_a_task_that_is_not_compiled(adapter, trained, refuse, task):
    edit_config(adapter, task_type=task)
    message = refuse(adapter, trained.base)
    assert f"task_type is '{task}', which ptdeploy does not compile" in message
    assert "It compiles SEQ_CLS, TOKEN_CLS, CAUSAL_LM" in message


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_truncated_safetensors(adapter, trained, refuse, keep):
    content = (adapter / ADAPTER).read_bytes()
    (adapter / ADAPTER).write_bytes(content[:keep])
    assert "cut short" in refuse(adapter, trained.base)


@pytest.mark.parametrize("keep", [0, 40, -100])
def test_a_truncated_torch_file(trained, refuse, tmp_path, keep):
    file = tmp_path / "model.bin"
    torch.save(trained.model.state_dict(), file)
    file.write_bytes(file.read_bytes()[:keep])
    assert "cut short" in refuse(file, trained.base)


def test_a_whole_pickled_model_is_not_unpickled(trained, refuse, tmp_path):
    file = tmp_path / "model.pt"
    torch.save(trained.model, file)
    message = refuse(file, trained.base)
    assert "not unpickled" in message
    assert "save_full" in message


class Trap:
    """Creates a file if anybody unpickles it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("legacy", [True, False])
def test_a_malicious_pickle_does_not_run(trained, refuse, tmp_path, legacy):
    file = tmp_path / "model.pt"
    mark = tmp_path / "ran"
    torch.save({"x": Trap(mark)}, file, _use_new_zipfile_serialization=not legacy)
    refuse(file, trained.base)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"num_virtual_tokens": 6}, "num_virtual_tokens = 6"),
        ({"token_dim": 48}, "token_dim = 48"),
        ({"num_virtual_tokens": -1}, "not a positive whole number"),
        ({"num_virtual_tokens": "5"}, "not a positive whole number"),
        ({"task_type": "FEATURE_EXTRACTION"}, "task_type"),
        ({"num_transformer_submodules": 2}, "encoder-decoder"),
    ],
)
def test_a_config_that_disagrees_with_the_tensors(adapter, trained, refuse, changes, part):
    edit_config(adapter, **changes)
    assert part in refuse(adapter, trained.base)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["prompt_embeddings", "base_model.classifier.weight"])
def test_nan_and_infinity(adapter, trained, refuse, value, name):
    def spoil(tensor: torch.Tensor) -> torch.Tensor:
        tensor[1, 2] = value
        return tensor

    edit_tensor(adapter, name, spoil)
    assert "1 NaN or infinite" in refuse(adapter, trained.base)


def test_a_base_model_of_another_width(adapter, refuse, tmp_path):
    tiny.base_config("bert", hidden_size=48).save_pretrained(tmp_path / "wide")
    message = refuse(adapter, tmp_path / "wide")
    assert "have 48" in message
    assert "--base" in message


def test_a_base_model_of_another_architecture(adapter, refuse, tmp_path):
    tiny.base_config("gpt2").save_pretrained(tmp_path / "gpt2")
    message = refuse(adapter, tmp_path / "gpt2")
    assert "'classifier.bias'" in message
    assert "score.weight" in message


def test_a_head_of_another_shape(adapter, trained, refuse):
    edit_tensor(adapter, "base_model.classifier.weight", lambda t: t[:, :16])
    assert "classifier.weight has shape (3, 16)" in refuse(adapter, trained.base)


def test_an_adapter_without_its_head(adapter, trained, refuse):
    tensors = load_file(adapter / ADAPTER)
    save_file({"prompt_embeddings": tensors["prompt_embeddings"]}, adapter / ADAPTER)
    assert "no trained head" in refuse(adapter, trained.base)


def test_more_virtual_tokens_than_positions(adapter, trained, refuse):
    edit_config(adapter, num_virtual_tokens=64)
    edit_tensor(adapter, "prompt_embeddings", lambda t: t.repeat(13, 1)[:64])
    assert "64 virtual tokens leave no room" in refuse(adapter, trained.base)


def test_a_base_model_that_is_not_there(adapter, trained, refuse, tmp_path):
    assert "--base" in refuse(adapter, tmp_path / "nowhere")
    edit_config(adapter, base_model_name_or_path=None)
    assert "does not name its base model" in refuse(adapter, None)


def test_a_base_model_without_weights(adapter, trained, refuse, tmp_path):
    tiny.base_config("bert").save_pretrained(tmp_path / "config-only")
    assert "weights cannot be loaded" in refuse(adapter, tmp_path / "config-only")


def test_a_base_model_with_truncated_weights(adapter, trained, refuse, tmp_path):
    base = Path(shutil.copytree(trained.base, tmp_path / "cut"))
    file = base / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    assert "weights cannot be loaded" in refuse(adapter, base)


def test_nothing_at_the_path(trained, refuse, tmp_path):
    assert "no such file" in refuse(tmp_path / "nothing", trained.base)
    (tmp_path / "empty").mkdir()
    assert "not a checkpoint" in refuse(tmp_path / "empty", trained.base)


def test_a_trainers_output_folder_instead_of_a_checkpoint(adapter, trained, refuse, tmp_path):
    for step in (500, 1000, 1500):
        shutil.copytree(adapter, tmp_path / "run" / f"checkpoint-{step}")
    (tmp_path / "run" / "checkpoint-best").mkdir()
    message = refuse(tmp_path / "run", trained.base)
    assert "4 below it" in message
    assert "for instance" in message
    assert "checkpoint-1500." in message


def test_several_adapters_need_a_name(adapter, trained, refuse):
    shutil.copytree(trained.adapter, adapter / "second")
    message = refuse(adapter, trained.base)
    assert "default, second" in message
    assert "--adapter" in message
    assert "'default' is the one in the folder itself" in message
    assert "no adapter named 'third'" in refuse(adapter, trained.base, "--adapter", "third")


def test_adapters_of_several_kinds_are_named_with_them(adapter, trained, refuse):
    second = Path(shutil.copytree(trained.adapter, adapter / "second"))
    config = json.loads((second / "adapter_config.json").read_text())
    (second / "adapter_config.json").write_text(json.dumps({**config, "peft_type": "LORA"}))
    message = refuse(adapter, trained.base)
    assert "holds 2 adapters: default (P_TUNING), second (LORA)." in message
    assert "--adapter" in message


def test_an_adapter_below_another_of_its_name_does_not_stand_for_it(trained, refuse, tmp_path):
    folder = Path(shutil.copytree(trained.adapter, tmp_path / "a"))
    other = tiny.make(tmp_path / "other", "bert", "SEQ_CLS", virtual_tokens=3)
    shutil.copytree(other.adapter, folder / "default")
    message = refuse(folder, trained.base)
    assert "holds 2 adapters: default, default/." in message
    assert "--adapter" in message
    assert read_checkpoint(folder, "default").num_virtual_tokens == 5
    assert read_checkpoint(folder, "default/").num_virtual_tokens == 3


def test_a_state_dict_without_a_task(trained, refuse, tmp_path):
    torch.save(trained.model.state_dict(), tmp_path / "model.pt")
    assert "--task" in refuse(tmp_path / "model.pt", trained.base)


def test_a_state_dict_without_a_prompt_encoder(trained, refuse, tmp_path):
    torch.save(trained.model.get_base_model().state_dict(), tmp_path / "model.pt")
    assert "no 'prompt_encoder.*'" in refuse(tmp_path / "model.pt", trained.base)


def test_a_prompt_encoder_with_a_layer_missing(trained, refuse, tmp_path):
    state = trained.model.state_dict()
    del state["prompt_encoder.default.mlp_head.2.weight"]
    torch.save(state, tmp_path / "model.pt")
    message = refuse(tmp_path / "model.pt", trained.base, "--task", "SEQ_CLS")
    assert "mlp_head.2.weight" in message


def test_labels_that_do_not_fit_the_head(adapter, trained, refuse):
    assert "2 classes, but the head has 3" in refuse(adapter, trained.base, "--labels", "a,b")
    assert "distinct" in refuse(adapter, trained.base, "--labels", "a,a,b")


@pytest.mark.parametrize("name", ["../x", ".x", "a/b", "x" * 65, "prüfen", "a\n"])
def test_a_name_that_no_prompt_can_have(adapter, trained, refuse, name):
    message = refuse(adapter, trained.base, "--name", name)
    assert message.startswith("--name is '")
    assert "it must be 1 to 64 letters, digits, '.', '_' or '-' of ASCII" in message


def test_a_name_of_no_letter(adapter, trained, refuse):
    assert "--name is ''; it must be text, not empty" in refuse(adapter, trained.base, "--name", "")


def test_an_unknown_precision(adapter, trained, refuse):
    assert "there is fp32" in refuse(adapter, trained.base, "--precision", "fp4")


def test_a_device_that_is_not_here_exits_3(adapter, trained, refuse):
    onnxruntime = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this machine has the CUDA execution provider")
    message = refuse(adapter, trained.base, "--device", "cuda", code=3)
    assert "ptdeploy[cuda]" in message


@pytest.mark.parametrize("force", [[], ["--force"]])
def test_a_folder_that_is_no_bundle_is_never_replaced(adapter, trained, tmp_path, capsys, force):
    mine = tmp_path / "thesis"
    mine.mkdir()
    (mine / "chapter.txt").write_text("all my work")
    arguments = ["compile", str(adapter), "--target", "ort", "--base", str(trained.base)]
    assert main([*arguments, "-o", str(mine), *force]) == 2
    assert (mine / "chapter.txt").read_text() == "all my work"
    assert str(mine) in capsys.readouterr().err


def test_an_unwritable_output(adapter, trained, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    arguments = ["compile", str(adapter), "--target", "ort", "--base", str(trained.base)]
    assert main([*arguments, "-o", str(tmp_path / "file" / "bundle")]) == 2
    assert "cannot be written to" in capsys.readouterr().err


def test_errors_are_json_too(tmp_path, capsys):
    assert main(["inspect", str(tmp_path / "nothing"), "--json"]) == 2
    error = json.loads(capsys.readouterr().out)
    assert error["exit"] == 2
    assert "no such file" in error["error"]


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--ids", "5,999"], "outside 0 to 100"),
        (["--ids=-1"], "outside 0 to 100"),
        (["--ids", ",".join(["5"] * 60)], "at most 59 fit"),
        (["--ids", "five"], "not whole numbers"),
        (["hello"], "without a tokenizer"),
        (["--file", "/nowhere"], "cannot be read"),
        ([], "Nothing to run"),
        (["--ids", "5", "--max-new-tokens", "3"], "is a classifier"),
        (["--ids", "5", "--temperature", "0"], "is a classifier; --temperature does not apply"),
        (["--ids", "5", "--seed", "0"], "is a classifier; --seed does not apply"),
    ],
)
def test_bad_requests(compiled, capsys, arguments, part):
    assert main(["run", str(compiled("bert", "SEQ_CLS").bundle), *arguments]) == 2
    assert part in capsys.readouterr().err


@pytest.mark.parametrize("change", ["long", "to_sparse"])
def test_a_prompt_that_is_no_dense_float_tensor(trained, refuse, tmp_path, change):
    state = trained.model.state_dict()
    name = "prompt_encoder.default.embedding.weight"
    state[name] = getattr(state[name], change)()
    torch.save(state, tmp_path / "model.pt")
    message = refuse(tmp_path / "model.pt", trained.base, "--task", "SEQ_CLS")
    assert "embedding.weight" in message


def test_another_tools_manifest_is_not_replaced(adapter, trained, tmp_path, capsys):
    mine = tmp_path / "extension"
    mine.mkdir()
    (mine / "manifest.json").write_text('{"name": "my browser extension"}')
    arguments = ["compile", str(adapter), "--target", "ort", "--base", str(trained.base)]
    assert main([*arguments, "-o", str(mine), "--force"]) == 2
    assert "my browser extension" in (mine / "manifest.json").read_text()


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["inspect", "{bundle}", "--adapter", "x"], "--adapter is about a checkpoint, and "),
        (["inspect", "{pack}", "--task", "SEQ_CLS"], "--task is about a checkpoint, and "),
        (["inspect", "{bundle}", "--task-id", "0"], "--task-id is about a checkpoint, and "),
        (["diff", "{bundle}", "{bundle}", "--rounds", "3"], "--rounds is about timing"),
        (["profile", "{bundle}", "--top", "3", "--json"], "--top is about tables"),
        (["compile", "{bundle}", "--target", "ort", "-o", "{out}"], "is a bundle, and no check"),
        (["convert", "{pack}", "--to", "peft", "-o", "{out}"], "is a pack, and no checkpoint"),
        (["verify", "{bundle}", "--checkpoint", "{pack}"], "is a pack, and no checkpoint"),
    ],
)
def test_what_has_no_effect_or_is_no_checkpoint_is_refused_by_name(
    compiled, packed, tmp_path, capsys, command, said
):
    places = {
        "bundle": compiled("bert", "SEQ_CLS").bundle,
        "pack": packed("bert", "SEQ_CLS").path,
        "out": tmp_path / "out",
    }
    assert main([one.format(**places) for one in command]) == 2
    assert said in capsys.readouterr().err

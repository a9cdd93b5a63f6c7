"""NeMo's archives of prompts are read as NeMo would run them, and hostile ones are refused."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from support import nemo, tiny
from support.nemo import CONFIG, TOKENS, WEIGHTS, WIDTH, PromptEncoder, config, member, packed

import ptdeploy
from ptdeploy.cli.main import main
from ptdeploy.errors import CheckpointError
from ptdeploy.source.checkpoint import read_checkpoint

ADAPTER = "model.language_model.adapter_layer.ptuning_adapter."
ROWS = [[5, 6, 7], [8], [9, 10, 11, 12]]


@pytest.mark.parametrize("gzipped", [False, True])
@pytest.mark.parametrize("task", ["sentiment", "prompt_table", "a task"])
def test_a_table_is_read_by_its_task(tmp_path, gzipped, task):
    path, table = nemo.table_archive(tmp_path / "p.nemo", task, "other", gzipped=gzipped)
    checkpoint = read_checkpoint(path, adapter=task)
    want = table.prompt_table[task].prompt_embeddings.weight.detach().numpy()
    assert np.array_equal(checkpoint.virtual_tokens, want)
    assert (checkpoint.adapter, checkpoint.format) == (task, "NeMo archive")
    assert not checkpoint.of_peft
    assert not checkpoint.resumable


def test_a_flat_state_of_the_first_versions_is_read(tmp_path):
    table = nemo.trained(nemo.PromptTable("one"))
    flat = {f"prompt_table.{name}": tensor for name, tensor in table.state_dict().items()}
    checkpoint = read_checkpoint(packed(tmp_path / "p.nemo", flat, config("one")))
    want = table.prompt_table["one"].prompt_embeddings.weight.detach().numpy()
    assert np.array_equal(checkpoint.virtual_tokens, want)


@pytest.mark.parametrize("under_key", [False, True])
@pytest.mark.parametrize(
    ("kind", "layers"),
    [("mlp", 2), ("mlp", 4), ("lstm", 1), ("lstm", 2), ("tpmlp", 2), ("embedding", 2)],
)
def test_an_encoder_that_was_not_evaluated_is(tmp_path, kind, layers, under_key):
    encoder = nemo.trained(PromptEncoder(kind, layers))
    state: Any = {"prompt_encoder": encoder.state()} if under_key else encoder.state()
    checkpoint = read_checkpoint(packed(tmp_path / "p.nemo", state, config("taskname")))
    with torch.no_grad():
        want = encoder().numpy()
    assert want.shape == (TOKENS, WIDTH)
    assert np.abs(checkpoint.virtual_tokens - want).max() < 1e-6


def test_what_the_encoder_gave_is_taken_where_nemo_kept_it(tmp_path):
    """As its own inference and its exporters do: they run no encoder."""
    encoder = nemo.trained(PromptEncoder("mlp"))
    kept = torch.randn(TOKENS, WIDTH)
    encoder.inference_table.prompt_table["taskname"].prompt_embeddings.weight.data = kept
    path = packed(tmp_path / "p.nemo", encoder.state(), config("taskname"))
    assert np.array_equal(read_checkpoint(path).virtual_tokens, kept.numpy())


@pytest.mark.parametrize(
    "name", ["inference_table", "inference_table.prompt_table.taskname.prompt_embeddings.weight"]
)
@pytest.mark.parametrize(
    "where", [WEIGHTS, f"mp_rank_00/{WEIGHTS}", f"tp_rank_00_pp_rank_000/{WEIGHTS}"]
)
def test_the_later_adapter_is_read(tmp_path, name, where):
    state = {f"{ADAPTER}{name}": torch.randn(TOKENS, WIDTH).bfloat16()}
    state[f"{ADAPTER}first.weight"] = torch.randn(24, WIDTH)
    settings = config(position_embedding_type="rope", peft={"peft_scheme": "ptuning"})
    checkpoint = read_checkpoint(packed(tmp_path / "p.nemo", state, settings, where))
    assert np.array_equal(checkpoint.virtual_tokens, state[f"{ADAPTER}{name}"].float().numpy())
    assert checkpoint.dtype == "bfloat16"


def test_a_compiled_archive_is_in_parity_with_transformers(tmp_path, capsys):
    tiny.make(tmp_path, "gpt2", "CAUSAL_LM")
    path, table = nemo.table_archive(tmp_path / "p.nemo", "one", "two")
    bundle = tmp_path / "bundle"
    told = ["--adapter", "two", "--base", str(tmp_path / "base")]
    assert main(["compile", str(path), *told, "--target", "ort", "-o", str(bundle)]) == 0
    assert "run transformers on PyTorch, each row alone" in capsys.readouterr().err
    report = json.loads((bundle / "prompts/default/parity.json").read_text())
    assert report["reference"].startswith("transformers ")
    assert max(case["max_abs"] for case in report["cases"]) < 1e-5
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval()
    tokens = table.prompt_table["two"].prompt_embeddings.weight.detach()
    for row, found in zip(ROWS, ptdeploy.load(bundle).logits(ROWS), strict=True):
        embeds = torch.cat([tokens, model.get_input_embeddings()(torch.tensor(row))])
        with torch.no_grad():
            want = model(inputs_embeds=embeds[None]).logits[0, TOKENS:]
        assert np.abs(found - want.numpy()).max() < 1e-5
    assert main(["verify", str(bundle), "--checkpoint", str(path), *told]) == 0
    assert "run transformers on PyTorch, each row alone" in capsys.readouterr().err


def test_inspect_says_what_an_archive_holds(tmp_path, capsys):
    path, _ = nemo.table_archive(tmp_path / "p.nemo", "one")
    assert main(["inspect", str(path)]) == 0
    text = capsys.readouterr().out
    assert "NeMo archive" in text
    assert "task CAUSAL_LM, adapter 'one'" in text
    assert f"{TOKENS} virtual tokens, {WIDTH} wide" in text
    assert "not named: pass --base" in text


def refused(path: Path, adapter: str | None = None, **how: Any) -> CheckpointError:
    with pytest.raises(CheckpointError) as error:
        read_checkpoint(path, adapter, **how)
    assert error.value.problem.startswith(str(path))
    return error.value


def test_several_tasks_need_a_name(tmp_path):
    path, _ = nemo.table_archive(tmp_path / "p.nemo", "one", "two")
    error = refused(path)
    assert "2 tasks: one, two" in error.problem
    assert "--adapter NAME" in error.fix
    assert "no task named 'three'; it holds one, two" in refused(path, "three").problem
    assert "has tasks by name" in refused(path, "one", task_id=0).problem


def state(**changes: torch.Tensor | None) -> dict[str, Any]:
    """A table's state with tensors replaced or, with None, left out; `_` stands for a dot."""
    table = nemo.trained(nemo.PromptTable("one")).state_dict()
    name = "prompt_table.one.prompt_embeddings.weight"
    return {"prompt_table": {name: changes.get("table", table[name])}}


def encoder_state(drop: str = "", kind: str = "mlp", **more: Any) -> dict[str, Any]:
    parts = nemo.trained(PromptEncoder(kind)).state()
    flat = {f"{part}.{name}": t for part, found in parts.items() for name, t in found.items()}
    return {name: tensor for name, tensor in {**flat, **more}.items() if name != drop}


def first_encoder(**table: torch.Tensor) -> dict[str, Any]:
    """As the first P-Tuning saved it in the middle of its training."""
    encoder = nemo.trained(PromptEncoder("lstm")).state_dict()
    own = {n: t for n, t in encoder.items() if "inference" not in n}
    return {"prompt_encoder": own, **(state(**table) if table else {})}


def nan() -> torch.Tensor:
    return torch.full((TOKENS, WIDTH), float("nan"))


def template(text: str) -> dict[str, Any]:
    found = config("one")
    found["task_templates"][0]["prompt_template"] = text
    return found


def tokens(count: Any) -> dict[str, Any]:
    found = config("one")
    found["task_templates"][0]["total_virtual_tokens"] = count
    return found


LARGE = torch.full((WIDTH, 24), 3e38)
ADAPTED = {f"{ADAPTER}inference_table": torch.ones(TOKENS, WIDTH)}
SPLIT = "<|VIRTUAL_PROMPT_0|> a {x} <|VIRTUAL_PROMPT_1|>"
LATE, SWAPPED = "a <|VIRTUAL_PROMPT_0|> {x}", "<|VIRTUAL_PROMPT_1|><|VIRTUAL_PROMPT_0|> {x}"
BAD_STATES: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    (state(table=nan()), config("one"), f"{WEIGHTS}: the table of task 'one' holds 160 NaN"),
    (state(table=torch.ones(160)), config("one"), "has shape (160,), not (tokens, width)"),
    (state(table=torch.zeros(TOKENS, WIDTH)), config("one"), "is all zeros"),
    (state(table=torch.ones(4, WIDTH)), config("one"), "is 5, but the archive holds 4"),
    (state(table=torch.ones(5, 32).long()), config("one"), "int64 values, not floating point"),
    ({"lora.weight": torch.ones(1)}, config(), "holds no virtual tokens and no prompt encoder"),
    (encoder_state("mlp_head.0.bias"), config("taskname"), "misses mlp_head.0.bias"),
    (
        encoder_state(**{"embeddings.weight": torch.ones(TOKENS)}),
        config("taskname"),
        "no two-dimensional table",
    ),
    (
        encoder_state(**{"mlp_head.2.weight": torch.ones(WIDTH, 7)}),
        config("taskname"),
        "layers do not fit one another",
    ),
    (encoder_state("mlp_head.2.bias", "lstm"), config("taskname"), "misses mlp_head.2.bias"),
    (encoder_state("lstm_head.bias_hh_l1", "lstm"), config("taskname"), "do not fit one another"),
    (
        encoder_state(
            **{"mlp_head.2.bias": torch.full((WIDTH,), 3e38), "mlp_head.2.weight": LARGE}
        ),
        config("taskname"),
        "gives NaN or infinite values",
    ),
    (first_encoder(), config("taskname"), "own embeddings of the task's name"),
    (
        first_encoder(table=torch.zeros(TOKENS, WIDTH)),
        config("one"),
        "own embeddings of the task's name",
    ),
    (ADAPTED, config(), "position_embedding_type is learned_absolute"),
    (state(), config("one", target="x.MegatronT5PromptLearningModel"), "encoder-decoder"),
    (state(), config("one", data={"add_bos": True}), "add_bos is true"),
    (state(), config("one", data={"train_ds": {"add_bos": True}}), "add_bos is true"),
    (state(), template(SPLIT), "does not begin with all of its virtual tokens"),
    (state(), template(LATE), "does not begin with all of its virtual tokens"),
    (state(), template(SWAPPED), "does not begin with all of its virtual tokens"),
    (state(), tokens("5"), "total_virtual_tokens of task 'one' is '5'"),
]


@pytest.mark.parametrize(("weights", "settings", "problem"), BAD_STATES)
def test_what_would_not_run_as_it_was_trained_is_refused(tmp_path, weights, settings, problem):
    assert problem in refused(packed(tmp_path / "p.nemo", weights, settings)).problem


def test_an_encoder_in_parts_of_ranks_is_refused(tmp_path):
    path = packed(tmp_path / "p.nemo", encoder_state(), config("taskname"), f"mp_rank_00/{WEIGHTS}")
    assert "in parts of several ranks" in refused(path).problem


def kind(
    type_: bytes, name: str = "x", link: str = "", size: int = 0
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = type_, link, size
    return info, b""


def sparse() -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo("x")
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "x"}
    info.pax_headers["GNU.sparse.realsize"] = str(1 << 40)
    content = b"1\n0\n1\n".ljust(512, b"\0") + b"y"
    info.size = len(content)
    return info, content


HOSTILE: list[tuple[tuple[tarfile.TarInfo, bytes], str]] = [
    (member("../../x"), "leads out of the archive"),
    ((tarfile.TarInfo("/etc/x"), b""), "leads out of the archive"),
    ((tarfile.TarInfo("a/../../x"), b""), "leads out of the archive"),
    (kind(tarfile.SYMTYPE, link="/etc/passwd"), "is a link"),
    (kind(tarfile.LNKTYPE, link=f"./{CONFIG}"), "is a link"),
    (kind(tarfile.SYMTYPE, WEIGHTS, "/etc/passwd"), "is a link"),
    (kind(tarfile.CHRTYPE), "is a device"),
    (kind(tarfile.FIFOTYPE), "is a device"),
    (kind(tarfile.REGTYPE, size=1 << 50), f"says it is {1 << 50} bytes long"),
    (sparse(), "is a sparse file"),
    (member(CONFIG, b"{}"), "stands twice"),
    ((tarfile.TarInfo(WEIGHTS), b""), "stands twice"),
    (member(f"a/.././{WEIGHTS}"), "leads out of the archive"),
]


@pytest.mark.parametrize(("more", "problem"), HOSTILE)
@pytest.mark.parametrize("gzipped", [False, True])
def test_a_hostile_member_is_refused_and_nothing_written(
    tmp_path, monkeypatch, capsys, more, problem, gzipped
):
    monkeypatch.chdir(tmp_path)
    path, _ = nemo.table_archive(tmp_path / "p.nemo", "one", more=[more], gzipped=gzipped)
    told = ["--base", "nowhere", "--target", "ort", "-o", "bundle", "-q"]
    assert main(["compile", str(path), *told]) == 2
    assert problem in capsys.readouterr().err
    assert list(tmp_path.rglob("*")) == [path]


def test_a_compression_bomb_is_refused(tmp_path):
    more = [member("zeros", bytes(80 << 20))]
    path, _ = nemo.table_archive(tmp_path / "p.nemo", "one", more=more, gzipped=True)
    assert path.stat().st_size < 1 << 20
    assert "unpacks to more than" in refused(path).problem


def raw_config(path: Path, text: bytes) -> Path:
    with tarfile.open(path, "w:") as archive:
        info, content = member(CONFIG, text)
        archive.addfile(info, io.BytesIO(content))
    return path


BOMB = "a: &a [x, x]\n" + "".join(
    f"{c}: &{c} [*{p}, *{p}]\n" for p, c in zip("abcd", "bcde", strict=True)
)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (BOMB.encode(), "uses a YAML alias (*a)"),
        (b"a: " + b"[" * 40 + b"]" * 40, "more than 32 levels deep"),
        (b"a: !!python/object/apply:os.system [touch x]", "not valid YAML of plain data"),
        (b"- a", "holds a YAML list"),
        (b"", "holds a YAML NoneType"),
        (b"a: !!int ''", "not valid YAML"),
        (b"\xff\xfe\xfd", "not valid YAML"),
        (b"a: " + b"9" * 5000, "not valid YAML"),
        (b"#" * (300 * 1024), "more than the 262144 that it may be"),
        (yaml.safe_dump(config("one")).encode(), f"holds no {WEIGHTS}"),
    ],
)
def test_a_hostile_configuration_is_refused(tmp_path, text, problem):
    assert problem in refused(raw_config(tmp_path / "p.nemo", text)).problem


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def noise(path: Path) -> None:
    path.write_bytes(np.random.default_rng(0).bytes(5000))


@pytest.mark.parametrize("damage", [cut, emptied, noise])
@pytest.mark.parametrize("gzipped", [False, True])
def test_a_damaged_archive_is_refused(tmp_path, damage: Callable[[Path], None], gzipped):
    path, _ = nemo.table_archive(tmp_path / "p.nemo", "one", gzipped=gzipped)
    damage(path)
    assert "not a whole tar archive" in refused(path).problem


def test_an_archive_without_a_configuration_is_refused(tmp_path):
    path = tmp_path / "p.nemo"
    tarfile.open(path, "w:").close()
    assert f"holds no {CONFIG}" in refused(path).problem


class Evil:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("run"),)


def test_code_in_the_weights_does_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = packed(tmp_path / "p.nemo", {"prompt_table": Evil()}, config("one"))
    error = refused(path)
    assert f"{path}: {WEIGHTS}: holds pickled Python objects" in error.problem
    assert list(tmp_path.iterdir()) == [path]

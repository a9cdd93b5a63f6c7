"""The reference from PEFT itself: no frozen prompt, program, graph or pass of ours is in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ptdeploy.bundle import RequestLimits
from ptdeploy.bundle.task import Task
from ptdeploy.errors import CheckpointError
from ptdeploy.parity.cases import BASE_ROWS, AskedRow, Comparison, Padding, pad
from ptdeploy.parity.quality import EvaluationText, text_row
from ptdeploy.parity.reference import Greedy, Reference, ReferenceRow
from ptdeploy.program.kinds import kind_of
from ptdeploy.progress import Progress
from ptdeploy.source.base import BaseModel, quiet_libraries
from ptdeploy.source.base_weights import load_pretrained
from ptdeploy.source.checkpoint import Checkpoint
from ptdeploy.source.checkpoint.names import TEXT_EMBEDDINGS, copy_of
from ptdeploy.source.checkpoint.peft_adapter import WEIGHT_NAMES, read_adapter
from ptdeploy.source.checkpoint.peft_config import CONFIG_NAME
from ptdeploy.source.checkpoint.peft_objects import (
    DEFAULT_ADAPTER,
    modules_to_save,
    own_config,
)
from ptdeploy.source.checkpoint.state_dict import read_state
from ptdeploy.source.checkpoint.types import FACTORS
from ptdeploy.source.tied import untie

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel

    from ptdeploy.parity.reference.plain import PromptedModel

_GREEDY_ROWS = (0, 4, 6)
_GREEDY_TOKENS = 16
# Of a large vocabulary a long row has logits at its last positions alone, as measuring takes a
# multiple of their memory: at so many, or at more where they fit into so many bytes.
_LAST_POSITIONS, _ROW_BYTES = 64, 8 << 20


@dataclass(frozen=True)
class PeftSource:
    """A checkpoint, the base model it fits, and PEFT's model of both, loaded."""

    checkpoint: Checkpoint
    base: BaseModel
    model: PeftModel | PromptedModel = field(repr=False)


def open_peft(checkpoint: Checkpoint, base: BaseModel) -> PeftSource:
    """Load PEFT's model of a checkpoint and its base. Raises as `peft_model`."""
    return PeftSource(checkpoint, base, peft_model(checkpoint, base))


def peft_model(checkpoint: Checkpoint, base: BaseModel) -> PeftModel | PromptedModel:
    """The checkpoint as PEFT loads it, on the base model as transformers loads it; fp32, eval.

    What PEFT has no loader for is put before the text by hand.
    Raises BaseModelError as load_pretrained does, and CheckpointError if PEFT leaves out a tensor
    that the checkpoint brings.
    """
    model = load_pretrained(checkpoint, base)
    if not checkpoint.of_peft:
        from ptdeploy.parity.reference.plain import PromptedModel

        _lay_over(checkpoint, model)
        return PromptedModel(model, checkpoint).eval()
    # PEFT makes the copies itself; what it loads into the model's own place is parted before.
    own = {n: a for n, a in checkpoint.weights.items() if n not in checkpoint.copied}
    untie(model, own, {})
    with quiet_libraries():
        if checkpoint.weights_file.name in WEIGHT_NAMES:
            peft = _from_adapter(checkpoint, model)
        else:
            peft = _from_state_dict(checkpoint, model)
    _check_taken(checkpoint, peft)
    return peft.eval()


def _lay_over(checkpoint: Checkpoint, model: PreTrainedModel) -> None:
    """Give the model the checkpoint's own weights, in the place of the base's."""
    import torch

    own = model.state_dict()
    untie(model, checkpoint.weights, checkpoint.copied)
    model.load_state_dict(
        {n: torch.from_numpy(np.array(a)) for n, a in checkpoint.weights.items() if n in own},
        strict=False,
    )


def _from_adapter(checkpoint: Checkpoint, model: PreTrainedModel) -> PeftModel:
    from peft import get_peft_model, set_peft_model_state_dict

    config = own_config(checkpoint)
    config.inference_mode = True
    peft = get_peft_model(model, config, DEFAULT_ADAPTER)
    set_peft_model_state_dict(peft, read_adapter(checkpoint.weights_file), DEFAULT_ADAPTER)
    if checkpoint.task_id is not None:
        _fix_task(peft, checkpoint.task_id)
    return peft


def _fix_task(peft: PeftModel, task_id: int) -> None:
    """Have PEFT put the prompt of one task before every row, as callers of it ask by `task_ids`."""
    import torch

    of_tasks = peft.get_prompt

    def of_task(batch_size: int, *_: Any, **__: Any) -> torch.Tensor:
        prompt: torch.Tensor = of_tasks(batch_size, torch.full((batch_size,), task_id))
        return prompt

    peft.get_prompt = of_task


def _from_state_dict(checkpoint: Checkpoint, model: PreTrainedModel) -> PeftModel:
    import torch
    from peft import get_peft_model

    peft = get_peft_model(model, _config(checkpoint), DEFAULT_ADAPTER)
    places = _places(peft)
    stored, live = read_state(checkpoint.weights_file), peft.state_dict()
    for name in (one for one in stored.keys() & live.keys() if ".original_module." in one):
        # Token embeddings are run so, for a text beside virtual tokens.
        if stored[name].shape == live[name].shape:
            places[name] = name
    places[copy_of(TEXT_EMBEDDINGS, checkpoint.adapter)] = copy_of(TEXT_EMBEDDINGS, DEFAULT_ADAPTER)
    encoder = f"prompt_encoder.{checkpoint.adapter}."
    state = {}
    for name, tensor in stored.items():
        if place := places.get(_own_name(name, checkpoint.adapter) or name):
            state[place] = tensor.to(torch.float32)
        elif name.startswith(encoder):
            own = f"prompt_encoder.{DEFAULT_ADAPTER}.{name.removeprefix(encoder)}"
            state[own] = tensor.to(torch.float32)
    missing = peft.load_state_dict(state, strict=False).missing_keys
    if lost := next((name for name in missing if name.startswith("prompt_encoder.")), None):
        own = lost.replace(f".{DEFAULT_ADAPTER}.", f".{checkpoint.adapter}.", 1)
        raise CheckpointError(
            f"{checkpoint.weights_file}: lacks {own}, which PEFT's model of it has.",
            "Save the whole model.state_dict() of the model that was trained.",
        )
    if checkpoint.task_id is not None:
        _fix_task(peft, checkpoint.task_id)
    return peft


def _config(checkpoint: Checkpoint) -> Any:
    """PEFT's own configuration beside a state dict, or what the tensors say of one."""
    import peft

    encoder = checkpoint.encoder
    if (checkpoint.weights_file.parent / CONFIG_NAME).is_file():
        config = own_config(checkpoint)
        # An evaluated prompt is in the place of its encoder where PEFT loads one for inference.
        config.inference_mode = not checkpoint.resumable
        config.modules_to_save = config.modules_to_save or modules_to_save(checkpoint)
        return config
    shape: dict[str, Any] = {
        "task_type": checkpoint.task.value,
        "num_virtual_tokens": checkpoint.num_virtual_tokens,
        "token_dim": checkpoint.token_dim,
        # These kinds ignore these two, but PEFT refuses bases whose config names them otherwise.
        "num_layers": 1,
        "num_attention_heads": 1,
        "modules_to_save": modules_to_save(checkpoint),
    }
    if checkpoint.all_tasks:
        ranks = checkpoint.all_tasks[FACTORS[0]].shape[2]
        return peft.MultitaskPromptTuningConfig(
            **shape, num_tasks=checkpoint.num_tasks, num_ranks=ranks
        )
    assert encoder is not None, "of other kinds the config says what the tensors are"
    return peft.PromptEncoderConfig(
        **shape,
        encoder_reparameterization_type=encoder.kind,
        encoder_hidden_size=encoder.hidden_size,
        encoder_num_layers=encoder.num_layers,
    )


def _own_name(name: str, adapter: str) -> str | None:
    """A tensor's name in the base model, by its name in PEFT's; None for one that is not used.

    Which modules PEFT copies for an adapter differs by its version.
    """
    if not name.startswith("base_model.") or ".original_module." in name:
        return None
    return name.removeprefix("base_model.").replace(f".modules_to_save.{adapter}.", ".")


def _places(peft: PeftModel) -> dict[str, str]:
    """PEFT's name for each of the base model's tensors."""
    found = {}
    for name in peft.state_dict():
        own = _own_name(name, DEFAULT_ADAPTER)
        if own is not None:
            found[own] = name
    return found


def _check_taken(checkpoint: Checkpoint, peft: PeftModel) -> None:
    """Refuse a reference without the checkpoint's own weights: it would be of another model.

    PEFT says nothing where it leaves a tensor of the file out.
    """
    import torch

    live = peft.state_dict()
    places = _places(peft)
    whole = "Save the full state dict, torch.save(model.state_dict(), PATH), and compile that."
    adapter = "Save the adapter, model.save_pretrained(FOLDER), and compile that."
    trained = dict(checkpoint.weights)
    if checkpoint.text_embeddings is not None:
        places[TEXT_EMBEDDINGS] = copy_of(TEXT_EMBEDDINGS, DEFAULT_ADAPTER)
        trained[TEXT_EMBEDDINGS] = checkpoint.text_embeddings
    for name, value in trained.items():
        taken = live.get(places.get(name, ""))
        # What is not among the model's own is a buffer of another version: see resolve_base.
        of_base = name != TEXT_EMBEDDINGS
        if of_base and (taken is None or tuple(taken.shape) != value.shape):
            continue
        if taken is None or not torch.equal(taken.float(), torch.from_numpy(np.array(value))):
            raise CheckpointError(
                f"{checkpoint.weights_file}: PEFT does not load {name} from it, so nothing here "
                "shows what an engine of it should give.",
                whole if checkpoint.weights_file.name in WEIGHT_NAMES else adapter,
            )


def compute_reference(
    checkpoint: Checkpoint,
    base: BaseModel,
    limits: RequestLimits,
    asked: Comparison,
    evaluation: EvaluationText | None = None,
    model: PeftModel | PromptedModel | None = None,
    progress: Progress | None = None,
) -> Reference:
    """Run PEFT on every row alone: logits, and for a causal model greedy continuations.

    `evaluation` is the evaluation text of a quantized engine. `model` is loaded unless given.
    """
    import torch

    progress = progress or Progress(quiet=True)
    model = model or peft_model(checkpoint, base)
    rows, task = asked.rows, checkpoint.task
    beside = _rows_without_prompt(checkpoint, base, len(rows), evaluation is not None)
    alone = _base_alone(checkpoint, model) if beside else None
    with torch.no_grad(), quiet_libraries():
        computed = tuple(
            _reference_row(model, task, row, alone if index in beside else None)
            for index, row in enumerate(progress.within(rows, "rows"))
        )
        greedy: tuple[Greedy, ...] = ()
        random = [row.ids for row in rows if row.source == "random"]
        chosen = [random[i] for i in _GREEDY_ROWS if i < len(random)]
        if base.kind.generates:
            continued = [*chosen, *_greedy_edges(rows, limits)]
            greedy = tuple(_greedy(model, ids, limits.max_sequence) for ids in continued)
        base_greedy = None
        asked_alone = [rows[i].ids for i in BASE_ROWS if i in beside]
        if base.kind.generates and alone is not None and asked_alone:
            middle = asked_alone[len(asked_alone) // 2]
            base_greedy = _base_greedy(alone, middle, limits.max_sequence)
        mismatch = None
        if chosen and checkpoint.of_peft and base.kind.padded_on is not None:
            mismatch = _padded_mismatch(model, base, chosen, base.kind.padded_on)
        texts = tuple(
            text_row(row, row_logits(model, task, row.ids, row.type_ids), task)
            for row in progress.within(evaluation.rows if evaluation else (), "evaluation texts")
        )
    return Reference(
        computed,
        tuple(one for one in greedy if one.tokens.size),
        asked.cases,
        asked.thresholds,
        made_by=f"{_software(checkpoint)} on PyTorch {torch.__version__}, fp32, each row alone",
        padded_mismatch=mismatch,
        evaluation=texts,
        evaluated_on=evaluation.source if evaluation else "",
        base_greedy=base_greedy,
    )


def _rows_without_prompt(
    checkpoint: Checkpoint, base: BaseModel, rows: int, quantized: bool
) -> frozenset[int]:
    """The places of the rows that are computed without the prompt, too.

    Of quantized weights all, to tell what the prompt changes; of a model that writes a few, as its
    engine is asked without a prompt.
    """
    if checkpoint.num_virtual_tokens == 0:
        return frozenset()
    if quantized:
        return frozenset(range(rows))
    if not base.kind.generates:
        return frozenset()
    return frozenset(place for place in BASE_ROWS if place < rows)


def _base_alone(checkpoint: Checkpoint, model: PeftModel | PromptedModel) -> Callable[..., Any]:
    """The model without its prompt, as the engine has it.

    The text may have token embeddings of its own beside virtual tokens, which are not those that
    the base model runs: they are the engine's, with a prompt and without one.
    """
    base: Callable[..., Any] = model.get_base_model()
    own = checkpoint.copied or checkpoint.text_embeddings is not None
    if checkpoint.prefix_kv is not None or not own:
        return base
    words: Any = model.word_embeddings

    def embedded(input_ids: torch.Tensor, **given: Any) -> Any:
        return base(inputs_embeds=words(input_ids), **given)

    return embedded


def _software(checkpoint: Checkpoint) -> str:
    import peft
    import transformers

    if checkpoint.of_peft:
        return f"PEFT {peft.__version__}"
    return f"transformers {transformers.__version__}"


def row_inputs(ids: NDArray[np.int64], type_ids: NDArray[np.int64] | None = None) -> dict[str, Any]:
    """What PEFT's model is given for one unpadded row."""
    import torch

    tokens = torch.from_numpy(ids)[None]
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    if type_ids is not None:
        inputs["token_type_ids"] = torch.from_numpy(type_ids)[None]
    return inputs


def row_logits(
    model: Callable[..., Any],
    task: Task,
    ids: NDArray[np.int64],
    type_ids: NDArray[np.int64] | None = None,
) -> NDArray[np.float32]:
    """A model's logits for one unpadded row, without those of the virtual tokens."""
    import torch

    with torch.no_grad(), quiet_libraries():
        logits = model(**row_inputs(ids, type_ids)).logits[0]
    own = kind_of(task).text_logits(logits, ids.size)
    array: NDArray[np.float32] = own.float().numpy()
    return array


def _reference_row(
    model: PeftModel | PromptedModel, task: Task, row: AskedRow, alone: Callable[..., Any] | None
) -> ReferenceRow:
    """PEFT's logits for a row, and beside them those of the same model without its prompt.

    A trained head belongs to both.
    """
    without = None
    if alone is not None and row.source != "data":
        without = _kept_logits(alone, task, row)
    logits = _kept_logits(model, task, row)
    return ReferenceRow(row.ids, logits, row.source, row.type_ids, without)


def _kept_logits(model: Callable[..., Any], task: Task, row: AskedRow) -> NDArray[np.float32]:
    """A model's logits for a row, all of them of the caller's own, which are scored as a whole."""
    logits = row_logits(model, task, row.ids, row.type_ids)
    most = max(_LAST_POSITIONS, _ROW_BYTES // (4 * logits.shape[-1]))
    if logits.ndim == 1 or row.source == "data" or len(logits) <= most:
        return logits
    return logits[-most:].copy()


def _greedy_edges(rows: Sequence[AskedRow], limits: RequestLimits) -> list[NDArray[np.int64]]:
    """The longest row, continued to the context's last position if it is that near, and a text."""
    longest = max((row.ids for row in rows if row.source == "random"), key=len, default=None)
    room = limits.max_sequence - _GREEDY_TOKENS
    edges = []
    if longest is not None and room > 0:
        edges.append(longest[:room])
    texts = [row.ids[:room] for row in rows if row.source == "text" and room > 0]
    return edges + texts[:1]


def _greedy(model: PeftModel | PromptedModel, ids: NDArray[np.int64], limit: int) -> Greedy:
    import torch

    steps = min(_GREEDY_TOKENS, limit - ids.size)
    if steps < 1:
        return Greedy(ids, np.zeros(0, np.int64), np.zeros(0, np.float32))
    tokens = torch.from_numpy(ids)[None]
    new, scores = _continued(model, tokens, steps)
    top = scores.topk(2, dim=-1).values
    return Greedy(ids, new.numpy(), (top[:, 0] - top[:, 1]).numpy())


def _base_greedy(base: Callable[..., Any], ids: NDArray[np.int64], limit: int) -> Greedy | None:
    """As `_greedy` without the prompt; each step runs the whole row. None where none has room."""
    import torch

    first, tops = ids.size, []
    for _ in range(min(_GREEDY_TOKENS, limit - first)):
        top = base(**row_inputs(ids)).logits[0, -1].float().topk(2)
        ids = np.append(ids, int(top.indices[0]))
        tops.append(top.values)
    if not tops:
        return None
    best = torch.stack(tops)
    return Greedy(ids[:first], ids[first:], (best[:, 0] - best[:, 1]).numpy())


def _continued(
    model: PeftModel | PromptedModel, tokens: torch.Tensor, steps: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The likeliest tokens after one row, and their scores, (tokens, vocabulary)."""
    import torch
    from transformers import GenerationConfig

    from ptdeploy.parity.reference.plain import PromptedModel

    if isinstance(model, PromptedModel):
        return model.continued(tokens, steps)
    # A configuration of our own: the model's may sample, penalise or stop early.
    config = GenerationConfig(
        max_new_tokens=steps, min_new_tokens=None, do_sample=False, num_beams=1, pad_token_id=0
    )
    base = model.get_base_model()
    base.generation_config = config
    output = model.generate(
        input_ids=tokens,
        attention_mask=torch.ones_like(tokens),
        generation_config=config,
        return_dict_in_generate=True,
        output_logits=True,
    )
    scores = torch.stack([step[0].float() for step in output.logits])
    return output.sequences[0, -len(scores) :], scores


def _padded_mismatch(
    model: PeftModel, base: BaseModel, rows: Sequence[NDArray[np.int64]], side: Padding
) -> float | None:
    """By how much PEFT's own padded batch differs from its rows alone: in their class scores, or at
    the last token. None where transformers classifies no batch, as it is told no padding id.

    PEFT numbers positions over padding (it drops position_ids), and behind virtual tokens reads a
    class at padding, so this is no fault of an engine; users who compare with such a batch need to
    know.
    """
    import torch

    def last(ids: NDArray[np.int64], mask: NDArray[np.int64]) -> torch.Tensor:
        logits: torch.Tensor = model(
            input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)
        ).logits
        return logits if logits.dim() == 2 else logits[:, -1]

    padding = 0 if base.kind.generates else base.pad_token_id
    if padding is None:
        return None
    ids, mask = pad(rows, side)
    alone = [last(row[None], np.ones_like(row[None])) for row in rows]
    batch = last(np.where(mask == 1, ids, padding), mask)
    return float((batch - torch.cat(alone)).abs().max())

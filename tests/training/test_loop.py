import json
import shutil
from contextlib import nullcontext
from functools import partialmethod
from unittest.mock import Mock

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rvlr_lib import models
from rvlr_lib.config import TrainSettings
from rvlr_lib.losses import DISTANCES, LossWeights, _checks, matching
from rvlr_lib.training import loop
from rvlr_lib.training.features import encode
from rvlr_lib.training.loop import Execution, Training, cross_modal_recall
from tests.training.conftest import OWNER, assert_equal, make_batches, make_cached, make_objective, make_pairs, train

ALL = dict.fromkeys(LossWeights.__dataclass_fields__, 1.0) | {"matching": 2, "anchor": 0.1}


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_heads_overfit_32_pairs():
    objective = make_objective(fusion_layers=0)
    train(objective, epochs=40, learning_rate=5e-3, batch_size=32)
    assert cross_modal_recall(*encode(objective.student, make_cached()), OWNER)["r_mean"] > 95


def test_whole_towers_overfit_32_pairs(towers):
    objective = make_objective(towers=towers, fusion_layers=0)
    options = {"epochs": 60, "batch_size": 32, "learning_rate": 2e-3, "crop_scale": (0.99, 1.0), "flip": False}
    train(objective, towers=towers, **options)
    assert cross_modal_recall(*encode(objective.student, make_pairs()), OWNER)["r_mean"] > 90


def test_the_log_has_learning_rate_and_temperatures(tmp_path):
    fitted = train(make_objective(fusion_layers=0), log=tmp_path / "log", log_every=3)
    assert [line["step"] for line in lines(tmp_path / "log")] == [0, 3, 4, 6, 7, 8]
    assert fitted.best_epoch == 0  # though its score is 0
    train(make_objective(fusion_layers=0, structure=1), log=tmp_path / "log", learning_rate=1e-3, warmup=0.25)
    steps = [line for line in lines(tmp_path / "log") if "total" in line]
    assert {"fusion_weight", "temperature", "relation_temperature"} <= steps[0].keys()
    rates = [1 / 2, 1, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]
    assert [1000 * line["learning_rate"] for line in steps] == pytest.approx(rates)


def test_the_best_epoch_is_kept():
    scores, states = iter([1.0, 3.0, 2.0]), []
    objective = make_objective(fusion_layers=0)

    def validate():
        states.append({name: value.clone() for name, value in objective.state_dict().items()})
        return {"score": next(scores), "other": 5.0}

    fitted = train(objective, epochs=3, validate=validate)
    assert (fitted.best_epoch, fitted.best_score) == (1, 3.0)
    assert [(line["epoch"], line["other"]) for line in fitted.history] == [(0, 5.0), (1, 5.0), (2, 5.0)]
    assert_equal(fitted.state, states[1])


def test_weight_decay_spares_biases_norms_and_scalars_and_the_towers_rate_projections_and_new_modules():
    objective = make_objective(**ALL)
    decayed, spared = loop.build_optimizer(objective, TrainSettings(), 10)[0].param_groups
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.01, 0)
    assert all(parameter.ndim > 1 for parameter in decayed["params"])
    trained = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    assert len(decayed["params"] + spared["params"]) == len(trained)
    names = "visual.conv1 text.transformer visual.proj text.text_projection visual.head.proj fusion.text_in".split()
    assert [bool(loop.TOWER_BODY.match(f"student.{name}.weight")) for name in names] == [True, True, *[False] * 4]


class Reads(TorchDispatchMode):
    """Calls ``note`` on operations that make the host wait for a GPU: reading or sending numbers, dynamic shapes."""

    def __init__(self, note):
        super().__init__()
        self.note = note

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        waits = "_local_scalar_dense nonzero masked_select unique lift_fresh".split()
        if any(part in str(function) for part in waits):
            self.note(str(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", ["towers", "effnet_minilm", *DISTANCES])
def test_a_step_waits_for_the_device_only_to_log(towers, monkeypatch, kind):
    for module in (_checks, matching):  # as on a GPU
        monkeypatch.setattr(module, "readable", lambda value: False)
    towers = {"towers": lambda: towers, "effnet_minilm": models.build_towers}.get(kind, lambda: None)()
    batches = make_batches(towers, log_every=6)
    switches = {} if towers else {"distance": kind, "cost_gradient": True}
    training = Training(make_objective(switches, towers=towers, **ALL).train(), batches, "toy", Execution())
    # on a GPU the optimiser is one fused kernel; here its counters would be read
    monkeypatch.setattr(training.optimizer, "step", lambda: None)
    reads, epoch = [], batches.take(two_views=True, tokens=True)
    first = next(epoch)  # at the start of an epoch, the lengths of its captions are read
    for name in ("tolist", "cpu", "numpy"):
        read = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda self, name=name, read=read: reads.append(name) or read(self))
    with Reads(reads.append):
        training.train_step(first)
        assert reads  # step 0 is logged
        reads.clear()
        for inputs in [next(epoch) for _ in range(3)]:
            training.train_step(inputs)
    assert reads == []


POISONED = {"loss": "contrastive = inf", "gradient": "gradient norm = nan", "temperature": "log_temperature = nan"}


@pytest.mark.parametrize(("what", "message"), POISONED.items())
def test_values_that_are_not_finite_are_reported_at_the_next_log_with_their_step(tmp_path, what, message):
    objective, steps = make_objective(fusion_layers=0), []

    def poison(_module, _inputs, terms):
        steps.append(1)
        if len(steps) == 5:  # step 4
            if what == "loss":
                return terms | {"contrastive": terms["contrastive"] / 0}
            if what == "gradient":
                terms["contrastive"].register_hook(lambda gradient: gradient * float("nan"))
            else:
                objective.student.log_temperature.data.fill_(float("nan"))
        return terms

    objective.register_forward_hook(poison)
    with pytest.raises(FloatingPointError, match=f"toy, step 4: not finite: .*{message}"):
        train(objective, log=tmp_path / "log", log_every=6, epochs=3)
    assert len(steps) == 7  # reported at step 6
    assert [line["step"] for line in lines(tmp_path / "log") if "total" in line] == [0]


def test_out_of_memory_errors_name_the_batch_and_the_remedy(monkeypatch, refuses):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nand more")

    objective = make_objective(fusion_layers=0)
    monkeypatch.setattr(objective, "forward", full)
    refuses("toy, step 0: .*batch of 8: set a smaller batch_size.*2 GiB", train, objective)
    to = torch.Tensor.to
    move = lambda x, where: (full if isinstance(where, torch.device) else to)(x, where)  # noqa: E731
    monkeypatch.setattr(torch.Tensor, "to", move)
    refuses("cpu has no memory for 0.0 GB of cached features: set fewer model.views", make_batches)


def test_a_recorded_training_equals_the_plain_one(monkeypatch):
    device, gradients, calls, states = loop.choose_device(), Training._gradients, [], []

    def recorded(self, inputs):
        calls.append((lambda: gradients(self, inputs), gradients(self, inputs)))
        return calls[-1][1]

    def replay():
        for old, new in zip(*map(tree_leaves, (calls[-1][1], calls[-1][0]())), strict=True):
            old.detach().copy_(new)

    if device.type == "cpu":  # a replay computes the recorded call again, into the same tensors
        monkeypatch.setattr(Training, "_gradients", recorded)
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: Mock(replay=replay))
        monkeypatch.setattr(loop, "side_stream", nullcontext)
        for name in ("synchronize", "stream", "graph"):
            monkeypatch.setattr(torch.cuda, name, lambda *_, **__: nullcontext())
    for prepare in (Training._record, lambda self, inputs: None):
        monkeypatch.setattr(Training, "_prepare", prepare)
        states.append(train(make_objective(**ALL | {"matching": 0, "fusion_layers": 0}), device=device, epochs=3).state)
    assert_equal(*states)


def test_only_steps_of_fixed_shapes_on_a_gpu_are_recorded(monkeypatch, inputs):
    training, recorded = Training(make_objective(), make_batches(), "toy", Execution()), []
    monkeypatch.setattr(training, "_record", lambda inputs: recorded.append((training.device.type, inputs)))
    without_tokens = inputs._replace(images=inputs.images._replace(tokens=None))
    for device, batch in (("cpu", without_tokens), ("cuda", inputs), ("cuda", without_tokens)):
        training.device = torch.device(device)
        training._prepare(batch)
    assert recorded == [("cuda", without_tokens)]


COMPILED = [("eager", {"matching": 1, "structure": 1})]
INDUCTOR = "inductor", {"structure": 1, "image_intra": 1, "text_intra": 1, "fusion_layers": 0}
NEEDS_COMPILER = pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a compiler here")
COMPILED += [pytest.param(*INDUCTOR, marks=[pytest.mark.slow, NEEDS_COMPILER])]


@pytest.mark.parametrize(("backend", "terms"), COMPILED)
def test_a_training_compiled_once_equals_the_plain_one(capsys, monkeypatch, backend, terms):
    torch._dynamo.reset()
    monkeypatch.setattr(torch.nn.Module, "compile", partialmethod(torch.nn.Module.compile, backend=backend))
    monkeypatch.setattr(models.student, "HEAD_DROPOUT", 0.0)  # compiled code draws its own random numbers
    with torch._dynamo.config.patch(error_on_recompile=True):
        both = [Execution(compile=flag) for flag in (False, True)]
        plain, compiled = (train(make_objective(**terms), batch_size=32, epochs=4, execution=x) for x in both)
    torch.testing.assert_close(compiled.state, plain.state, atol=1e-4, rtol=1e-3)
    assert "toy: compiled in" in capsys.readouterr().out


def test_an_objective_that_cannot_be_compiled_trains_uncompiled_and_prints_one_line(capsys, monkeypatch):
    plain, broken = train(make_objective(matching=1)), make_objective(matching=1)

    def fails():
        raise RuntimeError("no compiler\nand a long trace")

    monkeypatch.setattr(broken, "compile", fails)
    assert_equal(train(broken, execution=Execution(compile=True)).state, plain.state)
    assert "toy: cannot be compiled (RuntimeError: no compiler): trains uncompiled\n" in capsys.readouterr().out


def test_gradient_checkpointing_keeps_the_gradients(towers, refuses):
    grads = []
    for checkpointing in (False, True):
        objective, batches = make_objective(towers=towers, matching=1).train(), make_batches(towers)
        training = Training(objective, batches, "toy", Execution(gradient_checkpointing=checkpointing))
        training.train_step(next(batches.take()))
        grads.append({name: parameter.grad for name, parameter in objective.named_parameters()})
    torch.testing.assert_close(grads[1], grads[0])
    module = torch.nn.Module()
    module.visual = torch.nn.Linear(1, 1)
    refuses(r"Linear \(visual\) does not support", loop.checkpoint_gradients, module)
    module.visual.set_grad_checkpointing = lambda enable: None  # like that of CLIP's ResNets
    refuses(r"Linear \(visual\) does not support", loop.checkpoint_gradients, module)

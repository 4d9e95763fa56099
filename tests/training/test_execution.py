"""What is said to change no result: compiled blocks, gradient checkpointing, attention in one kernel, no processes."""

import shutil

import pytest
import torch

from rvlr_lib.config import LossWeights, TrainSettings
from rvlr_lib.data import load_dataset
from rvlr_lib.models import Student, Teacher, build_towers
from rvlr_lib.training.gather import batch_dropout, gather_rows, gather_tokens, own_rows
from rvlr_lib.training.loop import BatchSource, Training
from rvlr_lib.training.objectives import TeacherObjective
from rvlr_lib.training.processes import Execution, checkpoint_gradients, compile_blocks, process_group, spread

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def scenes():
    return load_dataset("scenes", split="train", size=16)


@pytest.fixture(scope="module")
def towers():
    return build_towers("tiny")


def gradients(scenes, towers, modality, **execution):
    settings = TrainSettings(epochs=1, batch_size=8)
    source = BatchSource(scenes, towers.tokenizer, 48, settings, "images", seed=0)
    objective = TeacherObjective(Teacher(towers, modality)).train()
    torch.manual_seed(0)
    training = Training(objective, LossWeights(image_intra=1, text_intra=1), source, settings, CPU, "toy",
                        Execution(**execution))  # fmt: skip
    training.train_step(next(training.batches()))
    return {name: parameter.grad for name, parameter in objective.named_parameters()}


@pytest.mark.parametrize("modality", ["image", "text"])
def test_gradient_checkpointing_keeps_the_gradients(scenes, towers, modality, monkeypatch):
    calls, checkpoint = [], torch.utils.checkpoint.checkpoint
    from open_clip import transformer

    monkeypatch.setattr(transformer, "checkpoint", lambda *a, **k: calls.append(1) or checkpoint(*a, **k))
    plain = gradients(scenes, towers, modality)
    assert not calls
    cheap = gradients(scenes, towers, modality, gradient_checkpointing=True)
    assert len(calls) == (8 if modality == "image" else 4)  # two views through each layer
    for name, gradient in plain.items():
        torch.testing.assert_close(cheap[name], gradient, msg=name)


def test_a_tower_without_gradient_checkpointing_says_so():
    class Bare(torch.nn.Module):
        visual = None

    module = Bare()
    module.visual = torch.nn.Linear(1, 1)
    with pytest.raises(ValueError, match=r"Linear \(visual\) cannot do it"):
        checkpoint_gradients(module)


def test_compiling_takes_every_repeated_block_and_keeps_the_names_of_weights(towers):
    student = Student(towers, fusion_layers=2)
    names = list(student.state_dict())
    assert compile_blocks(student) == 4 + 2 + 2
    assert list(student.state_dict()) == names


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a compiler here")
@pytest.mark.parametrize("modality", ["image", "text"])
def test_compiled_gradients_are_the_plain_ones(scenes, towers, modality):
    plain, compiled = gradients(scenes, towers, modality), gradients(scenes, towers, modality, compile=True)
    for name, gradient in plain.items():
        torch.testing.assert_close(compiled[name], gradient, atol=1e-5, rtol=1e-3, msg=name)


def test_all_attention_goes_through_one_fused_kernel(towers, monkeypatch):
    calls, attention = [], torch.nn.functional.scaled_dot_product_attention
    student = Student(towers, fusion_layers=2).train()
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention",
                        lambda *a, **k: calls.append(1) or attention(*a, **k))  # fmt: skip
    images = student.encode_image(torch.rand(2, 3, 48, 48), tokens=True)
    assert len(calls) == 4
    texts = student.encode_text(towers.tokenizer(["a red disc", "two stars"]), tokens=True)
    assert len(calls) == 4 + 2
    student.match(images.tokens, texts.tokens, texts.mask)
    assert len(calls) == 4 + 2 + 2 * 2


def test_a_single_process_pays_nothing():
    rows, mask = torch.rand(4, 3, 2), torch.ones(4, 3, dtype=torch.bool)
    assert gather_rows(rows) is rows
    assert gather_tokens(rows, mask)[0] is rows
    assert own_rows(5) == slice(0, 5)
    torch.manual_seed(0)
    dropped = batch_dropout(rows, 0.5)
    torch.manual_seed(0)
    assert torch.equal(dropped, torch.nn.functional.dropout(rows, 0.5))
    module = torch.nn.Linear(1, 1)
    with process_group(CPU, 1) as found:
        assert found == (0, 1)
        assert spread(module) is module


@pytest.mark.parametrize(("batch", "count"), [(10, 3), (3, 3), (5, 2)])
def test_a_batch_that_does_not_divide_is_refused(batch, count, monkeypatch):
    from rvlr_lib.training import gather

    monkeypatch.setattr(gather, "processes", lambda: (0, count))
    with pytest.raises(ValueError, match=f"a batch of {batch} rows does not divide over {count}.*batch_size"):
        own_rows(batch)
    monkeypatch.setattr(gather, "processes", lambda: (1, 2))
    assert own_rows(8) == slice(4, 8)


def test_checkpoints_are_at_least_a_step_apart():
    with pytest.raises(ValueError, match="save_every=0"):
        Execution(save_every=0)

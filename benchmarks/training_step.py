"""A training step of ViT-B/32 at 224 px with all losses against the contrastive step, in bfloat16 on a GPU.

The ceiling is the ratio of the FLOPs of both steps: how fast the full step could be, relative to the contrastive one,
if it used the GPU equally well. ``--tiny`` runs the same code with a tiny model on the CPU.
"""

from contextlib import nullcontext
from typing import Any

import open_clip
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks._harness import ROOT, Options, Row, alternate, skipped, speed_row
from rvlr_lib.config import MethodSettings
from rvlr_lib.losses import LossWeights
from rvlr_lib.models import TowerStudent, build_towers
from rvlr_lib.training.batches import Inputs
from rvlr_lib.training.objectives import Objective

WHAT, AGAINST = "training step, all losses", "the contrastive step"
CONTRASTIVE = LossWeights(*[1.0], **dict.fromkeys(list(LossWeights.__dataclass_fields__)[1:], 0.0))


class Step:
    """One optimisation step of a student on a fixed batch."""

    def __init__(self, weights: LossWeights, towers: Any, batch: Inputs, device: str, fusion_layers: int) -> None:
        generator = torch.Generator().manual_seed(0)
        teachers = tuple(torch.randn(len(batch.images), width, generator=generator) for width in (1024, 768))
        student = TowerStudent(towers, fusion_layers=fusion_layers)
        objective = Objective(student, weights, MethodSettings(), teachers=teachers, seed=0)
        self.objective = objective.to(device).train()
        self.optimizer = torch.optim.AdamW(self.objective.parameters(), lr=1e-5)
        self.batch, self.weights = batch, weights
        self.precision = torch.autocast("cuda", torch.bfloat16) if device == "cuda" else nullcontext()

    def __call__(self) -> float:
        """Forward, backward, update; returns the loss."""
        terms = self.objective(self.batch, self.precision)
        total = torch.stack([getattr(self.weights, name) * term for name, term in terms.items()]).sum()
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        self.optimizer.step()
        return total.item()

    def flops(self) -> float:
        """FLOPs of a step, forward and backward."""
        with FlopCounterMode(display=False) as counter:
            self()
        return float(counter.get_total_flops())


def random_batch(count: int, towers: Any, tokens: int, device: str) -> Inputs:
    """Random pictures, and random captions of ``tokens`` tokens without padding."""
    generator = torch.Generator().manual_seed(1)
    rows = torch.arange(count, device=device)
    pixels = torch.rand(count, 3, towers.image_size, towers.image_size, generator=generator)
    return Inputs(
        pixels.to(device), torch.randint(1, 40_000, (count, tokens), generator=generator).to(device), rows, rows
    )


def peak(step: Step) -> float:
    """Peak GB of a step on the GPU; 0 on the CPU."""
    if not torch.cuda.is_available():
        return 0.0
    torch.cuda.reset_peak_memory_stats()
    step()
    return torch.cuda.max_memory_allocated() / 1e9


def rows(options: Options) -> list[Row]:
    """The share of the ceiling that the full step reaches."""
    tiny = options.size == "tiny"
    if not tiny and not torch.cuda.is_available():
        what = f"{WHAT}: ViT-B/32, 224 px, bfloat16, batch 256, 6 fusion layers on 40 tokens"
        return [skipped(what, AGAINST, "80 % of the FLOP ceiling", "needs a CUDA GPU")]
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        return [measured(options, tiny)]
    finally:
        torch.set_float32_matmul_precision(before)  # other benchmarks run in this process


def measured(options: Options, tiny: bool) -> Row:
    """The row, on a machine that can measure it."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if tiny:
        open_clip.add_model_config(ROOT / "tests" / "models" / "tiny_48.json")
    model, batch_size, tokens, layers = ("tiny_48", 4, 8, 2) if tiny else ("ViT-B-32", options.pick(4, 256, 512), 40, 6)
    towers = build_towers(model, context_length=0 if tiny else tokens)
    batch = random_batch(batch_size, towers, tokens, device)
    full, plain = (Step(weights, towers, batch, device, layers) for weights in (LossWeights(), CONTRASTIVE))
    flops, memory = (full.flops(), plain.flops()), (peak(full), peak(plain))
    timing = alternate(full, plain, options.pick(1, 10, 30))
    ceiling, reached = flops[1] / flops[0], timing.theirs / timing.ours
    pairs = [batch_size / seconds for seconds in (timing.ours, timing.theirs)]
    return speed_row(
        f"{WHAT}: {model}, {towers.image_size} px, batch {batch_size}, {layers} fusion layers on {tokens} tokens",
        f"{AGAINST}'s speed × the FLOP ceiling of {100 * ceiling:.0f} %",
        reached / ceiling,
        0.8,
        notes=f"{pairs[0]:,.0f} and {pairs[1]:,.0f} pairs/s, {memory[0]:.1f} and {memory[1]:.1f} GB, "
        f"{flops[0] / timing.ours / 1e12:.2g} and {flops[1] / timing.theirs / 1e12:.2g} TFLOP/s",
        pairs_per_second=pairs,
        gb=memory,
        flops=flops,
    )

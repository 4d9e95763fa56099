"""Hard-negative sampling and the structure loss, forward and backward, against the slow twin of the tests.

The twin samples one negative per call and, for ``wasserstein``, loops over the rows. Both sides alternate on the same
inputs.
"""

import sys
from pathlib import Path

import torch

from benchmarks._harness import Options, Row, alternate, duration, speed_row

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "losses"))
from slow_losses import slow_hard_negatives, slow_structure

from rvlr_lib.losses import sample_hard_negatives, structure_distillation_loss
from rvlr_lib.similarity import cosine_matrix


def inputs(batch: int, width: int, device: str):
    """Student, teachers and the two learnable scalars; a tenth of the rows repeat the image of another row."""
    generator = torch.Generator().manual_seed(0)
    widths = {"student": width, "image": 1024, "text": 768, "cost": 256, "view": 256}
    x = {name: torch.randn(batch, size, generator=generator).to(device) for name, size in widths.items()}
    x["student"].requires_grad_()
    x["cost"].requires_grad_()
    scalars = [torch.tensor(value, device=device, requires_grad=True) for value in (0.5, 0.07)]
    ids = torch.arange(batch, device=device)
    ids[: batch // 10] = ids[batch // 10 : 2 * (batch // 10)]
    return x, scalars, ids


def step(sample, structure, distance: str, x, scalars, ids) -> float:
    """One sampling, one forward and one backward pass; returns the loss."""
    similarity = cosine_matrix(x["view"], x["cost"]).detach()
    generator = torch.Generator(similarity.device).manual_seed(0)
    sample(similarity, 0.07, ids, generator)
    weight, temperature = scalars
    terms = structure(
        x["student"],
        x["image"],
        x["text"],
        fusion_weight=weight,
        temperature=temperature,
        distance=distance,
        cost_features=x["cost"],
    )
    loss = 2 * terms[0] + terms[1] + terms[2]
    for leaf in (x["student"], x["cost"], *scalars):
        leaf.grad = None
    loss.backward()
    return loss.item()


def rows(options: Options) -> list[Row]:
    """Both distances of the official scripts; there is no separate goal for them."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    batch = options.pick(12, 256, 1024)
    data = inputs(batch, 768, device)
    results = []
    for distance in ("mae", "wasserstein"):
        timing = alternate(
            lambda distance=distance: step(sample_hard_negatives, structure_distillation_loss, distance, *data),
            lambda distance=distance: step(slow_hard_negatives, slow_structure, distance, *data),
            options.repeats,
        )
        gap = abs(timing.our_result - timing.their_result) / abs(timing.their_result)
        results.append(
            speed_row(
                f"sampling + structure loss, {distance}, batch {batch:,}, {device}",
                "the tests' slow twin",
                timing.ratio,
                None,
                equal=(gap, 1e-5),
                notes=f"relative; {duration(timing.ours)} and {duration(timing.theirs)}",
            )
        )
    return results

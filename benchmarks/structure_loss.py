"""Hard-negative sampling and the structure loss, forward and backward, against the slow twin of the tests.

The twin samples one negative per call and, for ``wasserstein``, loops over the rows. Both sides run in turn
(A B A B ...) on the same inputs; only the ratio of the medians means anything on another machine.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "losses"))
from slow_losses import slow_hard_negatives, slow_structure

from rvlr_lib.losses import sample_hard_negatives, structure_distillation_loss
from rvlr_lib.similarity import cosine_matrix


def inputs(batch: int, width: int, device: str):
    """Student, teachers and the two learnable scalars; a tenth of the rows share an image with another."""
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
    """One sampling, one forward and one backward pass; the loss."""
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[1024], help="batch sizes (default 1024)")
    parser.add_argument("--distance", nargs="+", default=["mae", "wasserstein"], help="default mae wasserstein")
    parser.add_argument("--width", type=int, default=768, help="width of the student's features (default 768)")
    parser.add_argument("--repeats", type=int, default=7, help="runs of each side (default 7)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    args = parser.parse_args()
    sides = ((slow_hard_negatives, slow_structure), (sample_hard_negatives, structure_distillation_loss))
    print(f"{'distance':14} {'batch':>6} {'slow ms':>9} {'ours ms':>9} {'ratio':>6}  loss agrees to")
    for batch in args.batch:
        data = inputs(batch, args.width, args.device)
        for distance in args.distance:
            losses = [step(*side, distance, *data) for side in sides]  # warm-up
            times: list[list[float]] = [[], []]
            for _ in range(args.repeats):
                for side, spent in zip(sides, times, strict=True):
                    begin = time.perf_counter()
                    step(*side, distance, *data)  # ends with .item(), so the device has finished
                    spent.append(1000 * (time.perf_counter() - begin))
            slow, ours = (statistics.median(spent) for spent in times)
            gap = abs(losses[0] - losses[1]) / abs(losses[0])
            print(f"{distance:14} {batch:6} {slow:9.1f} {ours:9.1f} {slow / ours:6.2f}  {gap:.0e}")


if __name__ == "__main__":
    main()

"""Time and memory of all losses of a batch, without towers: the library against the official formulas as written."""

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks._harness import Options, PeakMemory, Row, alternate, duration, in_child, speed_row
from rvlr_lib import losses

TEMPERATURE, RELATIONS = 0.07, 0.07


def inputs(batch: int, device: str) -> dict[str, Tensor]:
    """Features of a batch, shaped like those of towers, heads and frozen teachers."""
    generator = torch.Generator().manual_seed(0)
    widths = {"z": 256, "w": 256, "u": 256, "s": 256, "h": 768, "a": 1024, "b": 768}
    x = {name: torch.randn(batch, width, generator=generator).to(device) for name, width in widths.items()}
    x |= {name: F.normalize(x[name], dim=1) for name in "zwus"}
    x |= {name: x[name].requires_grad_() for name in "zwush"}
    x["positive"] = torch.randn(batch, 2, generator=generator).to(device).requires_grad_()
    x["negative"] = torch.randn(2 * batch, 2, generator=generator).to(device).requires_grad_()
    x["share"] = torch.tensor(0.5, device=device, requires_grad=True)
    x["ids"] = torch.arange(batch, device=device)
    x["ids"][: batch // 10] = x["ids"][batch // 10 : 2 * (batch // 10)]  # a tenth of the rows repeat a picture
    return x


def ours(x: dict[str, Tensor]) -> Tensor:
    """The seven official terms, each with its weight, through the library."""
    ids = x["ids"]
    losses.sample_hard_negatives((x["z"] @ x["w"].T).detach(), TEMPERATURE, ids)
    structure = losses.structure_distillation_loss(
        x["h"], x["a"], x["b"], fusion_weight=x["share"], temperature=RELATIONS
    )
    return (
        losses.image_text_contrastive_loss(x["z"], x["w"], TEMPERATURE, ids)
        + 2 * losses.image_text_matching_loss(x["positive"], x["negative"])
        + losses.representation_distillation_loss(x["z"], x["u"], TEMPERATURE, ids)
        + 2 * losses.representation_distillation_loss(x["w"], x["s"], TEMPERATURE, ids)
        + 2 * structure.student
        + structure.image_teacher
        + structure.text_teacher
    )


def plain(x: dict[str, Tensor]) -> Tensor:
    """The official formulas as written: target masses, a draw per sample, flattened off-diagonal relations."""
    ids = x["ids"]
    same = (ids[:, None] == ids[None]).float()
    mass = same / same.sum(1, keepdim=True)

    def cross_entropy(rows: Tensor, columns: Tensor) -> Tensor:
        return -(mass * F.log_softmax(rows @ columns.T / TEMPERATURE, dim=1)).sum(1).mean()

    with torch.no_grad():
        for scores in (x["w"] @ x["z"].T / TEMPERATURE, x["z"] @ x["w"].T / TEMPERATURE):
            weights = F.softmax(scores, dim=1) + 1e-5
            weights.masked_fill_(same.bool(), 0)
            for row in weights:
                torch.multinomial(row, 1).item()
    logits = torch.cat([x["positive"], x["negative"]])
    labels = torch.cat([torch.ones(len(ids)), torch.zeros(2 * len(ids))]).long().to(ids.device)
    student, image, text = (relations(x[name]) for name in "hab")
    target = x["share"] * text + (1 - x["share"]) * image
    return (
        (cross_entropy(x["z"], x["w"]) + cross_entropy(x["w"], x["z"])) / 2
        + 2 * F.cross_entropy(logits, labels)
        + cross_entropy(x["z"], x["u"])
        + 2 * cross_entropy(x["w"], x["s"])
        + 2 * (student - target).abs().mean()
        + (image - target).abs().mean()
        + (text - target).abs().mean()
    )


def relations(features: Tensor) -> Tensor:
    """Off-diagonal cosines divided by the temperature, flattened row by row."""
    unit = F.normalize(features, dim=1)
    cosines = unit @ unit.T / RELATIONS
    return cosines[~torch.eye(len(cosines), dtype=torch.bool, device=cosines.device)]


def step(loss, x: dict[str, Tensor]) -> dict[str, Tensor]:
    """Forward and backward; returns the loss and every gradient."""
    leaves = {name: value for name, value in x.items() if value.requires_grad}
    for leaf in leaves.values():
        leaf.grad = None
    value = loss(x)
    value.backward()
    return {"loss": value.detach()} | {name: leaf.grad for name, leaf in leaves.items()}


def memory(side: str, batch: int, device: str) -> dict[str, float]:
    """Peak GB of one step beyond its inputs; to be called in a separate process."""
    loss = {"ours": ours, "plain": plain}[side]
    step(loss, inputs(8, device))  # one-time loading
    x = inputs(batch, device)
    if device == "cuda":
        step(loss, x)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(loss, x)
        return {"GB": (torch.cuda.max_memory_allocated() - before) / 1e9}
    with PeakMemory() as peak:
        step(loss, x)
    return {"GB": peak.gb}


def rows(options: Options) -> list[Row]:
    """Time and memory at batch 1,024, on the GPU if there is one."""
    cuda = torch.cuda.is_available()  # the goals are for a GPU
    device = "cuda" if cuda else "cpu"
    batch = options.pick(24, 1024, 1024)
    x = inputs(batch, device)
    timing = alternate(lambda: step(ours, x), lambda: step(plain, x), options.pick(1, 3, 9))
    gap = max(
        float((timing.our_result[key] - value).norm() / value.norm().clamp_min(1e-12))
        for key, value in timing.their_result.items()
        if key != "share"  # inside (0, 1) the two teacher terms cancel, so its gradient is rounding noise
    )
    sides = {side: in_child(memory, side, batch, device)["GB"] for side in ("ours", "plain")}
    what, against = f"whole losses, batch {batch:,}, {device}", "the official formulas written plainly"
    return [
        speed_row(f"{what}, time", against, timing.ratio, 1 if cuda else None, equal=(gap, 1e-4),
                  notes=f"relative; {duration(timing.ours)} and {duration(timing.theirs)}"),
        speed_row(f"{what}, peak memory", against, sides["plain"] / max(sides["ours"], 1e-6), 2 if cuda else None,
                  notes=f"{1000 * sides['ours']:.0f} and {1000 * sides['plain']:.0f} MB besides the inputs"),
    ]  # fmt: skip

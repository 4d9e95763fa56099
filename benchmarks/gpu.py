"""What training and evaluation reach on one GPU: ``make bench-gpu``; ``--tiny`` rehearses every part on the CPU.

Parts are measured one after another until ``--minutes`` are over; each is written to the JSON file as soon as it is
measured, with the device's name. Steps are timed in blocks, A, B, A, B, and the median block counts.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rvlr_lib.config import MethodSettings, TrainSettings, load_settings
from rvlr_lib.disk import write_json
from rvlr_lib.losses import LossWeights, sample_hard_negatives, structure_distillation_loss
from rvlr_lib.metrics import evaluate_retrieval
from rvlr_lib.models import FusionEncoder, HeadStudent, Towers, TowerStudent, build_towers
from rvlr_lib.similarity import unit_rows
from rvlr_lib.tables import insert_between, to_markdown
from rvlr_lib.training.batches import FeatureBatches, Inputs
from rvlr_lib.training.features import FeatureSet
from rvlr_lib.training.loop import build_optimizer
from rvlr_lib.training.objectives import Objective

ROOT = Path(__file__).parents[1]
CONTRASTIVE, PUBLISHED = LossWeights(1.0, *[0.0] * 6), LossWeights()
SINGLE_MODAL = ("i2i/NDCG@10/above_floor", "t2t_no_siblings/NDCG@10/above_floor")


class Bench:
    """The parts of the benchmark and what they need: device, sizes, weights by explicit path."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.tiny, self.options = options.tiny, options
        self.device = torch.device("cpu" if options.tiny else options.device)
        self.blocks = 2 if options.tiny else 5
        self.draws = torch.Generator(self.device).manual_seed(0)

    def rand(self, *shape: int) -> torch.Tensor:
        """Normal numbers on the device."""
        return torch.randn(*shape, generator=self.draws, device=self.device)

    def rows(self, count: int, width: int) -> torch.Tensor:
        """Unit rows on the device."""
        return unit_rows(self.rand(count, width))

    def seconds(self, **sides: Callable[[], Any]) -> dict[str, float]:
        """Median seconds of a call of each side, blocks in turn, after a warm-up."""
        times: dict[str, list[float]] = {name: [] for name in sides}
        for call in sides.values():
            call()
        for _ in range(self.blocks):
            for name, call in sides.items():
                self.wait()
                started = time.perf_counter()
                call()
                self.wait()
                times[name].append(time.perf_counter() - started)
        return {name: statistics.median(found) for name, found in times.items()}

    def wait(self) -> None:
        """Until the device has done what was asked of it."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def towers(self) -> Towers:
        """The default pair, with reduced weights where they are named."""
        return build_towers(
            "effnet_minilm",
            image_weights=self.options.image_weights or None,
            text_weights=self.options.text_weights or None,
        )

    def steps(self, objective: Objective, inputs: Inputs, count: int) -> Callable[[], None]:
        """A block of training steps on one batch, bfloat16 towers on a GPU, as the training loop takes them."""
        settings = TrainSettings(learning_rate=1e-5)
        optimizer, _ = build_optimizer(objective, settings, 1000)

        def block() -> None:
            for _ in range(count):
                self.step(objective, optimizer, inputs, towers=True)

        return block

    def step(self, objective: Objective, optimizer: Any, inputs: Inputs, *, towers: bool = False) -> None:
        """One training step; of whole towers in bfloat16 on a GPU and with clipped gradients."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=towers and self.device.type == "cuda"):
            terms = objective(inputs)
        optimizer.zero_grad(set_to_none=True)
        torch.stack([term * getattr(objective.weights, name) for name, term in terms.items()]).sum().backward()
        if towers:
            torch.nn.utils.clip_grad_norm_(objective.parameters(), 1.0)
        optimizer.step()

    def objective(self, student: Any, weights: LossWeights, teachers: Any = None) -> Objective:
        """What a student is trained for, on the device."""
        return Objective(student, weights, MethodSettings(), teachers=teachers, seed=0).to(self.device)

    def weight_files(self) -> dict[str, str | None]:
        """Settings that name the reduced weights, where they are given."""
        return {f"model.{name}": getattr(self.options, name) or None for name in ("image_weights", "text_weights")}

    # ---- parts ------------------------------------------------------------------------------------------------------

    def vit(self) -> dict[str, Any]:
        """Contrastive and full steps of ViT-B/32, eager and compiled."""
        found: dict[str, Any] = {}
        name, size = "ViT-B-32", 224
        batches, layers = ((4,), 1) if self.tiny else ((512, 1024), 6)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()  # what earlier parts took is not its own
        for batch in batches:
            pixels = torch.rand(batch, 3, size, size, device=self.device)
            ids = torch.randint(1, 1000, (batch, 40), device=self.device)
            rows = torch.arange(batch, device=self.device)
            inputs = Inputs(pixels, torch.nn.functional.pad(ids, (0, 37)), rows, rows)
            for label, weights in (("contrastive", CONTRASTIVE), ("full", PUBLISHED)):
                for compiled in (False, True) if not self.tiny else (False,):
                    torch.manual_seed(0)
                    student = TowerStudent(build_towers(name), fusion_layers=layers if label == "full" else 0)
                    teachers = (self.rows(batch, 1024), self.rows(batch, 768)) if label == "full" else None
                    objective = self.objective(student, weights, teachers)
                    key = f"{label}, batch {batch}, {'compiled' if compiled else 'eager'}"
                    if compiled:
                        objective.compile()
                    count = 1 if self.tiny else 5
                    took = self.seconds(step=self.steps(objective, inputs, count))["step"]
                    memory = torch.cuda.max_memory_allocated() / 1e9 if self.device.type == "cuda" else 0.0
                    found[key] = {"pairs_per_second": batch * count / took, "gigabytes": memory}
                    del student, objective
                    if self.device.type == "cuda":
                        torch.cuda.empty_cache()
                        torch.cuda.reset_peak_memory_stats()
        return found

    def heads(self) -> dict[str, Any]:
        """Steps a second of heads on cached features, structure loss included, eager and compiled."""
        count = 256 if self.tiny else 4000
        captions = np.repeat(np.arange(count), 5)
        features = FeatureSet(torch.randn(3, count, 1280), torch.randn(5 * count, 384))
        settings = TrainSettings(batch_size=128 if self.tiny else 256, precision="float32")
        batches = FeatureBatches(features, captions, settings, "images", 0, self.device)
        directions = [torch.linalg.qr(torch.randn(width, 256))[0] for width in (1280, 384)]
        teachers = unit_rows(features.images[0]).to(self.device), unit_rows(features.texts).to(self.device)
        found = {}
        kinds = {"contrastive": CONTRASTIVE, "contrastive and structure": LossWeights(1, 0, 0, 0, 0.3, 0, 0)}
        for label, compiled in product(kinds, (False,) if self.tiny else (False, True)):
            objective = self.objective(HeadStudent(*directions), kinds[label], teachers)
            optimizer, _ = build_optimizer(objective, settings, 1000)
            if compiled:
                objective.compile()

            def epoch(objective: Objective = objective, optimizer: Any = optimizer) -> None:
                for inputs in batches.take():
                    self.step(objective, optimizer, inputs)

            rate = batches.steps_per_epoch / self.seconds(epoch=epoch)["epoch"]
            found[f"{label}, compiled" if compiled else label] = {"steps_per_second": rate}
        return found

    def whole_towers(self) -> dict[str, Any]:
        """Whole-tower training of the default pair, pairs a second."""
        batch = 8 if self.tiny else 256
        student = TowerStudent(self.towers())
        pixels = torch.rand(batch, 3, student.image_size, student.image_size, device=self.device)
        ids = torch.randint(1000, 2000, (batch, 16), device=self.device)
        rows = torch.arange(batch, device=self.device)
        objective = self.objective(student, CONTRASTIVE)
        count = 1 if self.tiny else 5
        took = self.seconds(step=self.steps(objective, Inputs(pixels, ids, rows, rows), count))["step"]
        return {"pairs_per_second": batch * count / took}

    def losses(self) -> dict[str, Any]:
        """Structure loss forward and backward, and hard negatives, milliseconds."""
        batch = 64 if self.tiny else 1024
        student, image, text = self.rows(batch, 256).requires_grad_(), self.rows(batch, 1024), self.rows(batch, 768)

        def structure(distance: str) -> Callable[[], None]:
            def call() -> None:
                structure_distillation_loss(
                    student, image, text, fusion_weight=0.5, temperature=0.07, distance=distance, cost_features=text
                ).student.backward()

            return call

        similarity = self.rows(batch, 256) @ self.rows(batch, 256).T
        sides = {name: structure(name) for name in ("mae", "wasserstein", "row_kl", "rkd_distance")}
        sides["hard negatives"] = lambda: sample_hard_negatives(similarity, 0.07, generator=self.draws)
        return {name: {"milliseconds": 1000 * took} for name, took in self.seconds(**sides).items()}

    def evaluation(self) -> dict[str, Any]:
        """Every metric at COCO's size, on the device."""
        images, per = (50, 5) if self.tiny else (5000, 5)
        owner = torch.arange(images, device=self.device).repeat_interleave(per)
        relevance = torch.rand(images * per, images, device=self.device)
        z, w = self.rows(images, 256), self.rows(images * per, 256)
        started = time.perf_counter()
        evaluate_retrieval(z, w, owner, relevance)
        self.wait()
        return {"seconds": time.perf_counter() - started, "pictures": images, "captions": images * per}

    def reranking(self) -> dict[str, Any]:
        """Re-ranking of captions by the matching head, top 64."""
        from rvlr_lib.evaluation.rerank import matching_scores

        images, captions, top = (20, 40, 4) if self.tiny else (1000, 5000, 64)
        fusion = FusionEncoder(768, 1024, 1 if self.tiny else 6).eval()
        tokens = torch.randn(images, 50, 1024).half(), torch.randn(captions, 14, 768).half()
        mask = torch.ones(captions, 14, dtype=torch.bool)
        pair = unit_rows(torch.randn(images, 256)), unit_rows(torch.randn(captions, 256))
        started = time.perf_counter()
        matching_scores(fusion, tokens[0].float(), tokens[1].float(), mask, pair, top, device=self.device)
        self.wait()
        took = time.perf_counter() - started
        return {"seconds": took, "pairs_per_second": (images + captions) * top / took}

    def study(self) -> dict[str, Any]:
        """One seed of the quick study from nothing, encoding and evaluation included; bfloat16 against float32."""
        from rvlr_lib.study.study import Study

        arms = ["matching", "matching_longer"]
        arms += [] if self.tiny else ["rvlr", "rvlr_published", "structure", "shuffled", "intra"]
        found: dict[str, Any] = {}
        with tempfile.TemporaryDirectory() as root:
            for precision in ("float32", "bfloat16"):
                overrides = {
                    "data.name": "scenes",
                    **self.weight_files(),
                    "stage1.precision": precision,
                    "stage2.precision": precision,
                }
                settings = load_settings("scenes", "smoke" if self.tiny else "quick", "corrected", overrides=overrides)
                started = time.perf_counter()
                study = Study(settings, device=str(self.device), root=Path(root))
                scores = {name: study.result(name).metrics["r_mean"] for name in arms}
                found[precision] = {"seconds": time.perf_counter() - started, "r_mean": scores}
        return found

    def resume(self) -> dict[str, Any]:
        """A training that is killed and started again ends with the same weights as one that is not."""
        from rvlr_lib.disk import sha256

        found = {}
        with tempfile.TemporaryDirectory() as place:
            sums = []
            for kill in (False, True):
                root = Path(place) / str(kill)
                options = {
                    "dataset": "emoji",
                    "preset": "smoke",
                    "arm": "matching",
                    "root": root,
                    "out": root / "out",
                    "save-every": 2,
                    "device": self.device,
                }
                command = [sys.executable, "-m", "rvlr_lib", "train", "-s", "stage1.epochs", "20"]
                command += [word for name, value in options.items() for word in (f"--{name}", str(value))]
                for name, path in self.weight_files().items():
                    command += ["-s", name, str(path)] if path else []
                if kill:
                    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                    deadline = time.monotonic() + 90
                    while process.poll() is None and not list(root.glob("checkpoints/*/step*")):
                        if time.monotonic() > deadline:
                            break
                        time.sleep(0.05)
                    killed = process.poll() is None and any(root.glob("checkpoints/*/step*"))
                    process.kill()
                    process.wait()
                    if not killed:
                        return {"failed": "the training ended, or wrote no checkpoint, before it could be killed"}
                done = subprocess.run(command, capture_output=True, text=True)
                if done.returncode:
                    return {"failed": done.stderr[-400:]}
                sums.append(sha256(root / "out" / "weights.safetensors"))
            found["equal_weights"] = sums[0] == sums[1]
        return found

    def replication(self) -> dict[str, Any]:
        """Whole towers fine-tuned on emoji: three arms over seeds, until the time is over."""
        from rvlr_lib.study.study import open_study

        found: dict[str, Any] = {}
        arms = ("matching_longer", "rvlr_published_warm", "structure")
        sizes = {"data.train_size": 192, "data.val_size": 64, "data.gallery_size": 60} if self.tiny else {}
        for stage in ("stage1", "stage2") if self.tiny else ():
            sizes |= {f"{stage}.epochs": 1, f"{stage}.batch_size": 64}
        for seed in range(1 if self.tiny else 4):
            with tempfile.TemporaryDirectory() as root:
                study = open_study(
                    "emoji",
                    preset="gpu",
                    device=str(self.device),
                    root=Path(root),
                    seed=seed,
                    **{"data.text_detail": 0.5, "data.image_visibility": 0.65},
                    **self.weight_files(),
                    **sizes,
                )
                rows = {}
                for name in arms:
                    metrics = study.result(name).metrics
                    rows[name] = {key: metrics[key] for key in ("r_mean", *SINGLE_MODAL)}
                found[str(seed)] = rows
                self.save(replication=found)
            if self.late():
                break
        return found

    # ---- running ----------------------------------------------------------------------------------------------------

    def late(self) -> bool:
        """Whether the time is over."""
        return time.monotonic() > self.deadline

    def save(self, **part: Any) -> None:
        """Add parts to the JSON file."""
        self.found |= part
        write_json(Path(self.options.out), self.found)

    def run(self) -> dict[str, Any]:
        """Measure the parts in order."""
        self.deadline = time.monotonic() + 60 * self.options.minutes
        name = torch.cuda.get_device_name() if self.device.type == "cuda" else platform.processor() or "CPU"
        self.found: dict[str, Any] = {"device": name, "torch": torch.__version__, "tiny": self.tiny}
        for part in self.options.parts.split(","):
            if self.late():
                self.found.setdefault("left_out", []).append(part)
                continue
            started = time.monotonic()
            try:
                found = getattr(self, part)()
            except Exception as error:  # one part that fails leaves the others their time
                traceback.print_exc()
                found = {"failed": f"{type(error).__name__}: {str(error)[:300]}"}
            self.save(**{part: found})
            print(f"{part}: {time.monotonic() - started:.0f} s {json.dumps(found)[:400]}", flush=True)
        self.save()
        return self.found


def write_table(found: dict[str, Any]) -> None:
    """Put what was measured between the GPU's markers of PERFORMANCE.md."""
    import pandas as pd

    rows = []
    for part, values in found.items():
        if not isinstance(values, dict) or part == "replication":
            continue
        for name, value in values.items():
            for what, number in value.items() if isinstance(value, dict) else [("", value)]:
                shown = f"{number:,.4g}" if isinstance(number, float) else json.dumps(number)
                rows.append(
                    {"part": part.replace("_", " "), "what": f"{name} {what}".replace("_", " "), "measured": shown}
                )
    unmeasured = [part for part in PARTS.split(",") if part not in found]
    missing = f" Not measured: {', '.join(unmeasured).replace('_', ' ')}." if unmeasured else ""
    note = f"*{found['device']}, PyTorch {found['torch']}; `make bench-gpu`.{missing}*\n\n"
    insert_between(ROOT / "PERFORMANCE.md", "gpu", note + to_markdown(pd.DataFrame(rows)))


PARTS = "heads,losses,evaluation,whole_towers,vit,reranking,resume,study,replication"


def main() -> None:
    """Read the options and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="every part at toy size on the CPU")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--parts", default=PARTS)
    parser.add_argument("--image-weights", default="", help="a weight file of the image tower")
    parser.add_argument("--text-weights", default="", help="a folder of the text tower")
    parser.add_argument("--out", default="benchmarks/results/gpu.json")
    options = parser.parse_args()
    found = Bench(options).run()
    if not options.tiny:
        write_table(found)


if __name__ == "__main__":
    main()

"""Speed of training and evaluation on one GPU: ``make bench-gpu``; ``--tiny`` rehearses every part on the CPU.

Parts are measured one after another until ``--minutes`` have passed, and each row is saved to the JSON file at once. A
part that fails or takes too long is named there and does not affect the others. Sides of a comparison are timed in
alternating blocks (A, B, A, B), of which the median counts. Steps are those of the training loop.
"""

import argparse
import gc
import io
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial, partialmethod
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch

from benchmarks._harness import ROOT, insert_between, machine, synchronize
from rvlr_lib.config import MethodSettings, TrainSettings, load_settings
from rvlr_lib.data.dataset import SPLITS
from rvlr_lib.disk import read_json, read_yaml, sha256, write_json
from rvlr_lib.evaluation.evaluate import relevances
from rvlr_lib.evaluation.rerank import matching_scores
from rvlr_lib.losses import LossWeights, sample_hard_negatives, structure_distillation_loss
from rvlr_lib.metrics import evaluate_retrieval
from rvlr_lib.models import FusionEncoder, HeadStudent, Towers, TowerStudent, build_towers
from rvlr_lib.provenance import provenance
from rvlr_lib.similarity import unit_rows
from rvlr_lib.study.study import Study
from rvlr_lib.tables import to_markdown
from rvlr_lib.training.batches import FeatureBatches, Inputs
from rvlr_lib.training.features import FeatureSet
from rvlr_lib.training.loop import Execution, Training, choose_device
from rvlr_lib.training.objectives import Objective

PARTS = "heads losses evaluation whole_towers vit reranking quick resume study vit_compiled".split()
CONTRASTIVE, PUBLISHED = LossWeights(1.0, *[0.0] * 6), LossWeights()
LONG = {"epochs": 10_000, "log_every": 10**9}  # for timed training: nothing is logged after the first step
Rows = Iterator[dict[str, Any]]


class TimeIsOver(BaseException):
    """Raised by the timer; not an Exception, so that no handler on the way takes it for a failure."""


@dataclass
class OneBatch:
    """Batches for a training that uses the same batch in every step."""

    inputs: Inputs
    device: torch.device
    optim: TrainSettings
    steps_per_epoch: int
    seed: int = 0

    def take(self) -> list[Inputs]:
        """The steps of an epoch."""
        return [self.inputs] * self.steps_per_epoch


class Bench:
    """The parts of the benchmark, each yielding rows as it measures them, and their helpers."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.tiny, self.options, self.part = options.tiny, options, ""
        self.device = choose_device("cpu" if options.tiny else options.device)
        self.weights = {name: getattr(options, name) for name in ("image_weights", "text_weights")}
        self.model = {f"model.{name}": path for name, path in self.weights.items()}
        self.blocks, self.steps = (2, 1) if options.tiny else (5, 5)
        self.generator, description = torch.Generator(self.device).manual_seed(0), machine()
        self.record: dict[str, Any] = {"device": description["cpu" if self.device.type == "cpu" else "gpu"]}
        self.record |= {"torch": torch.__version__, "tiny": self.tiny, "machine": description}
        self.record["provenance"] = provenance()

    def rows(self, count: int, width: int) -> torch.Tensor:
        """Random unit rows on the device."""
        return unit_rows(torch.randn(count, width, generator=self.generator, device=self.device))

    def once(self, call: Callable[[], Any]) -> float:
        """Seconds of a call, including its work on the device."""
        synchronize()
        started = time.perf_counter()
        call()
        synchronize()
        return time.perf_counter() - started

    def seconds(self, **sides: Callable[[], Any]) -> dict[str, float]:
        """Median seconds per call of each side, in alternating blocks, after a warm-up."""
        for call in sides.values():
            call()
        blocks = [{name: self.once(call) for name, call in sides.items()} for _ in range(self.blocks)]
        return {name: statistics.median(block[name] for block in blocks) for name in sides}

    def training(
        self, student: Any, weights: LossWeights, batches: Any, teachers: Any = None, *, compiled: bool = False
    ) -> Callable[[], None]:
        """A function that runs one epoch of a warmed-up training; RuntimeError if it cannot be compiled."""
        objective = Objective(student, weights, MethodSettings(), teachers=teachers, seed=0).to(self.device).train()
        training = Training(objective, batches, self.part, Execution(compile=compiled))

        def epoch() -> None:
            for inputs in batches.take():
                training.train_step(inputs)

        with redirect_stdout(io.StringIO()) as output:
            epoch()
        print(output.getvalue(), end="", flush=True)
        if "cannot be compiled" in output.getvalue():
            raise RuntimeError(output.getvalue())
        return epoch

    def one_batch(self, student: TowerStudent, batch: int, length: int) -> OneBatch:
        """Random pictures, and captions of ``length`` random tokens of the text tower."""
        words, size = getattr(student.text, "config", student.text).vocab_size, student.image_size
        pixels = torch.rand(batch, 3, size, size, device=self.device)
        ids = torch.randint(1, words, (batch, length), device=self.device)
        rows = torch.arange(batch, device=self.device)
        settings = TrainSettings(batch_size=batch, learning_rate=1e-5, **LONG)
        return OneBatch(Inputs(pixels, ids, rows, rows), self.device, settings, self.steps)

    # ---- parts ------------------------------------------------------------------------------------------------------

    def vit(self, *, compiled: bool = False) -> Rows:
        """The contrastive and the full step of ViT-B/32; compiled in a separate part, since that takes minutes."""
        name, batches, layers = ("tiny_48", (4,), 2) if self.tiny else ("ViT-B-32", (1024, 512), 6)
        open_clip.add_model_config(ROOT / "tests" / "models" / "tiny_48.json")
        towers = build_towers(name)
        for batch in batches:
            forget()
            yield from self.vit_pair(towers, batch, layers, compiled)

    def vit_pair(self, towers: Towers, batch: int, layers: int, compiled: bool) -> Rows:
        """Both steps in turn; memory is that of a step with its model and batch, without compilation."""
        rows: dict[str, Any] = {}
        sides = {}
        for label, weights in (("contrastive", CONTRASTIVE), ("full", PUBLISHED)):
            key, full, held = f"{label}, batch {batch}", label == "full", torch.cuda.memory_allocated()
            try:
                student = TowerStudent(towers, fusion_layers=layers if full else 0)
                batches = self.one_batch(student, batch, 8 if self.tiny else 40)
                teachers = (self.rows(batch, 1024), self.rows(batch, 768)) if full else None
                epoch = self.training(student, weights, batches, teachers, compiled=compiled)
                if self.device.type == "cuda":
                    torch.cuda.reset_peak_memory_stats()
                rows[key] = {"pairs_per_second": batch * self.steps / self.once(epoch)}
                rows[key]["gigabytes"] = (torch.cuda.max_memory_allocated() - held) / 1e9
                sides[key] = epoch
            except Exception as error:  # out of memory, or it does not compile: measure only the other side
                rows[key] = failure(error)
            yield rows
        for key, took in self.seconds(**sides).items():
            rows[key]["pairs_per_second"] = batch * self.steps / took
        yield rows

    def heads(self) -> Rows:
        """Steps per second of heads on cached features, with and without the structure loss."""
        count = 256 if self.tiny else 4000
        features = FeatureSet(torch.randn(3, count, 1280), torch.randn(5 * count, 384))
        settings = TrainSettings(batch_size=128 if self.tiny else 256, precision="float32", **LONG)
        batches = FeatureBatches(features, np.repeat(np.arange(count), 5), settings, "images", 0, self.device)
        directions = [torch.linalg.qr(torch.randn(width, 256))[0] for width in (1280, 384)]
        teachers = unit_rows(features.images[0]), unit_rows(features.texts)
        kinds = {"contrastive": CONTRASTIVE, "contrastive and structure": LossWeights(1, 0, 0, 0, 0.3, 0, 0)}
        student = lambda: HeadStudent(*directions)  # noqa: E731
        sides = {label: self.training(student(), weights, batches, teachers) for label, weights in kinds.items()}
        for label, took in self.seconds(**sides).items():
            yield {label: {"steps_per_second": batches.steps_per_epoch / took}}

    vit_compiled = partialmethod(vit, compiled=True)

    def whole_towers(self) -> Rows:
        """Pairs per second of whole-tower training of the default towers."""
        batch, student = 8 if self.tiny else 256, TowerStudent(build_towers(**self.weights))
        epoch = self.training(student, CONTRASTIVE, self.one_batch(student, batch, 16))
        yield {"pairs_per_second": batch * self.steps / self.seconds(epoch=epoch)["epoch"]}

    def losses(self) -> Rows:
        """Milliseconds of structure losses, forward and backward, and of hard-negative sampling."""
        batch = 64 if self.tiny else 1024
        student, image, text = self.rows(batch, 256).requires_grad_(), self.rows(batch, 1024), self.rows(batch, 768)

        def structure(distance: str) -> None:
            structure_distillation_loss(
                student, image, text, fusion_weight=0.5, temperature=0.07, distance=distance, cost_features=text
            ).student.backward()

        similarity = self.rows(batch, 256) @ self.rows(batch, 256).T
        sides = {name: partial(structure, name) for name in ("mae", "wasserstein", "row_kl", "rkd_distance")}
        sides["hard negatives"] = lambda: sample_hard_negatives(similarity, 0.07, generator=self.generator)
        yield {name: {"milliseconds": 1000 * took} for name, took in self.seconds(**sides).items()}

    def evaluation(self) -> Rows:
        """Seconds for every metric at the size of COCO, on the device."""

        def measure(images: int) -> float:
            owner = torch.arange(images, device=self.device).repeat_interleave(5)
            relevance = torch.rand(images * 5, images, device=self.device)
            pair = self.rows(images, 256), self.rows(images * 5, 256)
            return self.once(lambda: evaluate_retrieval(*pair, owner, relevance))

        measure(50)  # loads the kernels
        images = 50 if self.tiny else 5000
        yield {"seconds": measure(images), "pictures": images, "captions": 5 * images}

    def reranking(self) -> Rows:
        """Re-ranking of the top 64 captions with the matching head."""
        fusion = FusionEncoder(768, 1024, 1 if self.tiny else 6)

        def measure(images: int, captions: int, top: int) -> float:
            tokens = torch.randn(images, 50, 1024).half(), torch.randn(captions, 14, 768).half()
            mask = torch.ones(captions, 14, dtype=torch.bool)
            pair = unit_rows(torch.randn(images, 256)), unit_rows(torch.randn(captions, 256))
            return self.once(lambda: matching_scores(fusion, *tokens, mask, pair, top, device=self.device))

        measure(20, 40, 4)  # loads the kernels
        images, captions, top = (20, 40, 4) if self.tiny else (1000, 5000, 64)
        took = measure(images, captions, top)
        yield {"seconds": took, "pairs_per_second": (images + captions) * top / took}

    def quick(self) -> Rows:
        """All notebooks of the quick profile, cold, as ``rvlr reproduce`` runs them."""
        size = "smoke" if self.tiny else "quick"
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:  # kernels outlive the command
            preset = Path(place) / "preset.yaml"
            settings = read_yaml(ROOT / "rvlr_lib" / "presets" / f"{size}.yaml")
            settings["model"] |= {name: path for name, path in self.weights.items() if path}
            preset.write_text(json.dumps(settings))  # JSON is YAML
            command = [sys.executable, "-m", "rvlr_lib", "reproduce", "--profile", size, "-p", "preset", str(preset)]
            command += ["--device", str(self.device), "--out", f"{place}/out"]
            began = time.perf_counter()
            done = subprocess.run(command, stderr=subprocess.PIPE, text=True, env=os.environ | {"RVLR_RUNS": place})
            took = time.perf_counter() - began
            yield {"failed": done.stderr[-400:]} if done.returncode else {"seconds": took}

    def study(self) -> Rows:
        """One seed of the quick study in both precisions, with encoding and evaluation, after reading the data."""
        arms = ["matching", "matching_longer"]
        arms += [] if self.tiny else ["rvlr", "rvlr_published", "structure", "shuffled", "intra"]
        stages = ("model", "stage1", "stage2")
        for size, precision in product(("smoke", "quick")[: 2 - self.tiny], ("float32", "bfloat16")):  # smoke warms up
            overrides = {"data.name": "scenes", **self.model}
            overrides |= {f"{stage}.precision": precision for stage in stages}
            settings = load_settings("scenes", size, "corrected", overrides=overrides)
            with tempfile.TemporaryDirectory() as root:
                study = Study(settings, device=str(self.device), root=root)
                for gallery in [part for split in SPLITS for part in study.dataset(split).gallery_sets]:
                    relevances(gallery)
                took = self.once(lambda study=study: [study.result(name) for name in arms])
                scores = {name: study.result(name).metrics["r_mean"] for name in arms}
            if self.tiny or size == "quick":
                yield {precision: {"seconds": took, "r_mean": scores}}

    def resume(self) -> Rows:
        """Whether a killed and restarted training ends with the same weights as an uninterrupted one."""
        with tempfile.TemporaryDirectory() as place:
            digests = []
            for kill in (False, True):
                root = Path(place) / str(kill)
                options = {"dataset": "scenes", "preset": "smoke", "arm": "matching", "save-every": 2}
                options |= {"root": root, "out": root / "out", "device": self.device}
                command = [sys.executable, "-m", "rvlr_lib", "train", "-s", "stage1.epochs", "20"]
                command += [word for name, value in options.items() for word in (f"--{name}", str(value))]
                command += [word for name, path in self.model.items() if path for word in ("-s", name, path)]
                if kill and not killed_on_the_way(command, root):
                    yield {"failed": "the training ended, or wrote no checkpoint, before it could be killed"}
                    return
                done = subprocess.run(command, capture_output=True, text=True)
                if done.returncode:
                    yield {"failed": done.stderr[-400:]}
                    return
                digests.append(sha256(root / "out" / "weights.safetensors"))
            yield {"equal_weights": digests[0] == digests[1]}

    # ---- running ----------------------------------------------------------------------------------------------------

    def save(self, rows: dict[str, Any]) -> None:
        """Add rows of the current part to the JSON file."""
        self.record.setdefault(self.part, {}).update(rows)
        write_json(self.options.out, self.record)
        print(f"{self.part}: {json.dumps(rows)[:400]}", flush=True)

    def measure(self, seconds: float) -> None:
        """Measure and save the current part; TimeIsOver after ``seconds``."""
        signal.setitimer(signal.ITIMER_REAL, seconds, 5)  # repeated, since a destructor may swallow the first
        try:
            forget()
            for rows in getattr(self, self.part)():
                self.save(rows)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def run(self) -> dict[str, Any]:
        """Measure the parts in order, continuing after failures; returns the record."""
        signal.signal(signal.SIGALRM, time_is_over)
        deadline = time.monotonic() + 60 * self.options.minutes
        for part in self.options.parts:
            self.part, started = part, time.monotonic()
            if started >= deadline:
                break
            try:
                self.measure(deadline - started)
            except (Exception, TimeIsOver) as error:
                self.save(failure(error))
            print(f"{part}: {time.monotonic() - started:.0f} s", flush=True)
        return self.record


def forget() -> None:
    """Free unused device memory, and compiled code, which is specialised to earlier shapes."""
    gc.collect()
    torch.cuda.empty_cache()
    torch._dynamo.reset()


def time_is_over(*_: Any) -> None:
    """Signal handler that raises TimeIsOver."""
    raise TimeIsOver("the time limit was reached")


def failure(error: BaseException) -> dict[str, str]:
    """A row that names the error; its traceback is printed."""
    traceback.print_exception(error)
    return {"failed": f"{type(error).__name__}: {str(error)[:300]}"}


def killed_on_the_way(command: list[str], root: Path) -> bool:
    """Start a training and kill it after its first checkpoint; False if it ends, or has none within 90 seconds."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 90
    try:
        while process.poll() is None and time.monotonic() < deadline and not any(root.glob("checkpoints/*/step*")):
            time.sleep(0.05)
    finally:
        process.kill()
    return process.wait() == -signal.SIGKILL and any(root.glob("checkpoints/*/step*"))


def write_table(record: dict[str, Any]) -> None:
    """Insert the results between the GPU markers of PERFORMANCE.md."""
    import pandas as pd

    rows = []
    for part in PARTS:
        for name, value in record.get(part, {}).items():
            for what, number in value.items() if isinstance(value, dict) else [("", value)]:
                measured = f"{number:,.4g}" if isinstance(number, float) else json.dumps(number)
                rows.append([part.replace("_", " "), f"{name} {what}".replace("_", " "), measured])
    unmeasured = ", ".join(part for part in PARTS if part not in record).replace("_", " ")
    missing = f" Not measured: {unmeasured}." if unmeasured else ""
    note = f"*{record['device']}, PyTorch {record['torch']}; `make bench-gpu`.{missing}*\n\n"
    table = to_markdown(pd.DataFrame(rows, columns=["part", "what", "measured"]))
    insert_between(ROOT / "PERFORMANCE.md", "gpu", note + table)


def main() -> None:
    """Read the options and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="run every part at toy size on the CPU")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=7.5, help="time limit, not counting start-up and shutdown")
    parser.add_argument("--parts", type=lambda words: words.split(","), default=PARTS, help="comma-separated, in order")
    parser.add_argument("--image-weights", type=existing, help="weight file of the image tower")
    parser.add_argument("--text-weights", type=existing, help="folder of the text tower")
    parser.add_argument("--out", help="default: benchmarks/results/gpu.json, with --tiny runs/gpu-tiny.json")
    parser.add_argument("--table", action="store_true", help="measure nothing; write the table from the file --out")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"unknown parts {', '.join(sorted(unknown))}; valid: {', '.join(PARTS)}")
    options.out = Path(options.out or ("runs/gpu-tiny.json" if options.tiny else "benchmarks/results/gpu.json"))
    try:
        record = read_json(options.out) if options.table else Bench(options).run()
    except ValueError as error:  # no such device
        parser.error(str(error))
    if not record["tiny"]:
        write_table(record)
    elif '"failed"' in json.dumps(record):
        sys.exit("a part of the rehearsal failed")


def existing(path: str) -> str:
    """The absolute path of an existing file or folder."""
    return str(Path(path).resolve(strict=True))


if __name__ == "__main__":
    main()

"""The command ``rvlr train``: one arm, in one process or as one of torchrun's."""

import shutil
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rvlr_lib.data import NAMES
from rvlr_lib.disk import own_folder, whole_file, write_json
from rvlr_lib.provenance import data_name, home
from rvlr_lib.study.study import open_study
from rvlr_lib.training.loop import Execution, choose_device
from rvlr_lib.training.processes import is_main, process_group


def train(
    *,
    dataset: str,
    arm: str = "rvlr",
    preset: str = "",
    device: str = "auto",
    out: Path | None = None,
    overwrite: bool = False,
    root: Path | None = None,
    resume: str = "last",
    save_every: int = 500,
    compile: bool = False,
    gradient_checkpointing: bool = False,
    timeout: float = 1800.0,
    **settings: Any,
) -> None:
    """Train and evaluate an arm after what it goes on from; an interrupted training goes on.

    Options and ``settings`` as of :func:`rvlr_lib.study.study.open_study` and
    :class:`rvlr_lib.training.loop.Execution`. Weights, log and result go to ``out``, by default a folder below ``root``
    named by data set, arm and seed; ``overwrite`` replaces what it holds of other settings. Under torchrun each process
    takes the GPU of its local rank.
    """
    place, sizes = Path(root) if root else home(), preset or (None if dataset in NAMES else "own")
    with process_group(choose_device(device), timeout):
        execution = Execution(compile, gradient_checkpointing, place / "checkpoints", save_every, resume)
        study = open_study(dataset, preset=sizes, device=device, root=place, execution=execution, **settings)
        target = Path(out or place / "train" / f"{data_name(dataset)}-{arm}-seed{study.settings.seed}")
        identity = {"key": study.result_stage(arm).key, "settings": asdict(study.settings)}
        with own_folder(target, identity, overwrite=overwrite) if is_main() else nullcontext():
            result, folder = study.result(arm), study.student_folder(arm)
            if is_main():
                for path in folder.iterdir():
                    with whole_file(target / path.name) as temporary:
                        shutil.copyfile(path, temporary)
                write_json(target / "result.json", result)
                print(f"r_mean {result.metrics['r_mean']:.1f}; weights, log and result in {target}")

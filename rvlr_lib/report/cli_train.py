"""``rvlr train``: one variant, trained in one process or under torchrun, resumable."""

import contextlib
import os
import shutil
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace

if TYPE_CHECKING:
    from rvlr_lib.study.plan import Stage
    from rvlr_lib.study.study import Study

NOT_FINITE = "Checkpoints before it stay; a smaller learning_rate is the usual remedy"
COPIED = ("weights.safetensors", "log.jsonl")  # from the variant's stage to the run folder


def train_arguments(parser: ArgumentParser) -> None:
    """What to train, how, and where it goes."""
    parser.add_argument("--dataset", default="scenes", help="scenes, emoji, a preset's name, or an annotation file")
    parser.add_argument("--image-root", type=str | None, help="folder of the pictures, where the index says none")
    parser.add_argument("--method", default="corrected", help="switches of the method: corrected or official")
    parser.add_argument("--preset", default="", help="a preset or YAML file on top of the data set's own")
    parser.add_argument("--variant", default="rvlr", help="matching, rvlr, ...: those of rvlr_lib.config.VARIANTS")
    parser.add_argument("-s", "--set", nargs=2, action="append", default=[], metavar=("KEY", "VALUE"),
                        help="a setting such as stage1.epochs and its value; may be repeated")  # fmt: skip
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda; under torchrun each process has its GPU")
    parser.add_argument("--out", type=Path | None, help="run folder, runs/train/<dataset>-<variant> if not given")
    parser.add_argument("--resume", default="last", help="an interrupted stage goes on from its last checkpoint, from "
                        "one by name (step-000120), or, with no, begins anew")  # fmt: skip
    parser.add_argument("--save-every", type=int, default=500, help="steps between two checkpoints")
    parser.add_argument("--compile", action="store_true", help="torch.compile the towers' and the fusion blocks")
    parser.add_argument("--gradient-checkpointing", action="store_true", help="less memory, a third more computing")
    parser.add_argument("--timeout", type=float, default=1800, help="seconds until a process gives up waiting for "
                        "another one")  # fmt: skip


def train_run(arguments: Namespace) -> int:
    """Train; the exit code. Under torchrun this ends the process, as threads of a process group may not end in time."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        try:
            return _train(arguments)
        except FloatingPointError as error:
            print(f"rvlr: {error}. {NOT_FINITE}", file=sys.stderr)
            return 1
    with contextlib.ExitStack() as stack:
        if os.environ.get("RANK", "0") != "0":  # one process speaks for all
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
        code = _guarded(arguments)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _guarded(arguments: Namespace) -> int:
    """The exit code of one process among several, whatever happens."""
    own = f"rvlr, process {os.environ.get('RANK', '0')}"
    try:
        return _train(arguments)
    except (ValueError, OSError) as error:
        print(f"{own}: {error}", file=sys.stderr)
        return 2
    except FloatingPointError as error:
        print(f"{own}: {error}. {NOT_FINITE}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except Exception:
        traceback.print_exc()
        print(f"{own}: stopped. If another process died, or was silent for {arguments.timeout:g} s, that one's message "
              "says why. Checkpoints stay; the same command goes on from the last.", file=sys.stderr)  # fmt: skip
        return 1


def _train(arguments: Namespace) -> int:
    from rvlr_lib.training.processes import is_main, process_group

    study = _study(arguments)
    if arguments.timeout <= 0:
        raise ValueError(f"--timeout {arguments.timeout:g}: a process must wait for the others for a while")
    with process_group(study.device, arguments.timeout) as (_, count):
        if count > 1 and study.device.index is not None:
            raise ValueError(f"--device {arguments.device}: under torchrun each process takes a GPU of its own: cuda")
        _out(study, arguments)
        _announce(study, arguments, count)
        for stage in study.plan.stages(arguments.variant):
            study.folder_of(stage)
        main = is_main()
    return _write(study, arguments, count) if main else 0


def _study(arguments: Namespace) -> "Study":
    import yaml

    from rvlr_lib.config import VARIANTS
    from rvlr_lib.provenance import default_root
    from rvlr_lib.study.study import open_study
    from rvlr_lib.training.processes import Execution

    trained = [name for name, variant in VARIANTS.items() if variant.stage]
    if arguments.variant not in trained:
        raise ValueError(f"--variant {arguments.variant}: valid are {', '.join(trained)}")
    execution = Execution(
        compile=arguments.compile,
        gradient_checkpointing=arguments.gradient_checkpointing,
        checkpoints=default_root() / "checkpoints",
        save_every=arguments.save_every,
        resume=arguments.resume,
    )
    changes = {key: yaml.safe_load(value) for key, value in arguments.set}
    return open_study(arguments.dataset, method=arguments.method, preset=arguments.preset, device=arguments.device,
                      execution=execution, image_root=arguments.image_root, **changes)  # fmt: skip


def _out(study: "Study", arguments: Namespace) -> Path:
    """The run folder, made where it is not there: better an error now than after the training."""
    from rvlr_lib.provenance import data_name

    out = arguments.out or study.root / "train" / f"{data_name(arguments.dataset)}-{arguments.variant}"
    out.mkdir(parents=True, exist_ok=True)
    return out


def _announce(study: "Study", arguments: Namespace, count: int) -> None:
    """Say what will be trained; refuse a checkpoint to resume from that is not there."""
    from rvlr_lib.training.checkpoint import checkpoints_in
    from rvlr_lib.training.gather import own_rows

    train, stages = study.dataset("train"), study.plan.stages(arguments.variant)
    print(f"{study.settings.data.name}: {len(train):,} pictures and {len(train.captions):,} captions to train on; "
          f"{study.device}, {count} process{'es' * (count > 1)}", flush=True)  # fmt: skip
    for stage in stages:
        if stage.train.epochs:
            own_rows(min(stage.train.batch_size, _rows(train, stage)))  # better an error now than after a stage
    seconds = {stage.label: _seconds_per_step(study, stage) for stage in stages}
    names: set[str] = set()
    for stage in stages:
        steps = stage.train.epochs * max(1, _rows(train, stage) // stage.train.batch_size)
        told = f"{stage.train.epochs} epochs, {steps:,} steps"
        if study.is_there(stage):
            told += ", there already"
        elif found := checkpoints_in(study.checkpoints(stage) or Path()):
            names |= {path.name for path in found}
            told += f", interrupted: checkpoints {', '.join(path.name for path in found)}"
        elif seconds.get("matching") and stage.name == "student":  # distillation adds little to a step of matching
            told += f", about {seconds['matching'] * steps / 60:.0f} min by the time that matching took"
        print(f"  {stage.label}: {told}", flush=True)
    if arguments.resume not in ("last", "no", *names):
        raise ValueError(f"--resume {arguments.resume}: there is no such checkpoint of this training; there are "
                         f"{', '.join(sorted(names)) or 'none'}, last and no")  # fmt: skip


def _rows(train: Any, stage: "Stage") -> int:
    return len(train) if stage.rows == "images" else len(train.captions)


def _seconds_per_step(study: "Study", stage: "Stage") -> float:
    """Of a stage that is there; 0 where it is not known."""
    from rvlr_lib.disk import read_json
    from rvlr_lib.study.cache import cache_folder

    file = cache_folder(study.root, stage.name, stage.key) / "fit.json"
    if not file.is_file():
        return 0.0
    fitted = read_json(file)
    return fitted["seconds"] / max(1, fitted["steps"])


def _write(study: "Study", arguments: Namespace, count: int) -> int:
    """Evaluate and fill the run folder."""
    from rvlr_lib.disk import write_json
    from rvlr_lib.models.export import save_open_clip
    from rvlr_lib.training.checkpoint import write_manifest

    result = study.result(arguments.variant)
    out = _out(study, arguments)
    assert result.folder is not None
    for name in COPIED:
        shutil.copyfile(result.folder / name, out / name)
    execution = {"processes": count, "device": str(study.device), "compile": arguments.compile,
                 "gradient_checkpointing": arguments.gradient_checkpointing}  # fmt: skip
    result.record["provenance"]["execution"] = execution
    try:
        save_open_clip(study.trained_student(arguments.variant), study.towers, out / "open_clip")
        print(f"for open_clip and `rvlr audit --model`: local-dir:{out / 'open_clip'}")
    except ValueError as error:
        print(f"no open_clip folder: {error}")
    write_json(out / "result.json", result.record)
    write_manifest(out, [*COPIED, "result.json"])
    for key in ("i2t/R@1", "t2i/R@1", "r_mean"):
        print(f"{key}: {result.metrics[key]:.2f}")
    print(out)
    return 0

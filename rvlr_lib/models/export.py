"""A trained student as a folder: whole towers as an open_clip model, heads as the towers' name and their tensors."""

import copy
from pathlib import Path
from typing import Any

from rvlr_lib.disk import load_tensors, read_json, save_tensors, whole_file, write_json
from rvlr_lib.models.student import HeadStudent, Student, TowerStudent
from rvlr_lib.models.towers import Towers, build_towers

HEADS = "heads.safetensors"
MARKS = ("heads.json", "open_clip_config.json")  # of a folder that holds a student


def save_student(student: Student, towers: Towers, folder: Path) -> Path:
    """Write a student, whose towers or cached features are of ``towers``; a student in the folder is replaced.

    Whole towers are an open_clip model, ``local-dir:FOLDER``, with our features and temperature; the fusion encoder has
    no place there and stays out. open_clip finds a Hugging Face text tower's configuration by an absolute path alone,
    here the folder's own: after a move :func:`build_towers` still reads it, open_clip needs ``hf_model_name`` changed.
    """
    folder = Path(folder).resolve()
    if folder.exists() and any(folder.iterdir()) and not any((folder / name).is_file() for name in MARKS):
        raise ValueError(f"{folder} holds other things than a student: choose an empty folder")
    with whole_file(folder, folder=True) as half:
        if isinstance(student, TowerStudent):
            _write_open_clip(student, towers, half, folder)
        else:
            save_tensors(half / HEADS, student.state_dict())
            layers = len(student.fusion.layers.layers) if student.fusion else 0
            about = {"towers": towers.name, "image_size": towers.image_size, "fusion_layers": layers}
            write_json(half / "heads.json", about)
    return folder


def _write_open_clip(student: TowerStudent, towers: Towers, half: Path, folder: Path) -> None:
    config: dict[str, Any] = copy.deepcopy(towers.config) | {"custom_text": True}
    config["vision_cfg"]["image_size"] = towers.image_size
    if "hf_model_name" in config["text_cfg"]:
        config["text_cfg"] |= dict.fromkeys(("hf_model_name", "hf_tokenizer_name"), str(folder.resolve()))
        tower: Any = student.text
        own = copy.deepcopy(tower.config)
        own.num_hidden_layers = len(tower.transformer.encoder.layer)
        own.save_pretrained(half)
        towers.tokenizer.save_pretrained(half)
    parts = {"visual": student.visual, "text": student.text}
    tensors = {f"{part}.{name}": x for part, tower in parts.items() for name, x in tower.state_dict().items()}
    tensors["logit_scale"] = -student.log_temperature
    save_tensors(half / "open_clip_model.safetensors", tensors)
    pixels = {"size": towers.image_size, "mean": list(towers.mean), "std": list(towers.std)}
    pixels |= {"interpolation": "bicubic", "resize_mode": "squash"}
    write_json(half / "open_clip_config.json", {"model_cfg": config, "preprocess_cfg": pixels})


def load_student(folder: Path | str) -> Student:
    """Read a folder of :func:`save_student`, in evaluation mode.

    A :class:`TowerStudent` comes without a fusion encoder; the features of a :class:`HeadStudent` are of the towers
    that ``heads.json`` names.
    """
    folder = Path(folder)
    if (folder / "open_clip_config.json").is_file():
        student: Student = TowerStudent(build_towers(f"local-dir:{folder}"))
        scale = load_tensors(folder / "open_clip_model.safetensors")["logit_scale"]
        student.log_temperature.data.copy_(-scale.squeeze())
        return student.eval()
    if not (folder / HEADS).is_file():
        raise ValueError(f"{folder} holds no student: neither open_clip_config.json nor {HEADS}")
    tensors, layers = load_tensors(folder / HEADS), read_json(folder / "heads.json")["fusion_layers"]
    starts = [tensors[f"{side}_head.proj.weight"].T for side in ("image", "text")]
    widths = [tensors[f"fusion.{side}_in.weight"].shape[1] for side in ("image", "text")] if layers else None
    student = HeadStudent(*starts, token_widths=widths, fusion_layers=layers)
    student.load_state_dict(tensors)
    return student.eval()

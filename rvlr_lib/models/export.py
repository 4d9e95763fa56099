"""Trained students as folders: towers as an open_clip model, heads as their tensors and the name of their towers."""

import copy
from pathlib import Path
from typing import Any

from rvlr_lib.disk import atomic_path, load_tensors, read_json, save_tensors, write_json
from rvlr_lib.models.student import HeadStudent, Student, TowerStudent
from rvlr_lib.models.towers import Towers, build_towers

HEADS = "heads.safetensors"
MARKS = ("heads.json", "open_clip_config.json")  # either one marks a folder as a student's


def save_student(student: Student, towers: Towers, folder: Path) -> Path:
    """Write a student of ``towers`` or of features cached from them; replaces an earlier student, refuses other files.

    A :class:`TowerStudent` becomes an open_clip model, ``local-dir:FOLDER``, with equal features and temperature but
    without the fusion encoder. open_clip finds the configuration of a Hugging Face text tower only by absolute path:
    after a move :func:`build_towers` still reads the folder, but open_clip needs ``hf_model_name`` changed.
    """
    folder = Path(folder).resolve()
    if folder.exists() and any(folder.iterdir()) and not any((folder / name).is_file() for name in MARKS):
        raise ValueError(f"{folder} is not empty and holds no student: choose an empty folder")
    with atomic_path(folder, folder=True) as temporary:
        if isinstance(student, TowerStudent):
            _write_open_clip(student, towers, temporary, folder)
        else:
            save_tensors(temporary / HEADS, student.state_dict())
            layers = len(student.fusion.layers.layers) if student.fusion else 0
            description = {"towers": towers.name, "image_size": towers.image_size, "fusion_layers": layers}
            write_json(temporary / "heads.json", description)
    return folder


def _write_open_clip(student: TowerStudent, towers: Towers, temporary: Path, folder: Path) -> None:
    config: dict[str, Any] = copy.deepcopy(towers.config) | {"custom_text": True}
    config["vision_cfg"]["image_size"] = towers.image_size
    if "hf_model_name" in config["text_cfg"]:
        config["text_cfg"] |= dict.fromkeys(("hf_model_name", "hf_tokenizer_name"), str(folder))
        text: Any = student.text
        text_config = copy.deepcopy(text.config)
        text_config.num_hidden_layers = len(text.transformer.encoder.layer)
        text_config.save_pretrained(temporary)
        towers.tokenizer.save_pretrained(temporary)
    tensors = {f"visual.{name}": tensor for name, tensor in student.visual.state_dict().items()}
    tensors |= {f"text.{name}": tensor for name, tensor in student.text.state_dict().items()}
    tensors["logit_scale"] = -student.log_temperature
    save_tensors(temporary / "open_clip_model.safetensors", tensors)
    preprocessing = {"size": towers.image_size, "mean": list(towers.mean), "std": list(towers.std)}
    preprocessing |= {"interpolation": "bicubic", "resize_mode": "squash"}
    write_json(temporary / "open_clip_config.json", {"model_cfg": config, "preprocess_cfg": preprocessing})


def load_student(folder: Path | str) -> Student:
    """Read a student written by :func:`save_student`, in evaluation mode; ValueError for a folder without one.

    A :class:`TowerStudent` has no fusion encoder; a :class:`HeadStudent` expects features of the towers that
    ``heads.json`` names.
    """
    folder = Path(folder)
    if (folder / "open_clip_config.json").is_file():
        student: Student = TowerStudent(build_towers(f"local-dir:{folder}"))
        scale = load_tensors(folder / "open_clip_model.safetensors")["logit_scale"]
        student.log_temperature.data.copy_(-scale.squeeze())
        return student.eval()
    if not (folder / HEADS).is_file():
        raise ValueError(f"{folder} holds no student: open_clip_config.json and {HEADS} are missing")
    tensors, layers = load_tensors(folder / HEADS), read_json(folder / "heads.json")["fusion_layers"]
    directions = [tensors[f"{modality}_head.proj.weight"].T for modality in ("image", "text")]
    widths = [tensors[f"fusion.{modality}_in.weight"].shape[1] for modality in ("image", "text")] if layers else None
    student = HeadStudent(*directions, token_widths=widths, fusion_layers=layers)
    student.load_state_dict(tensors)
    return student.eval()

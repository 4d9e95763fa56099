"""A trained student as a folder: whole towers as an open_clip model, heads as the towers' name and their tensors."""

import copy
from pathlib import Path
from typing import Any

import torch

from rvlr_lib.disk import load_tensors, read_json, save_tensors, whole_folder, write_json
from rvlr_lib.models.student import HeadStudent, Student, TowerStudent
from rvlr_lib.models.towers import Towers, build_towers, model_config

HEADS = "heads.safetensors"


def save_student(student: Student, towers: Towers, folder: Path) -> Path:
    """Write a student, whose towers or cached features are of ``towers``, for :func:`load_student`.

    Whole towers are an open_clip model as well, see :func:`save_open_clip`. The folder is replaced as a whole.
    """
    if isinstance(student, TowerStudent):
        return save_open_clip(student, towers, folder)
    layers = len(student.fusion.layers.layers) if student.fusion else 0
    with whole_folder(folder) as half:
        save_tensors(half / HEADS, student.state_dict())
        about = {"towers": towers.name, "image_size": towers.image_size, "fusion_layers": layers}
        write_json(half / "heads.json", about)
    return folder


def save_open_clip(student: Student, towers: Towers, folder: Path) -> Path:
    """Write both towers and the temperature, so that ``local-dir:FOLDER`` is an open_clip model with our features.

    Pictures are resized to a square (``resize_mode`` squash), bicubic. The fusion encoder has no place in open_clip and
    stays out. open_clip finds a Hugging Face text tower's configuration by an absolute path alone, here the folder's
    own: after a move :func:`build_towers` still reads it, but open_clip alone needs ``hf_model_name`` changed.

    Raises:
        ValueError: the towers are no open_clip model that a config describes.
    """
    model = towers.name if towers.name.startswith("local-dir:") else towers.name.partition(":")[0]
    if not isinstance(student, TowerStudent) or model.startswith("hf-hub"):
        what = f"{type(student).__name__} on towers {towers.name!r}"
        raise ValueError(f"{what} cannot be written as an open_clip folder: whole towers of a config can")
    config: dict[str, Any] = copy.deepcopy(model_config(model)) | {"custom_text": True}
    text = config["text_cfg"]
    text["context_length"] = int(towers.tokenizer.context_length)
    config["vision_cfg"]["image_size"] = towers.image_size
    pixels = {"size": towers.image_size, "mean": list(towers.mean), "std": list(towers.std)}
    pixels |= {"interpolation": "bicubic", "resize_mode": "squash"}
    parts = {"visual": student.visual, "text": student.text}
    tensors = {f"{part}.{name}": x for part, tower in parts.items() for name, x in tower.state_dict().items()}
    tensors["logit_scale"] = -student.log_temperature.detach()
    with whole_folder(folder) as half:
        if "hf_model_name" in text:
            text |= dict.fromkeys(("hf_model_name", "hf_tokenizer_name"), str(folder.resolve()))
            tower: Any = student.text
            own = copy.deepcopy(tower.config)
            own.num_hidden_layers = len(tower.transformer.encoder.layer)
            own.save_pretrained(half)
            towers.tokenizer.tokenizer.save_pretrained(half)
        save_tensors(half / "open_clip_model.safetensors", tensors)
        write_json(half / "open_clip_config.json", {"model_cfg": config, "preprocess_cfg": pixels})
    return folder


def load_student(folder: Path | str) -> Student:
    """Read a folder of :func:`save_student`, in evaluation mode.

    Returns:
        A :class:`TowerStudent` without a fusion encoder, or a :class:`HeadStudent`, whose features come from the towers
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
    starts = [torch.zeros(tensors[f"{side}_head.proj.weight"].shape[::-1]) for side in ("image", "text")]
    widths = [tensors[f"fusion.{side}_in.weight"].shape[1] for side in ("image", "text")] if layers else [0, 0]
    student = HeadStudent(*starts, token_widths=(widths[0], widths[1]), fusion_layers=layers)
    student.load_state_dict(tensors)
    return student.eval()

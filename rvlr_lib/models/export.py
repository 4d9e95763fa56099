"""A trained student as a folder: whole towers as an open_clip model, heads as the towers' name and their tensors."""

import copy
from pathlib import Path
from typing import Any

import torch

from rvlr_lib.disk import load_tensors, read_json, save_tensors, whole_folder, write_json
from rvlr_lib.models.student import HeadStudent, Student, TowerStudent
from rvlr_lib.models.towers import Towers, build_towers, known_name

HEADS = "heads.safetensors"


def save_student(student: Student, towers: Towers, folder: Path) -> Path:
    """Write a student for :func:`load_student`; whole towers also for ``open_clip``.

    Args:
        student: trained; left as it is.
        towers: it was built from, or whose features it is on.
        folder: replaced as a whole.

    Raises:
        ValueError: as :func:`save_open_clip`.
    """
    if isinstance(student, TowerStudent):
        return save_open_clip(student, towers, folder)
    with whole_folder(folder) as half:
        save_tensors(half / HEADS, student.state_dict())
        fusion = len(student.fusion.layers.layers) if student.fusion else 0
        write_json(
            half / "heads.json", {"towers": towers.name, "image_size": towers.image_size, "fusion_layers": fusion}
        )
    return folder


def save_open_clip(student: Student, towers: Towers, folder: Path) -> Path:
    """Write both towers and the temperature so that ``local-dir:FOLDER`` is an open_clip model.

    ``open_clip.create_model_and_transforms("local-dir:FOLDER")`` then gives the student's own features: pictures
    resized to a square (``resize_mode`` squash), bicubic, with our pixel statistics. Configuration and tokenizer of a
    Hugging Face text tower are written beside; the config names the folder by its absolute path, so after a move
    :func:`build_towers` still reads it, but open_clip alone needs ``text_cfg.hf_model_name`` changed. The fusion
    encoder has no place in open_clip and stays out.

    Raises:
        ValueError: the towers are no open_clip model that a config describes.
    """
    import open_clip

    model = towers.name if towers.name.startswith("local-dir:") else towers.name.partition(":")[0]
    config: dict[str, Any] | None = None
    if isinstance(student, TowerStudent) and not model.startswith("hf-hub"):
        config = open_clip.get_model_config(known_name(model))
    if config is None:
        raise ValueError(
            f"{type(student).__name__} on towers {towers.name!r} cannot be written as an open_clip folder: "
            "only whole towers that open_clip builds from a config can"
        )
    text, vision = config["text_cfg"], config["vision_cfg"]
    text["context_length"] = int(towers.tokenizer.context_length)
    vision["image_size"] = towers.image_size
    preprocess = {
        "size": towers.image_size,
        "mean": list(towers.mean),
        "std": list(towers.std),
        "interpolation": "bicubic",
        "resize_mode": "squash",
    }
    tensors = {
        f"{part}.{name}": tensor
        for part in ("visual", "text")
        for name, tensor in getattr(student, part).state_dict().items()
    }
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
        write_json(
            half / "open_clip_config.json", {"model_cfg": {**config, "custom_text": True}, "preprocess_cfg": preprocess}
        )
    return folder


def load_student(folder: Path | str) -> Student:
    """Read a folder of :func:`save_student`, in evaluation mode.

    Returns:
        A :class:`TowerStudent` without a fusion encoder, or a :class:`HeadStudent`, whose features come from the towers
        that ``heads.json`` names.

    Raises:
        ValueError: the folder holds neither, or is damaged.
    """
    folder = Path(folder)
    if (folder / "open_clip_config.json").is_file():
        student: Student = TowerStudent(build_towers(f"local-dir:{folder}"))
        scale = load_tensors(folder / "open_clip_model.safetensors")["logit_scale"]
        student.log_temperature.data.copy_(-scale.squeeze())
        return student.eval()
    if not (folder / HEADS).is_file():
        raise ValueError(f"{folder} holds no student: neither open_clip_config.json nor {HEADS}")
    tensors, about = load_tensors(folder / HEADS), read_json(folder / "heads.json")
    starts = [torch.zeros(tensors[f"{side}_head.proj.weight"].shape[::-1]) for side in ("image", "text")]
    widths = None
    if about["fusion_layers"]:
        widths = tensors["fusion.image_in.weight"].shape[1], tensors["fusion.text_in.weight"].shape[1]
    student = HeadStudent(*starts, token_widths=widths, fusion_layers=about["fusion_layers"])
    student.load_state_dict(tensors)
    return student.eval()

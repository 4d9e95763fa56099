"""A trained student as a folder that open_clip loads by itself."""

import json
from pathlib import Path

from rvlr_lib.models.student import Student
from rvlr_lib.models.towers import Towers, known_name
from rvlr_lib.training.checkpoint import save_tensors


def save_open_clip(student: Student, towers: Towers, folder: Path) -> Path:
    """Write both towers and the temperature so that ``local-dir:FOLDER`` is an open_clip model.

    ``open_clip.create_model_and_transforms("local-dir:FOLDER")`` then gives the student's own features: pictures
    resized to a square (``resize_mode`` squash), bicubic, with our pixel statistics. The fusion encoder has no place
    in open_clip and stays out.

    Args:
        student: trained; left as it is.
        towers: it was built from.
        folder: for ``open_clip_config.json`` and ``open_clip_model.safetensors``; made where it is not there.

    Raises:
        ValueError: the towers are no open_clip model that a config describes: heads on frozen features, a model that
            came from a folder, or a Hugging Face text tower.
    """
    import open_clip

    model = towers.name.partition(":")[0]
    known = isinstance(student.visual, open_clip.transformer.VisionTransformer) and model != "local-dir"
    config = open_clip.get_model_config(known_name(model)) if known else None
    if config is None or "hf_model_name" in config["text_cfg"]:
        raise ValueError(f"towers {towers.name!r} cannot be written as an open_clip folder: only models that open_clip "
                         "builds from a name, with its own text tower, can")  # fmt: skip
    config["text_cfg"]["context_length"] = int(towers.tokenizer.context_length)
    preprocess = {"size": towers.image_size, "mean": list(towers.mean), "std": list(towers.std),
                  "interpolation": "bicubic", "resize_mode": "squash"}  # fmt: skip
    tensors = {f"{part}.{name}": tensor.detach().cpu() for part in ("visual", "text")
               for name, tensor in getattr(student, part).state_dict().items()}  # fmt: skip
    tensors["logit_scale"] = -student.log_temperature.detach().cpu()
    folder.mkdir(parents=True, exist_ok=True)
    written = {"model_cfg": {**config, "custom_text": True}, "preprocess_cfg": preprocess}
    save_tensors(folder / "open_clip_model.safetensors", tensors)
    half = folder / ".open_clip_config.json"  # the config comes last and whole: without it the folder is no model
    half.write_text(json.dumps(written, indent=1) + "\n")
    half.replace(folder / "open_clip_config.json")
    return folder

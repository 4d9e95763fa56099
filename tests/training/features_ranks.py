"""One of two gloo processes, or a single one: shared encoding. Usage: features_ranks.py RANK COUNT FOLDER."""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from rvlr_lib.data import load_dataset
from rvlr_lib.models import TowerStudent
from rvlr_lib.training import features
from tests.tiny import tiny_towers


def main(rank: int, count: int, folder: Path) -> None:
    torch.set_num_threads(1)
    features.PICTURES, features.CAPTIONS = 4, 8  # 14 pictures in four batches, the last one half full
    if count > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=count)
    towers, dataset = tiny_towers(1), load_dataset("scenes", split="train", size=14)
    features.encode_images(towers, dataset, folder / "images", views=3, tokens=True, seed=5)
    features.encode_captions(towers, dataset, folder / "texts", tokens=True)
    images, texts = features.encode(TowerStudent(towers), dataset)
    torch.save([images, texts], folder / f"common-{rank}.pt")
    if count > 1:
        dist.barrier()
        dist.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)  # gloo's threads may outlive the group, and a normal exit then aborts now and then


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))

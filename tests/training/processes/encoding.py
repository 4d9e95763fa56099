"""One process of a group, or a single one: shared encoding and the shared cache. Usage: encoding.py FOLDER.

Rank 0 writes FOLDER/features.safetensors: features of a data set of uneven size and of one smaller than the group, and
how often each picture was encoded, over all processes.
"""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rvlr_lib.models import Student, build_towers
from rvlr_lib.study.cache import cached
from rvlr_lib.training import stages
from rvlr_lib.training.gather import add_up, processes
from rvlr_lib.training.processes import broadcast_json, is_main, leave, process_group

sys.path.insert(0, str(Path(__file__).parent))
from gradients import CPU, toy_pairs


def main(folder: Path) -> None:
    stages.ENCODE_BATCH = 4  # 14 pictures in four batches, the last one half full
    towers, found = build_towers("tiny"), {}
    with process_group(CPU, 60):
        for name, pairs in (("uneven", toy_pairs()), ("small", toy_pairs().subset([3, 1]))):
            student, seen = Student(towers), torch.zeros(len(pairs))
            pixels = pairs.source.pixels

            def counted(rows, size, seen=seen, pixels=pixels):
                seen[rows] += 1
                return pixels(rows, size)

            pairs.source.pixels = counted
            images, texts = stages.encode_with_student(student, pairs, towers, CPU)
            found |= {f"{name}/images": images, f"{name}/texts": texts, f"{name}/seen": add_up(seen)}
        rank, count = processes()

        def compute(target):
            assert broadcast_json([rank, "ü"]) == [0, "ü"]
            (target / "who").write_text(str(rank))

        for _ in range(2):
            assert (
                cached(folder, "stage", {"count": count}, "rvlr_lib.similarity", compute) / "who"
            ).read_text() == "0"
        if count > 1:
            with pytest.raises(ValueError, match="not the same in all processes"):
                cached(folder, "stage", {"own": is_main()}, "rvlr_lib.similarity", lambda target: None)
        if is_main():
            save_file(found, folder / "features.safetensors")
        leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""No user file, however damaged, ends in a traceback: it is read, or one line says what is wrong."""

import numpy as np
import pytest

from rvlr_lib import cli

CONTENTS = {"empty": b"", "zeros": bytes(64), "list": b"[]", "number": b"5", "null": b"null", "no plan": b"study: 7"}
CONTENTS |= {"nested": b'{"a": [{"b": 1}], "images": 3, "annotations": {}, "runs": [1], "study": {"sets": {"a": 5}}}'}
CONTENTS |= {"rows": b'[{"image": 1, "caption": {}}, 3, null]', "half": b'{"images": [{"id": 1, "file_na'}
CONTENTS |= {"not UTF-8": b"\xff\xfe\xfa\xe9caption", "zip": b"PK\x03\x04" + bytes(40), "no sets": b"study: {sets: 3}"}
CONTENTS |= {"array": b"\x93NUMPY\x01\x00v\x00{'descr': '<f8'", "words": b'image,caption\n"a,b\nc;d\te\n\x00'}
CONTENTS |= {"tensors": b'\x10\x00\x00\x00\x00\x00\x00\x00{"a": {"dtype"', "circle": b"for: &a {emoji: *a}\nseed: *a"}
ARRAYS = (".npy", ".npz", ".pt", ".safetensors")
COMMANDS = {
    "data": ("data check {file}", (".json", ".jsonl", ".csv", ".tsv", ".txt", ".yaml")),
    "captions": ("audit --image-features {good} --text-features {good} --captions {file} --out {out}", (".json",)),
    "features": ("audit --image-features {file} --text-features {good} --captions {captions} --out {out}", ARRAYS),
    "preset": ("config {file}", (".yaml",)),
    "profile": ("reproduce --profile {file} --out {out}", (".yaml",)),
    "plan": ("study --profile {file} --results {out}", (".yaml",)),
}
COMMANDS |= {name: (f"{name} {{folder}}", ("run.json",)) for name in ("report", "explore", "table --run")}


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize(("command", "name"), [(key, name) for key, (_, names) in COMMANDS.items() for name in names])
def test_a_damaged_file_is_never_a_traceback(command, name, content, tmp_path, capsys):
    file = tmp_path / (name if name == "run.json" else f"file{name}")
    file.write_bytes(CONTENTS[content])
    np.save(tmp_path / "good.npy", np.eye(4))
    (tmp_path / "captions.json").write_text('["a", "b", "c", "d"]')
    places = {"file": file, "folder": tmp_path, "good": tmp_path / "good.npy", "captions": tmp_path / "captions.json"}
    code = cli.main(COMMANDS[command][0].format(out=tmp_path / "out", **places).split())
    output = capsys.readouterr()
    assert code in ((0, 1, 2) if command in ("data", "preset") else (2,)), output
    assert code != 2 or output.err.startswith("rvlr: ")

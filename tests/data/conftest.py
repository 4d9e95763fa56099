import sys
from pathlib import Path

import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))  # for user_tools

from user_tools import NAMES


@pytest.fixture
def place(tmp_path):
    """A folder of 40 pictures."""
    for i, name in enumerate(NAMES):
        Image.new("RGB", (5 + i % 3, 4), (5 * i, 255 - 3 * i, i)).save(tmp_path / name)
    return tmp_path

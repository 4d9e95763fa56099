import pytest
from PIL import Image

from tests.data.user_tools import NAMES


@pytest.fixture
def place(tmp_path):
    """A folder with 40 pictures."""
    for i, name in enumerate(NAMES):
        Image.new("RGB", (5 + i % 3, 4), (5 * i, 255 - 3 * i, i)).save(tmp_path / name)
    return tmp_path

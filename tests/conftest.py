"""Fixtures shared by the tests of several packages."""

import pytest

from rvlr_lib.data import ImbalanceSpec, load_dataset


@pytest.fixture(scope="session")
def towers():
    from tests.tiny import tiny_towers  # imports open_clip, which most tests do not need

    return tiny_towers()


@pytest.fixture(scope="session")
def scenes():
    return load_dataset("scenes", split="test", galleries=1, gallery_size=40, imbalance=ImbalanceSpec())


@pytest.fixture(scope="session")
def emoji():
    return load_dataset("emoji", split="test").subset(range(60))


@pytest.fixture(scope="session")
def refuses():
    """Function (message, call, ...) that asserts that the call raises a ValueError matching the message."""

    def check(message, call, /, *arguments, **options):
        with pytest.raises(ValueError, match=message):
            call(*arguments, **options)

    return check

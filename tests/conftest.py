"""What the tests of several rooms share."""

import pytest

from rvlr_lib.data import ImbalanceSpec, load_dataset


@pytest.fixture(scope="session")
def towers():
    from tests.tiny import tiny_towers  # with open_clip, which most rooms do without

    return tiny_towers()


@pytest.fixture(scope="session")
def scenes():
    return load_dataset("scenes", split="test", galleries=1, gallery_size=40, imbalance=ImbalanceSpec())


@pytest.fixture(scope="session")
def emoji():
    return load_dataset("emoji", split="test").subset(range(60))


@pytest.fixture(scope="session")
def refuses():
    """Function (message, call, ...): the call ends in a ValueError that says so."""

    def check(message, call, /, *arguments, **options):
        with pytest.raises(ValueError, match=message):
            call(*arguments, **options)

    return check

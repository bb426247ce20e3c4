"""torch's classes overwritten for a block, and only for it."""

import pytest
import torch
import wrapkit
from torch import nn
from wrapkit.backends.bitnet import BitLinear


def test_by_class_and_by_backend_name():
    linear, adam = nn.Linear, torch.optim.AdamW
    with wrapkit.inject(Linear="bitlinear", AdamW=torch.optim.SGD):
        assert nn.Linear is BitLinear
        assert torch.optim.AdamW is torch.optim.SGD
    assert nn.Linear is linear
    assert torch.optim.AdamW is adam


def test_nested_and_entered_again():
    class A(nn.Linear):
        pass

    original, injection = nn.Linear, wrapkit.inject(Linear=A)
    with injection:
        with wrapkit.inject(Linear=BitLinear), injection:
            assert nn.Linear is A
        assert nn.Linear is A
    assert nn.Linear is original


def test_mistakes_overwrite_nothing():
    original = nn.Linear
    with pytest.raises(AttributeError, match=r"neither torch\.nn nor torch\.optim has a 'Linaer'"):
        wrapkit.inject(Linear=BitLinear, Linaer=BitLinear)
    with pytest.raises(TypeError, match="must be overwritten by a class, got 3"):
        wrapkit.inject(Linear=3)
    assert nn.Linear is original

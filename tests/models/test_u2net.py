"""U2-Net and U2-Net-P."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from segops import models
from segops.models import SegmentationModel
from segops.models.u2net import U2Net
from tests.models import checks
from tests.models.plain import u2net as plain


@pytest.fixture(scope="module")
def small() -> SegmentationModel:
    return checks.build("u2netp", 2)


@pytest.mark.parametrize(("name", "count"), [("u2net", 44_009_869), ("u2netp", 1_131_181)])
def test_parameters(name: str, count: int) -> None:
    assert checks.parameters(checks.on_meta(name)) == count


def test_any_size(small: SegmentationModel) -> None:
    checks.check_sizes(small, 2, [(1, 1), (7, 65), (45, 38)])


def test_graphs() -> None:
    """With both kinds of block, and less of them: tracing takes its time with every layer."""
    model = U2Net(2, 3, ((3, 4, 8), (None, 4, 8), (3, 4, 8)))
    checks.shake(model)
    checks.check_graphs(model, 45, 38)


@pytest.mark.parametrize(("name", "table"), [("u2net", plain.FULL), ("u2netp", plain.SMALL)])
@pytest.mark.parametrize("size", [(33, 50)])
def test_parity(name: str, table: dict[str, tuple[int, int, int, int]], size: tuple[int, int]) -> None:
    checks.check_parity(name, plain.U2Net(table), checks.image(*size, batch=2), None)


def test_gradients_are_those_of_the_plain_network() -> None:
    theirs = plain.U2Net(plain.SMALL).double()
    checks.shake(theirs)
    ours = models.create_model("u2netp").double()
    ours.load_state_dict(models.convert_official_state_dict("u2netp", theirs.state_dict()))
    x = checks.image(40, 35, batch=2, dtype=torch.float64)
    inputs = [x.clone().requires_grad_(), x.clone().requires_grad_()]
    for network, given in ((theirs, inputs[0]), (lambda given: ours(given, raw_output=True), inputs[1])):
        sum((i + 1) * d.log().mean() for i, d in enumerate(network(given))).backward()
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad, rtol=1e-6, atol=1e-12)
    state = {key: p.grad for key, p in theirs.named_parameters()}
    state |= {key: b for key, b in theirs.named_buffers()}
    gradients = models.convert_official_state_dict("u2netp", state)
    for key, p in ours.named_parameters():
        torch.testing.assert_close(p.grad, gradients[key], rtol=1e-6, atol=1e-9)


def test_side_outputs(small: SegmentationModel) -> None:
    x = checks.image(45, 38)
    with torch.no_grad():
        coarse = small.coarse_logits(x, True)
        assert [tuple(d.shape[2:]) for d in coarse] == [
            (45, 38), (45, 38), (23, 19), (12, 10), (6, 5), (3, 3), (2, 2),
        ]  # fmt: skip
        listed = small(x, side_outputs=True)
        raw = small(x, raw_output=True)
        assert len(small.coarse_logits(x)) == 1
        torch.testing.assert_close(small(x), listed[0])
    for logits, probability in zip(listed, raw, strict=True):
        torch.testing.assert_close(logits.sigmoid(), probability)


def test_16_bit() -> None:
    """As close to the result in float64 as the plain network is in that dtype, or twice as far."""
    theirs = plain.U2Net(plain.SMALL).eval()
    checks.shake(theirs)
    ours = models.create_model("u2netp").eval()
    ours.load_state_dict(models.convert_official_state_dict("u2netp", theirs.state_dict()))
    x = checks.image(40, 35)
    with torch.no_grad():
        exact = theirs.double()(x.double())[0]
        expected = theirs.bfloat16()(x.bfloat16())[0]
        actual = ours.bfloat16()(x.bfloat16(), raw_output=True)[0]
    assert actual.dtype == torch.bfloat16
    assert float((actual - exact).abs().max()) <= 2 * float((expected - exact).abs().max())


def test_checkpoint_file(tmp_path: Path) -> None:
    official = plain.U2Net({**plain.SMALL, "1": (7, 1, 16, 64)}, num_classes=3)
    torch.save({"state_dict": {f"module.{k}": v for k, v in official.state_dict().items()}}, tmp_path / "u2netp.pth")
    model = models.load_official("u2netp", tmp_path / "u2netp.pth").eval()
    x = checks.image(20, 20, channels=1)
    with torch.no_grad():
        torch.testing.assert_close(model(x, raw_output=True), official.eval()(x))


def test_keys_that_do_not_fit() -> None:
    state = plain.U2Net(plain.SMALL).state_dict()
    for key, message in (
        ("stage3.rebnconv2.conv_s1.bias", "missing key 'stage3.rebnconv2.conv_s1.bias'"),
        ("outconv.weight", "lacks the key 'outconv.weight'"),
    ):
        with pytest.raises(ValueError, match=message):
            models.convert_official_state_dict("u2netp", {k: v for k, v in state.items() if k != key})
    with pytest.raises(ValueError, match=r"'u2netp' has no use for the key 'stage5.rebnconv5.conv_s1.weight'"):
        models.convert_official_state_dict("u2netp", {**state, "stage5.rebnconv5.conv_s1.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"the key '.*' of the checkpoint of 'u2net' has the shape"):
        models.convert_official_state_dict("u2net", state)

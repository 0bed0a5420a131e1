import pickle

import pytest
import torch

from segops import models
from tests.models import checks


@pytest.mark.parametrize("name", models.list_models())
def test_every_name_is_a_network(name: str) -> None:
    model = checks.on_meta(name, 5)
    assert isinstance(model, models.SegmentationModel)
    assert checks.parameters(model) > 10_000


def test_names_are_unique() -> None:
    assert len(set(models.list_models())) == len(models.list_models())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("unett", 3), ValueError, "there is no network 'unett'; there are scene_parsing_2009, fcn32s"),
        (("unet",), ValueError, "'unet' needs num_classes"),
        (("unet", 0), ValueError, "num_classes must be positive, got 0"),
        (("unet", 2.0), TypeError, "num_classes must be an int, got 2.0"),
        (("unet", 2, True), TypeError, "in_channels must be an int, got True"),
        (("unet", 2, -1), ValueError, "in_channels must be positive, got -1"),
    ],
)
def test_bad_arguments(arguments, error, message) -> None:
    with pytest.raises(error, match=message):
        models.create_model(*arguments)


def test_an_unknown_option() -> None:
    with pytest.raises(TypeError, match="depth"):
        models.create_model("unet", 2, depth=3)


def test_many_families_are_compiled_in_one_process() -> None:
    """More than torch.compile allows for one function."""

    def family(number: int) -> type[models.SegmentationModel]:
        class Family(models.SegmentationModel):
            def coarse_logits(self, input: torch.Tensor, side_outputs: bool = False) -> list[torch.Tensor]:
                return [input[..., ::2, ::2] * number]

        return Family

    x = torch.rand(1, 2, 8, 6)
    for number in range(torch._dynamo.config.recompile_limit + 3):
        model = family(number)().eval()
        torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="eager")(x), model(x))


class Harmful:
    def __reduce__(self):
        return (exec, ("raise SystemExit('executed')",))


def test_pickled_code_is_not_executed(tmp_path) -> None:
    path = tmp_path / "harmful.pth"
    torch.save({"state_dict": {"inc": Harmful()}}, path)
    with pytest.raises(ValueError, match=r"harmful.pth cannot be read as tensors alone"):
        models.load_official("unet", path)
    path.write_bytes(pickle.dumps(Harmful()))
    with pytest.raises(ValueError, match=r"harmful.pth cannot be read as tensors alone"):
        models.load_official("unet", path)


def test_files_that_are_no_checkpoints(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none.pth"):
        models.load_official("unet", tmp_path / "none.pth")
    torch.save(torch.ones(3), tmp_path / "tensor.pth")
    with pytest.raises(ValueError, match="holds a Tensor, expected a mapping"):
        models.load_official("unet", tmp_path / "tensor.pth")
    (tmp_path / "empty.pth").touch()
    with pytest.raises(ValueError, match=r"empty.pth cannot be read"):
        models.load_official("unet", tmp_path / "empty.pth")

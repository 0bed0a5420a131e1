"""sync: two or three ranks with parts of the images have the metrics of all."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from segops.metrics import InstanceAP, SaliencyMetrics, SegmentationMetrics
from tests.ranks import needs_gloo, results_of

pytestmark = needs_gloo

#: Images of each rank; one may have none.
PARTS = {2: (1, 3), 3: (2, 0, 2)}


def updated(begin: int, end: int) -> list:
    generator = torch.Generator().manual_seed(4)
    labels = torch.randint(0, 3, (2, 4, 9, 11), generator=generator)
    maps, scores = torch.rand(4, 9, 11, generator=generator), torch.rand(4, 3, generator=generator)
    metrics = [SegmentationMetrics(3), SaliencyMetrics(), InstanceAP(3)]
    if begin < end:
        metrics[0].update(labels[0, begin:end], labels[1, begin:end])
        metrics[1].update(maps[begin:end], labels[0, begin:end] == 1)
    for i in range(begin, end):
        masks = [torch.stack([kind[i] >= k for k in range(3)]) for kind in labels]
        prediction = {"masks": masks[0], "scores": scores[i], "labels": torch.arange(3)}
        metrics[2].update([prediction], [{"masks": masks[1], "labels": torch.arange(3)}])
    return metrics


def run_rank(rank: int, ranks: int) -> list:
    begin = sum(PARTS[ranks][:rank])
    metrics = updated(begin, begin + PARTS[ranks][rank])
    # Twice: nothing is counted twice.
    return [metric.sync().sync(dist.group.WORLD).compute() for metric in metrics]


@pytest.mark.parametrize("ranks", PARTS)
def test_ranks_equal_one_with_all_images(ranks, tmp_path):
    expected = [metric.compute() for metric in updated(0, 4)]
    for results in results_of(ranks, tmp_path, run_rank):
        for found, whole in zip(results, expected, strict=True):
            for name, value in whole.items():
                torch.testing.assert_close(found[name], value, rtol=1e-12, atol=1e-12, equal_nan=True, msg=name)


def test_sync_needs_a_group():
    for metric in updated(0, 1):
        with pytest.raises(ValueError, match="sync needs an initialised"):
            metric.sync()

"""sync: two or three ranks with parts of the images have the metrics of all."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from segops.metrics import InstanceAP, SaliencyMetrics, SegmentationMetrics

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="torch.distributed has no gloo here"
)

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


def run_rank(rank: int, ranks: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=ranks, timeout=timedelta(seconds=120)
    )
    begin = sum(PARTS[ranks][:rank])
    metrics = updated(begin, begin + PARTS[ranks][rank])
    # Twice: nothing is counted twice.
    results = [metric.sync().sync(dist.group.WORLD).compute() for metric in metrics]
    torch.save(results, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("ranks", PARTS)
def test_ranks_equal_one_with_all_images(ranks, tmp_path):
    torch.multiprocessing.start_processes(run_rank, (ranks, str(tmp_path)), nprocs=ranks, start_method="spawn")
    expected = [metric.compute() for metric in updated(0, 4)]
    for rank in range(ranks):
        for found, whole in zip(torch.load(tmp_path / f"{rank}.pt"), expected, strict=True):
            for name, value in whole.items():
                torch.testing.assert_close(found[name], value, rtol=1e-12, atol=1e-12, equal_nan=True, msg=name)


def test_sync_needs_a_group():
    for metric in updated(0, 1):
        with pytest.raises(ValueError, match="sync needs an initialised"):
            metric.sync()

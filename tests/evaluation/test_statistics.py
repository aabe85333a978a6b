"""Statistics are exact, the same however they were cut, and never compared with what they cannot be compared with."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mezzotint.checkpoints.files import write_state
from mezzotint.errors import CheckpointError, ConfigError
from mezzotint.evaluation.statistics import (
    Chunk,
    Moments,
    Provenance,
    Statistics,
    check_comparable,
    chunk_of,
    chunks_of,
    merge,
    moments_of,
    pooled,
    read_statistics,
    reduced,
    statistics_of,
    write_statistics,
)

OURS = Provenance(extractor="clip", extractor_sha256="1a2b3c4d" * 8, protocol="clean", settings={"seed": "1"}, tool="x")


def drawn(n: int = 300, width: int = 12, seed: int = 0) -> Tensor:
    """Rectified features whose variances differ by a thousand."""
    noise = torch.randn(n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (noise.relu() * torch.logspace(0, -1.5, width, dtype=torch.float64)).float()


def worst(found: Moments, x: Tensor) -> float:
    """The largest error of mean and covariance, in the unit of the smallest variance."""
    exact = torch.tensor(np.cov(x.double().numpy(), rowvar=False))
    apart = max(float((found.covariance - exact).abs().max()), float((found.mean - x.double().mean(0)).abs().max()))
    return apart / float(exact.diagonal().min())


def summed(x: Tensor, dtype: torch.dtype) -> Moments:
    """Plain sums of x and x x^T, as evaluators keep them."""
    x = x.to(dtype)
    n, total, outer = len(x), x.sum(0), x.T @ x
    return Moments(n, (total / n).double(), ((outer - torch.outer(total, total) / n) / (n - 1)).double())


def test_moments_are_numpys() -> None:
    assert worst(statistics_of(drawn(), OURS, size=70).moments(), drawn()) < 1e-11


def test_float32_sums_lose_small_variances() -> None:
    """The mistake of evaluators: accumulators in float32. A variance of 1e-6 beside a mean of 1 is lost in them."""
    x = 1 + 1e-3 * drawn()
    assert worst(moments_of(chunks_of(x, 50)), x) < 1e-6
    assert worst(summed(x, torch.float32), x) > 0.1


def test_plain_float64_sums_lose_digits_where_ours_do_not() -> None:
    x = 3e4 + drawn()
    assert worst(moments_of(chunks_of(x, 50)), x) < 1e-6
    assert worst(summed(x, torch.float64), x) > 1e-5


def test_chunking_changes_nothing() -> None:
    whole = moments_of([chunk_of(drawn())])
    for size in (1, 7, 100, 299):
        other = moments_of(chunks_of(drawn(), size))
        torch.testing.assert_close(other.covariance, whole.covariance, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(other.mean, whole.mean, rtol=1e-12, atol=1e-14)
    assert statistics_of(drawn(), OURS, size=7).digest() == statistics_of(drawn(), OURS, size=100).digest()
    assert statistics_of(drawn(), OURS).digest() != statistics_of(drawn(seed=1), OURS).digest()


def test_merge_order_changes_not_one_bit() -> None:
    """Parts of four workers, in two orders; chunks that were summed as they came would differ in the last digits."""
    chunks = chunks_of(drawn(), 11)
    parts = [Statistics(provenance=OURS, chunks=chunks[i::4]) for i in range(4)]
    one, other = merge(parts).moments(), merge(parts[::-1]).moments()
    assert one.covariance.equal(other.covariance)
    assert one.mean.equal(other.mean)
    assert one.covariance.equal(moments_of(chunks).covariance)

    def as_they_come(chunks: tuple[Chunk, ...]) -> Tensor:
        total = torch.zeros_like(chunks[0].scatter)
        for chunk in chunks:
            total += chunk.scatter
        return total

    assert not as_they_come(chunks).equal(as_they_come(chunks[::-1]))


def test_blocks_hold_everything_once() -> None:
    found = statistics_of(drawn(), OURS, size=7)
    blocks = found.blocks(10)
    assert [sum(block.n for block in blocks), len(blocks), found.count] == [300, 10, 300]
    assert {block.n for block in blocks} <= {28, 34, 35}
    torch.testing.assert_close(moments_of(blocks).covariance, found.moments().covariance, rtol=1e-12, atol=1e-14)
    assert found.blocks(100) == found.chunks


def test_file_is_the_same_statistics_and_the_same_bytes(tmp_path: Path) -> None:
    found = statistics_of(drawn(), OURS, size=70)
    path = tmp_path / "a.stats.safetensors"
    write_statistics(path, found)
    again = read_statistics(path)
    assert again.provenance == OURS
    for one, other in zip(found.chunks, again.chunks, strict=True):
        assert (one.first, one.n) == (other.first, other.n)
        assert one.mean.equal(other.mean)
        assert one.scatter.equal(other.scatter)
    write_statistics(tmp_path / "b", merge([again]))
    assert (tmp_path / "b").read_bytes() == path.read_bytes()
    assert path.stat().st_size < 5 * (12 * 13 / 2 + 14) * 8 + 1000  # triangles, not squares


@pytest.mark.parametrize(("extra", "count"), [({}, None), ({"n": np.array(50)}, 50), ({"N": np.array(9)}, 9)])
def test_archives_of_other_programs_are_read(tmp_path: Path, extra: dict[str, np.ndarray], count: int | None) -> None:
    exact = moments_of([chunk_of(drawn())])
    path = tmp_path / "their.npz"
    np.savez(path, mu=exact.mean.numpy()[None], sigma=exact.covariance.numpy(), **extra)  # pyright: ignore[reportArgumentType] # NumPy 2.4 types **kwds as bool
    found = read_statistics(path)
    assert found.moments().covariance.equal(exact.covariance)
    assert found.count == count
    assert found.provenance.protocol is None
    assert read_statistics(path, OURS).provenance == OURS
    # kept as ours, they are still not more than they were
    write_statistics(tmp_path / "kept", found)
    kept = read_statistics(tmp_path / "kept")
    assert (kept.count, kept.provenance) == (count, found.provenance)
    with pytest.raises(ConfigError, match="merge: statistics of another program have no chunks"):
        merge([kept])


def test_archives_that_are_something_else_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "their.npz"
    with pytest.raises(CheckpointError, match="cannot be read: No such file"):
        read_statistics(path)
    path.write_bytes(b"PK\x03\x04 not really")
    with pytest.raises(CheckpointError, match="is not a NumPy archive of statistics"):
        read_statistics(path)
    np.savez(path, arr_0=np.zeros(3))
    with pytest.raises(CheckpointError, match=r"no 'mu' in it \(arr_0\); arrays mu and sigma are expected"):
        read_statistics(path)
    np.savez(path, mu=np.zeros(3), sigma=np.eye(4))
    with pytest.raises(CheckpointError, match=r"sigma \(4, 4\) does not fit mu of 3"):
        read_statistics(path)
    np.savez(path, mu=np.zeros(3), sigma=np.triu(np.ones((3, 3))))
    with pytest.raises(CheckpointError, match="not the mean and covariance of anything"):
        read_statistics(path)
    np.savez(path, mu=np.array([object()]), sigma=np.eye(1))
    with pytest.raises(CheckpointError, match="Object arrays cannot be loaded"):
        read_statistics(path)


def test_files_that_are_damaged_or_later_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.stats.safetensors"
    write_state(path, {"weight": torch.zeros(2)})
    with pytest.raises(CheckpointError, match="holds no statistics"):
        read_statistics(path)
    write_state(path, {"mean": torch.zeros(1, 2)}, {"schema": "2", "provenance": "{}"})
    with pytest.raises(CheckpointError, match="statistics of schema 2 → 1 expected; update mezzotint"):
        read_statistics(path)
    told = '{"extractor": null, "extractor_sha256": null, "protocol": null}'
    write_state(path, {"mean": torch.zeros(1, 2)}, {"schema": "1", "provenance": told})
    with pytest.raises(CheckpointError, match="damaged statistics"):
        read_statistics(path)


def test_what_is_known_to_differ_is_not_compared() -> None:
    one = statistics_of(drawn(), OURS)
    assert check_comparable(one, one) == ()
    for name, other in (("protocol", "tf1"), ("extractor", "inception"), ("extractor_sha256", "0" * 64)):
        with pytest.raises(ConfigError, match=f"cannot be compared: {name} is .* and '{other}'"):
            check_comparable(one, replace(one, provenance=replace(OURS, **{name: other})))
    with pytest.raises(ConfigError, match="features of 12 and 5 numbers"):
        check_comparable(one, statistics_of(drawn(width=5), OURS))
    doubtful = Statistics(provenance=replace(OURS, protocol=None), given=Moments(None, *one.moments()[1:]))
    assert check_comparable(one, doubtful) == ("protocol unknown (clean and unknown)", "number of pictures unknown")


def test_what_does_not_belong_together_is_not_merged() -> None:
    one = statistics_of(drawn(), OURS)
    with pytest.raises(ConfigError, match="merge: settings differs"):
        merge([one, replace(one, provenance=replace(OURS, settings={"seed": "2"}))])
    with pytest.raises(ConfigError, match="work units 0 … 299 are in two chunks; each may be counted once"):
        merge([one, one])
    with pytest.raises(ConfigError, match="merge: no statistics"):
        merge([])
    with pytest.raises(ConfigError, match=r"features of different widths \(5, 12\)"):
        Statistics(provenance=OURS, chunks=(chunk_of(drawn()), chunk_of(drawn(width=5), 300)))
    with pytest.raises(ConfigError, match="either chunks or given moments"):
        Statistics(provenance=OURS)


def test_features_that_are_no_numbers_are_refused() -> None:
    x = drawn()
    x[5, 3] = torch.nan
    with pytest.raises(ConfigError, match="the features of work unit 105 are not finite"):
        chunk_of(x, 100)
    with pytest.raises(ConfigError, match="a chunk without features"):
        chunk_of(x[:0])
    with pytest.raises(ConfigError, match="one picture has no covariance; at least 2"):
        moments_of([chunk_of(drawn(1))])


def test_a_chunk_can_be_taken_out_again() -> None:
    chunks = chunks_of(drawn(), 50)
    for i, chunk in enumerate(chunks):
        found, exact = reduced(pooled(chunks), chunk), pooled([*chunks[:i], *chunks[i + 1 :]])
        assert found.n == exact.n
        torch.testing.assert_close(found.mean, exact.mean, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(found.scatter, exact.scatter, rtol=1e-12, atol=1e-13)


def test_pooling_shuffled_chunks_is_pooling() -> None:
    chunks = chunks_of(drawn(), 50)
    assert pooled(chunks[::-1]).scatter.equal(pooled(chunks).scatter)
    assert pooled(chunks[::-1]).first == 0

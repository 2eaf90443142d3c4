"""One level of an unknown tree: clusters of rows and columns with blocks of rank one."""

import itertools

import numpy as np
import pytest

from flatwing.factorize import clusters as module
from flatwing.factorize.clusters import (
    Clusters,
    balanced,
    by_columns,
    descend,
    find_clusters,
    gather_rows,
    lines,
    starts,
)


def planted(batch: int, size: int, clusters: int, parts: int, m: int, dtype: type = np.float64) -> tuple:
    """Values with blocks of rank one in shuffled rows and columns, and the clusters that were planted."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        real = rng.standard_normal(shape)
        return real + 1j * rng.standard_normal(shape) if dtype is np.complex128 else real

    left, right = normal(batch, parts, clusters, size), normal(batch, parts, clusters, m)
    blocks = np.einsum("bgkq,bgkm->bkqgm", left, right).reshape(batch, clusters * size, parts * m)
    rows = rng.permutation(clusters * size)
    columns = np.stack([rng.permutation(parts * m) for _ in range(batch)])
    values = np.empty_like(blocks)
    for b in range(batch):
        values[b][rows[:, None], columns[b]] = blocks[b]
    return values, rows.reshape(clusters, size), columns.reshape(batch, parts, m)


def as_sets(clusters: np.ndarray) -> set[frozenset[int]]:
    return {frozenset(cluster.tolist()) for cluster in clusters}


def loss_by_definition(values: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> float:
    return sum(
        float((np.linalg.svd(values[b][row][:, cluster], compute_uv=False)[1:] ** 2).sum())
        for b in range(len(values))
        for row in rows
        for cluster in columns[b]
    )


@pytest.mark.parametrize("dtype", [np.float64, np.complex128])
@pytest.mark.parametrize(
    ("batch", "size", "clusters", "parts", "m"), [(1, 2, 4, 2, 4), (3, 2, 6, 2, 5), (2, 3, 4, 2, 6), (1, 4, 3, 3, 5)]
)
def test_planted_clusters_are_found(batch: int, size: int, clusters: int, parts: int, m: int, dtype: type) -> None:
    values, rows, columns = planted(batch, size, clusters, parts, m, dtype)
    found = find_clusters(values, size, parts, np.random.default_rng(0))
    assert as_sets(found.rows) == as_sets(rows)
    for ours, theirs in zip(found.columns, columns, strict=True):
        assert as_sets(ours) == as_sets(theirs)
    assert abs(found.loss) < 1e-12 * (np.abs(values) ** 2).sum()


@pytest.mark.parametrize("seed", range(3))
def test_clusters_are_found_in_noise(seed: int) -> None:
    values, rows, columns = planted(2, 2, 8, 2, 8)
    values = values + 0.1 * np.random.default_rng(seed).standard_normal(values.shape)
    found = find_clusters(values, 2, 2, np.random.default_rng(seed))
    assert found.loss <= 1.001 * Clusters(values, rows, columns).loss


def test_one_cluster_of_columns_needs_no_start() -> None:
    values, rows, _ = planted(1, 3, 4, 1, 7)
    found = find_clusters(values, 3, 1, np.random.default_rng(0))
    assert as_sets(found.rows) == as_sets(rows)
    assert found.columns.tolist() == [[list(range(7))]]


def test_loss_and_parts_are_those_of_singular_values() -> None:
    values, rows, columns = planted(2, 3, 2, 2, 4, np.complex128)
    values = values + np.random.default_rng(1).standard_normal(values.shape)
    clusters = Clusters(values, rows, columns)
    assert clusters.loss == pytest.approx(loss_by_definition(values, rows, columns), rel=1e-12)
    best = clusters.left[..., None] * clusters.right[..., None, :]
    assert (np.abs(clusters.blocks - best) ** 2).sum() == pytest.approx(clusters.loss, rel=1e-12)
    b, g, k = 1, 1, 0
    expected = values[b][rows[k]][:, columns[b, g]]
    np.testing.assert_array_equal(clusters.blocks[b, g, k], expected)
    np.testing.assert_array_equal(by_columns(values, columns)[b, g], values[b][:, columns[b, g]])


@pytest.mark.parametrize("step", [Clusters.place_columns, Clusters.place_rows])
@pytest.mark.parametrize("seed", range(5))
def test_no_step_increases_the_loss(step: object, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((2, 6, 8)) + 1j * rng.standard_normal((2, 6, 8))
    columns = np.stack([rng.permutation(8).reshape(2, 4) for _ in range(2)])
    before = Clusters(values, rng.permutation(6).reshape(3, 2), columns)
    after = step(before)  # type: ignore[operator]
    assert after.loss <= before.loss * (1 + 1e-12)
    assert sorted(after.rows.reshape(-1).tolist()) == list(range(6))
    assert np.sort(after.columns.reshape(2, -1)).tolist() == [list(range(8))] * 2


def test_one_misplaced_column_goes_home() -> None:
    values, rows, columns = planted(1, 2, 6, 2, 5)
    moved = columns.copy()
    moved[0, 0, 0], moved[0, 1, 0] = columns[0, 1, 0], columns[0, 0, 0]
    assert as_sets(Clusters(values, rows, moved).place_columns().columns[0]) == as_sets(columns[0])


def test_one_misplaced_row_goes_home() -> None:
    values, rows, columns = planted(1, 5, 3, 2, 6)
    moved = rows.copy()
    moved[0, 0], moved[1, 0] = rows[1, 0], rows[0, 0]
    assert as_sets(Clusters(values, moved, columns).place_rows().rows) == as_sets(rows)


def test_only_trusted_rows_place_columns() -> None:
    values, rows, columns = planted(1, 2, 10, 2, 5)
    noisy = values.copy()
    noisy[:, rows[2:].reshape(-1)] = 10 * np.random.default_rng(1).standard_normal((16, 10))
    moved = columns.copy()
    moved[0, 0, 0], moved[0, 1, 0] = columns[0, 1, 0], columns[0, 0, 0]
    clusters = Clusters(noisy, rows, moved)
    assert as_sets(clusters.place_columns(0.2).columns[0]) == as_sets(columns[0])
    assert as_sets(clusters.place_columns(1.0).columns[0]) != as_sets(columns[0])


def test_rows_and_columns_take_turns() -> None:
    values, rows, columns = planted(1, 5, 3, 2, 6)
    moved, mixed = rows.copy(), columns.copy()
    moved[0, 0], moved[1, 0] = rows[1, 0], rows[0, 0]
    mixed[0, 0, 0], mixed[0, 1, 0] = columns[0, 1, 0], columns[0, 0, 0]
    found = descend(Clusters(values, moved, mixed))
    assert as_sets(found.rows) == as_sets(rows)
    assert as_sets(found.columns[0]) == as_sets(columns[0])


def test_lines_turn_towards_their_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = np.random.default_rng(0).standard_normal((3, 1, 20, 2))
    after, _ = lines(pairs, 2)
    monkeypatch.setattr(module, "LINE_STEPS", 0)
    before, _ = lines(pairs, 2)
    assert (after < before).all()


def test_assignment_is_the_best_of_all() -> None:
    rng = np.random.default_rng(0)
    for _ in range(5):
        gain = rng.standard_normal((6, 3))
        members = balanced(gain)
        assert sorted(members.reshape(-1).tolist()) == list(range(6))
        best = max(sum(gain[i, j // 2] for j, i in enumerate(order)) for order in itertools.permutations(range(6)))
        assert sum(gain[row, j].sum() for j, row in enumerate(members)) == pytest.approx(best)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_rows_that_are_parallel_are_gathered(size: int) -> None:
    values, rows, columns = planted(2, size, 12 // size, 2, 6, np.complex128)
    assert as_sets(gather_rows(values, columns, size)) == as_sets(rows)


def test_lines_of_pairs() -> None:
    values, rows, columns = planted(2, 2, 4, 2, 5, np.complex128)
    inside, across = values[:, rows[0]], values[:, [rows[0, 0], rows[1, 0]]]
    left, explained = lines(np.stack([inside, across]).swapaxes(-1, -2), 2)
    assert left[0] == pytest.approx(0, abs=1e-12)
    assert left[1] > 0.01
    for b in range(2):
        assert as_sets(balanced(explained[0, b].T)) == as_sets(columns[b])


def test_best_starts_come_first_and_are_partitions() -> None:
    values, _, columns = planted(1, 2, 6, 3, 4)
    given = list(starts(values, 3, np.random.default_rng(0)))
    assert as_sets(given[0][0]) == as_sets(columns[0])
    for start in given:
        assert sorted(start.reshape(-1).tolist()) == list(range(12))


def test_zeros_are_clustered_without_a_warning() -> None:
    values = np.zeros((1, 4, 4))
    assert find_clusters(values, 2, 2, np.random.default_rng(0)).loss == 0

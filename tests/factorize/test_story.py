"""Squared errors of cuts in one memory: the same arrays, orders and sums as the mapping they were made of."""

import numpy as np

from flatwing.factorize.story import Story


def test_a_story_is_its_mapping_in_the_order_of_the_cuts() -> None:
    rng = np.random.default_rng(0)
    tails = {3: rng.random((4, 3)), 1: rng.random((2, 6))}
    story = Story.of(tails)
    assert story.order == (3, 1)
    assert story.shapes.tolist() == [[4, 3], [2, 6]]
    for (split, errors), found in zip(tails.items(), story, strict=True):
        assert np.array_equal(story[split], errors)
        assert np.array_equal(found, errors)
    each = [[float(piece.sum()) for piece in np.split(errors.reshape(-1), 2)] for errors in tails.values()]
    np.testing.assert_allclose(story.sums(2), each, rtol=1e-14)
    np.testing.assert_allclose(story.sums(1)[:, 0], [sum(pair) for pair in each], rtol=1e-14)


def test_numbers_after_the_last_cut_are_not_part_of_it() -> None:
    story = Story(np.arange(6.0), ((2, 0, (2, 1)), (1, 2, (1, 2))))
    assert story.sums(1).tolist() == [[1.0], [5.0]]


def test_no_cuts_no_sums() -> None:
    assert Story.of({}).sums(3).shape == (0, 3)

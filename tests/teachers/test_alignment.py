import numpy as np
import pytest

from dmcodec.teachers.alignment import (
    FrameGrid,
    Word,
    align_words,
    close_gaps,
    codec_grid,
    constant_track,
    convolution_frames,
    convolution_grid,
    resample_features,
    shuffle_vectors,
    token_track,
)

WAV2VEC2 = ((10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2))
CODEC = codec_grid(16_000, 320)


def one_hot(count: int) -> np.ndarray:
    return np.eye(count, dtype=np.float32)


def test_frame_at_the_centre_of_a_word_has_its_vector():
    words = [Word("a", 1_000, 3_000), Word("b", 4_000, 4_900), Word("c", 4_900, 9_000)]

    track = align_words(words, one_hot(3), CODEC, 40)

    for index, word in enumerate(words):
        centre = (word.start_samples + word.end_samples) / 2
        np.testing.assert_array_equal(track.dense()[int(centre // 320)], one_hot(3)[index])


def test_frames_outside_words_are_masked_and_zero():
    track = align_words([Word("a", 640, 1_280)], np.ones((1, 2), np.float32), CODEC, 6)

    np.testing.assert_array_equal(track.mask, [False, False, True, True, False, False])
    assert not track.dense()[~track.mask].any()


def test_word_boundaries_count_frame_centres():
    # Centres lie at 160, 480, 800: 480 belongs to the word that begins there.
    track = align_words([Word("a", 0, 480), Word("b", 480, 801)], one_hot(2), CODEC, 4)

    assert track.frame_rows.tolist() == [0, 1, 1, -1]


def test_word_between_two_centres_gets_the_frame_of_its_middle():
    words = [Word("a", 0, 200), Word("I", 200, 300), Word("b", 1_000, 1_100)]

    track = align_words(words, one_hot(3), CODEC, 5)

    assert track.frame_rows.tolist() == [0, -1, -1, 2, -1]  # frame 0 is taken


def test_words_beyond_the_end_are_left_out():
    track = align_words([Word("a", 0, 10_000), Word("b", 10_000, 12_000)], one_hot(2), CODEC, 3)

    assert track.frame_rows.tolist() == [0, 0, 0]


def test_words_without_times_fill_no_frame():
    words = [Word("a", 0, 320), Word("lost"), Word("b", 640, 960)]

    assert align_words(words, one_hot(3), CODEC, 4).frame_rows.tolist() == [0, -1, 2, -1]
    assert close_gaps(words, 1_000) == words


def test_no_words_mask_everything():
    track = align_words([], np.zeros((0, 4), np.float32), CODEC, 3)

    assert not track.mask.any()
    assert track.dense().shape == (3, 4)


def test_words_and_vectors_must_agree():
    with pytest.raises(ValueError, match="1 words need vectors"):
        align_words([Word("a", 0, 1)], one_hot(2), CODEC, 3)


def test_wav2vec2_frames_lie_40_samples_after_codec_frames():
    grid = convolution_grid(*WAV2VEC2)

    assert grid == FrameGrid(320, 200)
    assert grid.first_centre_samples - CODEC.first_centre_samples == 40
    assert convolution_frames(48_000, *WAV2VEC2) == 149
    assert convolution_frames(399, *WAV2VEC2) == 0
    assert convolution_frames(400, *WAV2VEC2) == 1


@pytest.mark.parametrize("source", [FrameGrid(320, 200), FrameGrid(160, 0), FrameGrid(640, 500)])
def test_resampled_features_are_those_of_the_frames_own_times(source):
    # A feature that is its own time survives any change of rate, except where it is held.
    times = source.centres(60)

    track = resample_features(np.stack([times, -times], axis=1), source, CODEC, 25)

    expected = CODEC.centres(25).clip(times[0], times[-1])
    np.testing.assert_allclose(track.dense()[:, 0], expected, rtol=1e-6)
    np.testing.assert_allclose(track.dense()[:, 1], -expected, rtol=1e-6)


def test_149_teacher_frames_fill_150_codec_frames():
    features = np.arange(149, dtype=np.float32)[:, None]

    track = resample_features(features, convolution_grid(*WAV2VEC2), CODEC, 150)

    assert track.mask.all()
    # Frame i lies an eighth of a hop before teacher frame i; the ends are held.
    np.testing.assert_allclose(track.dense()[1:149, 0], np.arange(1, 149) - 0.125)
    assert track.dense()[0, 0] == 0
    assert track.dense()[149, 0] == 148


def test_frames_further_than_a_hop_from_the_teacher_are_masked():
    track = resample_features(np.ones((3, 1), np.float32), FrameGrid(320, 160), CODEC, 6)

    assert track.mask.tolist() == [True, True, True, True, False, False]


def test_equal_grids_change_nothing():
    features = np.random.default_rng(0).normal(size=(7, 3))

    np.testing.assert_array_equal(resample_features(features, CODEC, CODEC, 7).dense(), features)


def test_constant_and_token_tracks_fill_every_frame():
    vector = np.array([1.0, 2.0])
    np.testing.assert_array_equal(constant_track(vector, 3).dense(), [vector] * 3)

    track = token_track(one_hot(3), 5)

    assert track.frame_rows.tolist() == [0, 1, 2, 2, 2]


@pytest.mark.parametrize("count", [2, 3, 10])
def test_shuffled_words_keep_no_vector_and_lose_none(count):
    vectors = one_hot(count)

    shuffled = shuffle_vectors(vectors, seed=3)

    assert (np.diag(shuffled) == 0).all()
    np.testing.assert_array_equal(shuffled.sum(axis=0), np.ones(count))
    np.testing.assert_array_equal(shuffled, shuffle_vectors(vectors, seed=3))


def test_short_gaps_close_in_the_middle_and_long_ones_stay():
    words = [Word("a", 0, 100), Word("b", 200, 300), Word("c", 5_000, 6_000)]

    closed = close_gaps(words, 1_000)

    assert closed == [Word("a", 0, 150), Word("b", 150, 300), Word("c", 5_000, 6_000)]

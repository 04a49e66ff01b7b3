import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmcodec.tokens.lm import (
    Packer,
    Vocabulary,
    add_tokens,
    delay,
    flatten,
    from_text,
    leading_frames,
    merge_repeats,
    pack,
    repeat_frames,
    to_text,
    token_names,
    undelay,
    unflatten,
    unpack,
    unwrap,
    wrap,
)

PAIR = Vocabulary(codebooks=(0, 1), codebook_size=4, first_id=100)
CODES = np.array([[0, 1, 2], [3, 2, 1]])


@st.composite
def sequences(draw: st.DrawFn) -> tuple[np.ndarray, Vocabulary]:
    """Codes [K, L], L possibly 0, and a vocabulary of some of their books."""
    num_books = draw(st.integers(1, 9))
    size = draw(st.integers(1, 1024))
    vocabulary = Vocabulary(
        codebooks=tuple(sorted(draw(st.sets(st.integers(0, num_books - 1), min_size=1)))),
        codebook_size=size,
        first_id=draw(st.integers(0, 200_000)),
        use_offsets=draw(st.booleans()),
    )
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    return rng.integers(0, size, (num_books, draw(st.integers(0, 20)))), vocabulary


def chosen(codes: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    return codes[list(vocabulary.codebooks)]


def test_ids_are_those_of_the_documentation() -> None:
    np.testing.assert_array_equal(flatten(CODES, PAIR), [100, 107, 101, 106, 102, 105])
    assert (PAIR.start_id, PAIR.end_id, PAIR.pad_id, PAIR.size) == (108, 109, 110, 111)
    pad = PAIR.pad_id
    np.testing.assert_array_equal(delay(CODES, PAIR), [[100, 101, 102, pad], [pad, 107, 106, 105]])
    np.testing.assert_array_equal(
        wrap(flatten(CODES, PAIR), PAIR), [108, 100, 107, 101, 106, 102, 105, 109]
    )
    assert to_text(CODES[:, :1], PAIR) == "<|s1_0|><|s2_3|>"


def test_ids_of_a_book_do_not_depend_on_the_others() -> None:
    codes = np.array([[5, 6], [7, 8], [9, 10]])
    alone = Vocabulary(codebooks=(2,), codebook_size=1024)
    every = Vocabulary(codebooks=(0, 1, 2), codebook_size=1024)

    np.testing.assert_array_equal(flatten(codes, alone), flatten(codes, every)[2::3])
    assert alone.pad_id == every.pad_id


def test_one_table_a_book_has_no_offsets() -> None:
    tables = Vocabulary(codebooks=(0, 1), codebook_size=4, use_offsets=False)

    np.testing.assert_array_equal(delay(CODES, tables), [[0, 1, 2, 6], [6, 3, 2, 1]])


@given(sequences())
def test_flat_sequence_has_its_inverse(sequence: tuple[np.ndarray, Vocabulary]) -> None:
    codes, vocabulary = sequence
    ids = flatten(codes, vocabulary)

    np.testing.assert_array_equal(unflatten(ids, vocabulary), chosen(codes, vocabulary))
    np.testing.assert_array_equal(unwrap(wrap(ids, vocabulary), vocabulary), ids)
    assert ids.size == 0 or vocabulary.first_id <= ids.min() <= ids.max() < vocabulary.start_id


@given(sequences())
def test_delayed_sequence_has_its_inverse(sequence: tuple[np.ndarray, Vocabulary]) -> None:
    codes, vocabulary = sequence
    delayed = wrap(delay(codes, vocabulary), vocabulary)

    found = undelay(unwrap(delayed, vocabulary), vocabulary)
    np.testing.assert_array_equal(found, chosen(codes, vocabulary))


@given(sequences())
def test_text_has_its_inverse_and_its_tokens_are_those_of_the_ids(
    sequence: tuple[np.ndarray, Vocabulary],
) -> None:
    codes, vocabulary = sequence
    text = to_text(codes, vocabulary)

    np.testing.assert_array_equal(from_text(text, vocabulary), chosen(codes, vocabulary))
    if vocabulary.use_offsets:
        names = token_names(vocabulary)
        ids = flatten(codes, vocabulary) - vocabulary.first_id
        assert "".join(names[number] for number in ids) == text
        assert len(names) == len(set(names)) == vocabulary.size - vocabulary.first_id


@given(st.integers(1, 4), st.lists(st.integers(0, 1), max_size=40))
def test_merged_repeats_have_their_inverse(num_books: int, frames: list[int]) -> None:
    codes = np.tile(np.array(frames, dtype=np.int64), (num_books, 1))
    merged, durations = merge_repeats(codes)

    np.testing.assert_array_equal(repeat_frames(merged, durations), codes)
    assert (merged[:, 1:] != merged[:, :-1]).any(axis=0).all()


@given(st.lists(st.integers(1, 30), max_size=12), st.integers(1, 17))
def test_packed_documents_have_their_inverse(lengths: list[int], sequence_length: int) -> None:
    documents = [np.arange(length) + 100 * number for number, length in enumerate(lengths)]
    ids, numbers = pack(documents, sequence_length, pad_id=-5)

    found = unpack(ids, numbers)
    assert [list(each) for each in found] == [list(each) for each in documents]
    assert ids.shape == (-(-sum(lengths) // sequence_length), sequence_length)
    assert ((ids == -5) == (numbers == -1)).all()


@given(sequences(), st.data())
def test_leading_frames_end_before_the_first_id_out_of_place(
    sequence: tuple[np.ndarray, Vocabulary], data: st.DataObject
) -> None:
    codes, vocabulary = sequence
    ids = flatten(codes, vocabulary)
    cut = data.draw(st.integers(0, len(ids)))
    whole = cut // len(vocabulary.codebooks)
    expected = chosen(codes, vocabulary)[:, :whole]

    np.testing.assert_array_equal(leading_frames(ids[:cut], vocabulary), expected)
    ended = np.concatenate([ids[:cut], [vocabulary.end_id], ids])
    np.testing.assert_array_equal(leading_frames(ended, vocabulary), expected)


def test_what_a_form_cannot_hold_is_refused() -> None:
    with pytest.raises(ValueError, match="frame 1 of book 2 holds no code of 4"):
        flatten([[0, 1], [3, 4]], PAIR)
    with pytest.raises(ValueError, match="with book 2 in them"):
        flatten(CODES[:1], PAIR)
    with pytest.raises(ValueError, match="integers of rank 2"):
        flatten(CODES[0], PAIR)
    with pytest.raises(ValueError, match="integers of rank 2, got float64"):
        flatten(CODES / 2, PAIR)
    with pytest.raises(ValueError, match="3 ids are no whole number of frames"):
        unflatten([100, 107, 101], PAIR)
    with pytest.raises(ValueError, match="frame 0 of book 1 holds no code"):
        unflatten([107, 100], PAIR)  # books swapped
    with pytest.raises(ValueError, match="corners"):
        undelay(delay(CODES, PAIR)[:, ::-1], PAIR)
    with pytest.raises(ValueError, match=r"\[2, 1 or more\]"):
        undelay([[1, 2, 3]], PAIR)
    with pytest.raises(ValueError, match="does not begin with start_id 108"):
        unwrap([108, 100, 107], PAIR)
    with pytest.raises(ValueError, match="more than tokens"):
        from_text("<|s1_0|> <|s2_3|>", PAIR)
    with pytest.raises(ValueError, match="must be 1, 2 in this order"):
        from_text("<|s2_0|><|s1_3|>", PAIR)
    with pytest.raises(ValueError, match="1 tokens are no whole number"):
        from_text("<|s1_0|>", PAIR)
    with pytest.raises(ValueError, match="holds no code of 4"):
        from_text("<|s1_0|><|s2_4|>", PAIR)
    with pytest.raises(ValueError, match="2 positive numbers"):
        repeat_frames([[1, 2]], [1, 0])
    with pytest.raises(ValueError, match="document 1 is empty"):
        pack([[1], []], 4, 0)
    with pytest.raises(ValueError, match="ascending"):
        Vocabulary(codebooks=(1, 0))


def test_tokens_are_added_to_a_tokenizer_once_and_the_model_grows() -> None:
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    words = tokenizers.models.WordLevel({"<unk>": 0, "hello": 1}, unk_token="<unk>")
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(words), unk_token="<unk>"
    )
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=2, n_positions=8, n_embd=4, n_layer=1, n_head=1)
    )

    vocabulary = add_tokens(tokenizer, PAIR, model)

    assert vocabulary.first_id == 2
    ids = tokenizer(to_text(CODES, vocabulary))["input_ids"]
    np.testing.assert_array_equal(ids, flatten(CODES, vocabulary))
    assert model.get_input_embeddings().weight.shape[0] == vocabulary.size
    assert add_tokens(tokenizer, PAIR, model) == vocabulary
    with pytest.raises(ValueError, match="not consecutive"):
        add_tokens(tokenizer, Vocabulary(codebooks=(0, 1), codebook_size=5))


def test_packer_is_a_datasets_map() -> None:
    datasets = pytest.importorskip("datasets")
    rng = np.random.default_rng(0)
    recordings = [rng.integers(0, 4, (2, length)) for length in (3, 9, 2)]
    rows = datasets.Dataset.from_dict({"codes": [each.tolist() for each in recordings]})

    packed = rows.map(Packer(PAIR, 8), batched=True, remove_columns=rows.column_names)

    found = unpack(packed["input_ids"][:], packed["document_numbers"][:])
    for codes, document in zip(recordings, found, strict=True):
        np.testing.assert_array_equal(unflatten(unwrap(document, PAIR), PAIR), codes)
    assert packed["labels"][-1][-1] == -100
    assert packed["input_ids"][-1][-1] == PAIR.pad_id


def test_reading_sequences_needs_no_torch() -> None:
    code = "import sys, dmcodec.tokens.lm; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)

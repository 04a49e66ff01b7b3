"""Codes as sequences for language models, and back: ids, delay pattern, text tokens, packing.

Numpy arrays in and out, no torch. Codes are `[K, L]` of one recording with book 1 in row 0; every
form has its exact inverse, which refuses what the form cannot hold.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Ids = NDArray[np.int64]

START_NAME, END_NAME, PAD_NAME = "<|speech_start|>", "<|speech_end|>", "<|speech_pad|>"
_CODE_NAME = re.compile(r"<\|s([1-9]\d{0,2})_(0|[1-9]\d{0,4})\|>")
_IGNORED_LABEL = -100  # what Hugging Face losses leave out


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Which books a sequence holds and which id each code has.

    Code c of book k (from 0) has the id `first_id + k * codebook_size + c`, whichever other books
    are used; start, end and padding ids follow the last book.

    Attributes:
        codebooks: books of the sequence, from 0, ascending: (0,) is book 1 alone.
        codebook_size: V.
        first_id: ids below it belong to others, such as a text vocabulary.
        use_offsets: False gives code c the id `first_id + c` in every book, for models with one
            embedding table a book.
    """

    codebooks: tuple[int, ...] = tuple(range(8))
    codebook_size: int = 1024
    first_id: int = 0
    use_offsets: bool = True

    def __post_init__(self) -> None:
        books = self.codebooks
        if not books or books[0] < 0 or list(books) != sorted(set(books)):
            raise ValueError(f"codebooks must be ascending book numbers from 0, got {books}")
        if self.codebook_size < 1 or self.first_id < 0:
            raise ValueError(
                f"codebook_size must be positive and first_id not negative, got "
                f"{self.codebook_size} and {self.first_id}"
            )

    @property
    def offsets(self) -> Ids:
        """The id of code 0 in each book of the sequence, [k]."""
        steps = np.asarray(self.codebooks, dtype=np.int64) * self.use_offsets
        return self.first_id + steps * self.codebook_size

    @property
    def start_id(self) -> int:
        """Begins a recording."""
        tables = self.codebooks[-1] + 1 if self.use_offsets else 1
        return self.first_id + tables * self.codebook_size

    @property
    def end_id(self) -> int:
        """Ends a recording."""
        return self.start_id + 1

    @property
    def pad_id(self) -> int:
        """Fills places without a code."""
        return self.start_id + 2

    @property
    def size(self) -> int:
        """Ids below it are in use: the number of rows an embedding table needs."""
        return self.pad_id + 1


def flatten(codes: ArrayLike, vocabulary: Vocabulary) -> Ids:
    """Ids frame after frame, in a frame book after book: [K, L] -> [L * k]."""
    return _to_ids(codes, vocabulary).T.reshape(-1)


def unflatten(ids: ArrayLike, vocabulary: Vocabulary) -> Ids:
    """The codes of the sequence's books, [L * k] -> [k, L]; refuses special ids and cut frames."""
    sequence = _integers(ids, 1)
    num_books = len(vocabulary.codebooks)
    if len(sequence) % num_books:
        raise ValueError(
            f"{len(sequence)} ids are no whole number of frames of {num_books} books; "
            "leading_frames reads as far as it can"
        )
    return _to_codes(sequence.reshape(-1, num_books).T, vocabulary)


def leading_frames(ids: ArrayLike, vocabulary: Vocabulary) -> Ids:
    """The codes of the whole frames before the first id out of place: what a model generated.

    [N] -> [k, M] with M <= N / k, possibly 0. End, start and padding ids are out of place too.
    """
    sequence = _integers(ids, 1)
    num_books = len(vocabulary.codebooks)
    frames = sequence[: len(sequence) // num_books * num_books].reshape(-1, num_books)  # [L, k]
    codes = frames - vocabulary.offsets
    is_wrong = ((codes < 0) | (codes >= vocabulary.codebook_size)).any(axis=1)
    num_frames = int(is_wrong.argmax()) if is_wrong.any() else len(frames)
    return codes[:num_frames].T


def delay(codes: ArrayLike, vocabulary: Vocabulary) -> Ids:
    """Ids with the j-th book shifted by j frames, `pad_id` elsewhere: [K, L] -> [k, L + k - 1].

    Column t holds book 1 of frame t with book 2 of frame t - 1, and so on.
    Reference: Copet et al. 2023, arXiv:2306.05284, sec. 2.2.
    """
    ids = _to_ids(codes, vocabulary)
    num_books, num_frames = ids.shape
    delayed = np.full((num_books, num_frames + num_books - 1), vocabulary.pad_id, dtype=np.int64)
    for row in range(num_books):
        delayed[row, row : row + num_frames] = ids[row]
    return delayed


def undelay(ids: ArrayLike, vocabulary: Vocabulary) -> Ids:
    """The codes of a delayed sequence, [k, L + k - 1] -> [k, L]."""
    delayed = _integers(ids, 2)
    num_books = len(vocabulary.codebooks)
    num_frames = delayed.shape[1] - num_books + 1
    if len(delayed) != num_books or num_frames < 0:
        raise ValueError(
            f"a delayed sequence of {num_books} books is [{num_books}, {num_books - 1} or more], "
            f"got {delayed.shape}"
        )
    ids = np.stack([row[j : j + num_frames] for j, row in enumerate(delayed)])
    corners = [np.delete(row, np.s_[j : j + num_frames]) for j, row in enumerate(delayed)]
    if any((corner != vocabulary.pad_id).any() for corner in corners):
        raise ValueError(f"the corners of a delayed sequence must be pad_id {vocabulary.pad_id}")
    return _to_codes(ids, vocabulary)


def wrap(ids: ArrayLike, vocabulary: Vocabulary) -> Ids:
    """The sequence between start and end ids, [..., N] -> [..., N + 2]; flat or delayed."""
    sequence = np.asarray(ids, dtype=np.int64)
    ends = ((0, 0),) * (sequence.ndim - 1) + ((1, 1),)
    specials = ((0, 0),) * (sequence.ndim - 1) + ((vocabulary.start_id, vocabulary.end_id),)
    return np.pad(sequence, ends, constant_values=specials)


def unwrap(ids: ArrayLike, vocabulary: Vocabulary) -> Ids:
    """The sequence without its start and end ids, which must be there."""
    sequence = np.asarray(ids, dtype=np.int64)
    is_whole = sequence.shape[-1] >= 2 and bool(
        (sequence[..., 0] == vocabulary.start_id).all()
        and (sequence[..., -1] == vocabulary.end_id).all()
    )
    if not is_whole:
        raise ValueError(
            f"the sequence does not begin with start_id {vocabulary.start_id} and end with "
            f"end_id {vocabulary.end_id}"
        )
    return sequence[..., 1:-1]


def merge_repeats(codes: ArrayLike) -> tuple[Ids, Ids]:
    """Runs of equal frames as one frame each: [K, L] -> codes [K, M], durations in frames [M]."""
    frames = _integers(codes, 2)
    if frames.shape[1] == 0:
        return frames, np.zeros(0, dtype=np.int64)
    is_first = np.append(True, (frames[:, 1:] != frames[:, :-1]).any(axis=0))
    starts = np.flatnonzero(is_first)
    return frames[:, starts], np.diff(np.append(starts, frames.shape[1]))


def repeat_frames(codes: ArrayLike, durations: ArrayLike) -> Ids:
    """Undoes `merge_repeats`: [K, M], [M] -> [K, L]."""
    frames, counts = _integers(codes, 2), _integers(durations, 1)
    if len(counts) != frames.shape[1] or (counts < 1).any():
        raise ValueError(f"durations must be {frames.shape[1]} positive numbers of frames")
    return np.repeat(frames, counts, axis=1)


def to_text(codes: ArrayLike, vocabulary: Vocabulary) -> str:
    """The flat sequence in words, `<|s1_17|><|s2_300|>...`; books count from 1 here."""
    rows = _select(codes, vocabulary)  # [k, L]
    names = [f"<|s{book + 1}_" for book in vocabulary.codebooks]
    return "".join(f"{name}{c}|>" for frame in rows.T for name, c in zip(names, frame, strict=True))


def from_text(text: str, vocabulary: Vocabulary) -> Ids:
    """The codes [k, L] of what `to_text` wrote; refuses everything else, white space too."""
    found = _CODE_NAME.findall(text)
    if sum(len(book) + len(code) + 6 for book, code in found) != len(text):
        raise ValueError("the text holds more than tokens such as <|s1_17|>")
    num_books = len(vocabulary.codebooks)
    if len(found) % num_books:
        raise ValueError(f"{len(found)} tokens are no whole number of frames of {num_books} books")
    frames = np.array(found, dtype=np.int64).reshape(-1, num_books, 2)  # [L, k, 2]
    if (frames[..., 0] != np.array(vocabulary.codebooks) + 1).any():
        expected = ", ".join(str(book + 1) for book in vocabulary.codebooks)
        raise ValueError(f"the books of every frame must be {expected} in this order")
    codes = frames[..., 1].T
    _check_codes(codes, vocabulary)
    return codes


def token_names(vocabulary: Vocabulary) -> list[str]:
    """The text tokens in the order of their ids: books, then start, end and padding."""
    if not vocabulary.use_offsets:
        raise ValueError("text tokens name their book: they need a vocabulary with offsets")
    books = range(1, vocabulary.codebooks[-1] + 2)
    codes = range(vocabulary.codebook_size)
    names = [f"<|s{book}_{code}|>" for book in books for code in codes]
    return [*names, START_NAME, END_NAME, PAD_NAME]


def add_tokens(tokenizer: Any, vocabulary: Vocabulary, model: Any = None) -> Vocabulary:
    """Adds the text tokens to a Hugging Face tokenizer, and rows to a model's embeddings.

    Gives the vocabulary whose ids are those of the tokenizer, so that sequences can be made as
    numbers. Adding twice changes nothing.

    Args:
        tokenizer: a `transformers` tokenizer; changed in place.
        vocabulary: its books; its first_id does not count.
        model: a `transformers` model whose embeddings grow to fit; None leaves that to you.
    """
    names = token_names(vocabulary)
    tokenizer.add_tokens(names)
    first_id = int(tokenizer.convert_tokens_to_ids(names[0]))
    if list(tokenizer.convert_tokens_to_ids(names)) != list(range(first_id, first_id + len(names))):
        raise ValueError(
            "the tokenizer knew some of the tokens before: their ids are not consecutive; "
            "start from a tokenizer without speech tokens, or with these"
        )
    if model is not None:
        model.resize_token_embeddings(len(tokenizer))
    return replace(vocabulary, first_id=first_id)


def pack(documents: Sequence[ArrayLike], sequence_length: int, pad_id: int) -> tuple[Ids, Ids]:
    """Documents end to end in rows of equal length; a long one goes on in the next row.

    Returns:
        ids [N, sequence_length], `pad_id` after the last document, and document numbers of the
        same shape: the index of each id's document, -1 for padding.
    """
    if sequence_length < 1:
        raise ValueError(f"sequence_length must be positive, got {sequence_length}")
    sequences = [_integers(document, 1) for document in documents]
    lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int64)
    if (lengths == 0).any():
        raise ValueError(f"document {int(lengths.argmin())} is empty; wrap it or leave it out")
    num_ids = int(lengths.sum())
    num_rows = -(-num_ids // sequence_length)
    ids = np.full(num_rows * sequence_length, pad_id, dtype=np.int64)
    numbers = np.full(num_rows * sequence_length, -1, dtype=np.int64)
    if sequences:
        ids[:num_ids] = np.concatenate(sequences)
        numbers[:num_ids] = np.repeat(np.arange(len(sequences)), lengths)
    shape = (num_rows, sequence_length)
    return ids.reshape(shape), numbers.reshape(shape)


def unpack(ids: ArrayLike, document_numbers: ArrayLike) -> list[Ids]:
    """The documents that `pack` put into rows."""
    sequence, numbers = _integers(ids, 2).reshape(-1), _integers(document_numbers, 2).reshape(-1)
    if len(sequence) != len(numbers):
        raise ValueError(f"{len(sequence)} ids and {len(numbers)} document numbers do not agree")
    sequence, numbers = sequence[numbers >= 0], numbers[numbers >= 0]
    if not len(sequence):
        return []
    return np.split(sequence, np.flatnonzero(np.diff(numbers)) + 1)


@dataclass(frozen=True)
class Packer:
    """Packs the codes of many rows into training sequences: a map for `datasets`.

        rows.map(Packer(vocabulary, 2048), batched=True, remove_columns=rows.column_names)

    gives `input_ids`, `labels` (padding is left out of the loss) and `document_numbers`, with
    which attention can be kept inside documents. Only the last sequence of a map batch has
    padding: use batches of 1000 rows or more.
    """

    vocabulary: Vocabulary
    sequence_length: int
    column: str = "codes"

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        """Flattens, wraps and packs one batch of rows."""
        documents = [
            wrap(flatten(codes, self.vocabulary), self.vocabulary) for codes in batch[self.column]
        ]
        ids, numbers = pack(documents, self.sequence_length, self.vocabulary.pad_id)
        labels = np.where(numbers < 0, _IGNORED_LABEL, ids)
        return {
            "input_ids": list(ids),
            "labels": list(labels),
            "document_numbers": list(numbers),
        }


def _to_ids(codes: ArrayLike, vocabulary: Vocabulary) -> Ids:
    """The ids of the sequence's books, [K, L] -> [k, L]."""
    return _select(codes, vocabulary) + vocabulary.offsets[:, None]


def _to_codes(ids: Ids, vocabulary: Vocabulary) -> Ids:
    codes = ids - vocabulary.offsets[:, None]
    _check_codes(codes, vocabulary)
    return codes


def _select(codes: ArrayLike, vocabulary: Vocabulary) -> Ids:
    rows = _integers(codes, 2)
    if len(rows) <= vocabulary.codebooks[-1]:
        raise ValueError(
            f"codes must be [K, L] with book {vocabulary.codebooks[-1] + 1} in them, "
            f"got shape {rows.shape}"
        )
    rows = rows[list(vocabulary.codebooks)]
    _check_codes(rows, vocabulary)
    return rows


def _check_codes(codes: Ids, vocabulary: Vocabulary) -> None:
    is_wrong = (codes < 0) | (codes >= vocabulary.codebook_size)
    if is_wrong.any():
        row, frame = (int(index) for index in np.argwhere(is_wrong)[0])
        raise ValueError(
            f"frame {frame} of book {vocabulary.codebooks[row] + 1} holds no code of "
            f"{vocabulary.codebook_size}"
        )


def _integers(values: ArrayLike, ndim: int) -> Ids:
    """The values as int64 of the given rank."""
    if isinstance(values, Sequence) and not isinstance(values, str) and ndim == 2:
        values = np.stack([np.asarray(row) for row in values]) if len(values) else values
    array = np.asarray(values)
    if array.ndim != ndim or (array.size and not np.issubdtype(array.dtype, np.integer)):
        raise ValueError(
            f"expected integers of rank {ndim}, got {array.dtype} of shape {array.shape}"
        )
    return array.astype(np.int64)

from pathlib import Path

import pytest

from dmcodec.corpus.manifest import Utterance
from dmcodec.evaluation.protocols import choose_clips, hash_clips


def make(count: int, prefix: str = "") -> list[Utterance]:
    return [Utterance(id=f"{prefix}1089-{n:06d}", audio=Path("x")) for n in range(count)]


def test_the_300_clips_of_the_paper_are_one_fixed_draw() -> None:
    chosen = choose_clips(make(2620), "dmcodec-300", None)

    assert len(chosen) == 300
    # Recorded once: the draw must never change.
    ends = [u.id for u in (*chosen[:3], chosen[-1])]
    assert ends == ["1089-000007", "1089-000010", "1089-000012", "1089-002617"]


def test_the_draw_depends_on_names_alone() -> None:
    utterances = make(2620)
    in_folders = make(2620, "test-clean/1089/")

    first = choose_clips(utterances, "dmcodec-300", None)
    again = choose_clips(utterances[::-1], "dmcodec-300", None)
    elsewhere = choose_clips(in_folders, "dmcodec-300", None)

    assert {u.id for u in first} == {u.id for u in again}
    assert [u.id for u in first] == [u.id.rpartition("/")[2] for u in elsewhere]


def test_fewer_clips_are_part_of_more() -> None:
    utterances = make(50)

    few, more = (choose_clips(utterances, "full", n) for n in (5, 20))

    assert len(few) == 5
    assert {u.id for u in few} < {u.id for u in more}
    assert choose_clips(utterances, "full", 99) == utterances


def test_the_protocol_refuses_another_list() -> None:
    with pytest.raises(ValueError, match="this list has 100"):
        choose_clips(make(100), "dmcodec-300", None)
    with pytest.raises(ValueError, match="leave --num-clips out"):
        choose_clips(make(2620), "dmcodec-300", 10)


def test_hash_sees_ids_sounds_and_texts_but_not_order() -> None:
    utterances = [
        Utterance(id="a", audio=Path("x"), text="one"),
        Utterance(id="b", audio=Path("y")),
    ]
    renamed = [utterances[0], Utterance(id="c", audio=Path("y"))]
    retold = [Utterance(id="a", audio=Path("x"), text="two"), utterances[1]]

    hashes = [hash_clips(each, lambda clip: "s") for each in (utterances, renamed, retold)]

    assert hash_clips(utterances[::-1], lambda clip: "s") == hashes[0]
    assert len({*hashes, hash_clips(utterances, lambda clip: clip)}) == 4

import pytest

from dmcodec.evaluation.systems.parsing import parse_system, parse_systems
from dmcodec.evaluation.systems.system import SystemSpec


@pytest.mark.parametrize(
    ("text", "kind", "argument", "books"),
    [
        ("ours=dmcodec:bundled", "dmcodec", "bundled", (None, None)),
        ("ours-1=dmcodec:runs/x/codec@1", "dmcodec", "runs/x/codec", (1, 1)),
        ("o.4=dmcodec:org/name@2:4", "dmcodec", "org/name", (2, 4)),
        ("st=published:a.json,b.pt@1:8", "published", "a.json,b.pt", (1, 8)),
        ("opus6=opus:6", "opus", "6", (None, None)),
        ("c=command:tool --at x@3 {in} {out}", "command", "tool --at x@3 {in} {out}", (None,) * 2),
    ],
)
def test_specification_is_read(
    text: str, kind: str, argument: str, books: tuple[int | None, int | None]
) -> None:
    spec = parse_system(text)

    assert (spec.kind, spec.argument, (spec.first_book, spec.last_book)) == (kind, argument, books)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("opus:6", "write NAME=KIND:ARG"),
        ("x=opus:", "write NAME=KIND:ARG"),
        ("x=flac:8", "'flac' is none of dmcodec"),
        ("original=opus:6", "not 'original'"),
        ("a/b=opus:6", "a name is letters"),
        ("x=dmcodec:bundled@0", "not N or FIRST:LAST"),
        ("x=dmcodec:bundled@4:2", "not N or FIRST:LAST"),
        ("x=dmcodec:@1", "not N or FIRST:LAST"),
    ],
)
def test_wrong_specification_is_explained(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_system(text)


def test_bitrates_and_delays_reach_their_systems() -> None:
    texts = ["a=folder:x", "b=command:cp {in} {out}"]

    first, second = parse_systems(texts, {"a": 4.8}, {"b": 120})

    assert first == SystemSpec(name="a", kind="folder", argument="x", kbps=4.8)
    assert (second.kbps, second.delay_samples) == (None, 120)


def test_names_must_differ_and_be_known() -> None:
    with pytest.raises(ValueError, match="several systems are named 'a'"):
        parse_systems(["a=opus:6", "a=opus:8"], {}, {})
    with pytest.raises(ValueError, match="for 'c', which is no system"):
        parse_systems(["a=opus:6"], {"c": 1.0}, {})


def test_search_widths_are_of_our_codecs_and_some_by_name() -> None:
    texts = ["a=dmcodec:bundled", "b=dmcodec:bundled", "c=opus:6"]

    specs = parse_systems(texts, {}, {}, 4, {"b": 16})

    assert [spec.search_width for spec in specs] == [4, 16, 1]
    with pytest.raises(ValueError, match="search width is given for 'c', which is no codec of"):
        parse_systems(texts, {}, {}, 1, {"c": 2})
    with pytest.raises(ValueError, match="search width is given for 'd', which is no system"):
        parse_systems(texts, {}, {}, 1, {"d": 2})

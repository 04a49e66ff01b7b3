"""The page in a real browser, as visitors use it."""

import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.demo.servers import Server, running

from dmcodec.audio import write_audio
from dmcodec.tokens.bitstream import loads

pytest.importorskip("playwright", reason="no playwright")
from playwright.sync_api import Browser, Page, Request, expect, sync_playwright

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
MISSING = [name for name in ("gradio", "matplotlib") if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no browser: apt-get install chromium"),
    pytest.mark.skipif(bool(MISSING), reason=f"no {', '.join(MISSING)}"),
]
PATIENCE_MS = 300_000
EXAMPLE = Path(__file__).parents[2] / "examples" / "4077-13754-0000.flac"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The page with the bundled model, which takes five seconds of sound."""
    command = ["-m", "dmcodec.cli", "demo", "--threads", "1", "--max-seconds", "5"]
    with running(command, tmp_path_factory.mktemp("server")) as started:
        yield started
        assert started.end() == 0
        assert list(started.temporary.iterdir()) == []


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    flags = ["--no-sandbox", "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=BROWSER, args=flags, timeout=PATIENCE_MS
        )
        yield started
        started.close()


class Visit:
    """One visitor's window, and what the page asked for and complained about meanwhile."""

    def __init__(self, browser: Browser, server: Server, width: int = 1280) -> None:
        context = browser.new_context(viewport={"width": width, "height": 900})
        context.set_default_timeout(PATIENCE_MS)
        self.page: Page = context.new_page()
        self.outside: list[str] = []
        self.errors: list[str] = []

        def note(request: Request) -> None:
            if not request.url.startswith((server.address, "data:", "blob:")):
                self.outside.append(request.url)

        self.page.on("request", note)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(server.address)
        expect(self.page.locator("#model-facts")).to_contain_text("8 books", timeout=PATIENCE_MS)

    def give(self, path: Path, which: str = "first") -> None:
        """Uploads a file over the one before."""
        clear = self.page.locator(f"#{which}-upload [aria-label='Clear']")
        if clear.count():
            clear.first.click()
        self.page.locator(f"#{which}-upload input[type=file]").set_input_files(path)

    def wait_for(self, selector: str, text: str) -> None:
        expect(self.page.locator(selector)).to_contain_text(text, timeout=PATIENCE_MS)

    def close(self) -> None:
        self.page.context.close()


@pytest.fixture
def visit(browser: Browser, server: Server) -> Iterator[Visit]:
    visit = Visit(browser, server)
    yield visit
    visit.close()
    assert (visit.outside, visit.errors) == ([], [])


def _play(visit: Visit, elem_id: str) -> float:
    """Plays one of the two large players; gives the seconds that it says it has played."""
    player = visit.page.locator(f"#{elem_id}")
    player.get_by_label("Play", exact=True).click()
    elapsed = player.locator("#time")
    expect(elapsed).not_to_have_text("0:00", timeout=PATIENCE_MS)
    minutes, seconds = elapsed.inner_text().split(":")
    return 60 * int(minutes) + int(seconds)


def _download(visit: Visit, tmp_path: Path) -> Path:
    with visit.page.expect_download() as started:
        visit.page.locator("#download").click()
    path = tmp_path / started.value.suggested_filename
    started.value.save_as(path)
    return path


def test_a_recording_is_heard_at_every_number_of_books(visit: Visit, tmp_path: Path) -> None:
    visit.give(EXAMPLE)
    visit.wait_for("#figures", "4 kbps of codes")
    assert visit.page.locator("#pictures img").count() == 3
    assert _play(visit, "original") >= 1
    assert _play(visit, "decoded") >= 1

    visit.page.locator("#slider input[type=range]").press("ArrowLeft")
    visit.wait_for("#decoded", "Decoded from 7 books")
    visit.page.locator("#slider input[type=number]").fill("3")
    visit.page.keyboard.press("Tab")
    visit.wait_for("#decoded", "Decoded from 3 books")
    visit.wait_for("#pictures", "decoded from 3 books")
    visit.wait_for("#figures", "1.5 kbps of codes")
    path = _download(visit, tmp_path)

    assert path.name == "4077-13754-0000.3-books.dmc"
    assert loads(path.read_bytes()).codes.shape == (3, 239)

    visit.give(path)  # and back in
    visit.wait_for("#figures", "holds no original")
    assert visit.page.locator("#pictures img").count() == 2
    expect(visit.page.locator("#original")).to_be_hidden()


def test_bad_uploads_get_a_sentence_and_good_ones_work_afterwards(
    visit: Visit, tmp_path: Path
) -> None:
    (tmp_path / "cut.flac").write_bytes(EXAMPLE.read_bytes()[:40_000])
    write_audio(tmp_path / "silent.wav", np.zeros(16_000, np.float32))
    tone = 0.1 * np.sin(np.arange(6 * 16_000) / 10)
    write_audio(tmp_path / "long.wav", tone)
    (tmp_path / "broken.dmc").write_bytes(b"\x89DMC\x01 and nothing more")

    for name, sentence in (
        ("cut.flac", "cut.flac: damaged"),
        ("silent.wav", "silent.wav is silent"),
        ("long.wav", "long.wav lasts 6.0 s, and this page takes up to 5 s"),
        ("broken.dmc", "broken.dmc cannot be read"),
    ):
        visit.give(tmp_path / name)
        visit.wait_for("#message", sentence)
        expect(visit.page.locator("#results")).to_be_hidden()
        assert "Traceback" not in visit.page.content()
    visit.give(EXAMPLE)
    visit.wait_for("#figures", "STOI")
    expect(visit.page.locator("#message")).to_be_hidden()


def test_books_are_heard_one_by_one_and_voices_are_mixed(visit: Visit) -> None:
    visit.page.locator("#first-low").click()
    visit.wait_for("#figures", "STOI")

    visit.page.get_by_role("tab", name="Book by book").click()
    books = visit.page.locator("#books audio")
    expect(books).to_have_count(15, timeout=PATIENCE_MS)
    for number in (1, 14):
        books.nth(number).evaluate("player => player.play()")
        visit.page.wait_for_function(
            "n => document.querySelectorAll('#books audio')[n].currentTime > 0.2", arg=number
        )
    assert books.nth(1).evaluate("player => player.paused")  # one at a time

    visit.page.get_by_role("tab", name="Two voices").click()
    visit.page.locator("#second-high").click()
    visit.wait_for("#voices", "The second was stretched from 177 to 225 frames")
    mixed = visit.page.locator("#voices audio")
    expect(mixed).to_have_count(4)
    mixed.first.evaluate("player => player.play()")
    visit.page.wait_for_function("document.querySelector('#voices audio').currentTime > 0.2")
    assert mixed.first.evaluate("player => player.duration") == pytest.approx(4.485, abs=0.01)
    visit.page.get_by_label("cut both to the shorter").check()
    visit.wait_for("#voices", "The first was cut from 225 to 177 frames")


def test_a_microphone_is_a_recording_too(visit: Visit) -> None:
    microphone = visit.page.locator("#first-microphone")
    microphone.get_by_text("Record", exact=True).click()
    visit.page.wait_for_timeout(2500)
    microphone.get_by_text("Stop", exact=True).first.click()

    visit.wait_for("#figures", "kbps of codes")
    assert visit.page.locator("#pictures img").count() == 3


def test_two_visitors_hear_their_own(browser: Browser, server: Server, tmp_path: Path) -> None:
    anna, ben = Visit(browser, server), Visit(browser, server, width=400)
    for visitor, voice in ((anna, "low"), (ben, "high")):
        visitor.page.locator(f"#first-{voice}").click()
    for visitor in (anna, ben):
        visitor.wait_for("#figures", "STOI")

    names = [_download(visitor, tmp_path).name for visitor in (anna, ben)]
    for visitor in (anna, ben):
        visitor.page.locator("#slider input[type=range]").press("ArrowLeft")
        visitor.wait_for("#decoded", "Decoded from 7 books")
    later = [_download(visitor, tmp_path) for visitor in (anna, ben)]

    assert names == ["low-voice.8-books.dmc", "high-voice.8-books.dmc"]
    assert [loads(path.read_bytes()).codes.shape for path in later] == [(7, 225), (7, 177)]
    for visitor in (anna, ben):
        width = visitor.page.evaluate("document.documentElement.scrollWidth")
        assert width <= visitor.page.viewport_size["width"]  # nothing to scroll sideways
        visitor.close()
        assert (visitor.outside, visitor.errors) == ([], [])


def test_files_of_a_visitor_who_leaves_are_gone(browser: Browser, server: Server) -> None:
    visitor = Visit(browser, server)
    visitor.page.locator("#first-low").click()
    visitor.wait_for("#figures", "STOI")
    waiting = set(server.temporary.rglob("low-voice*"))
    assert waiting

    visitor.page.goto("about:blank")
    for _ in range(120):
        if not any(path.exists() for path in waiting):
            break
        visitor.page.wait_for_timeout(500)
    visitor.close()

    assert not any(path.exists() for path in waiting)

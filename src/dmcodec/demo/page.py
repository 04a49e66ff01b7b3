"""The page itself: its parts, and what happens when a visitor touches them.

Whatever asks a codec goes through one queue, one after the other: visitors wait, nothing freezes.
What a visitor hears and sees belongs to the visit (Gradio's session state, visits.py).
"""

from pathlib import Path
from typing import Any
from urllib.parse import quote

import gradio as gr

from dmcodec.audio import SoundBytes
from dmcodec.demo.models import Models, Refused
from dmcodec.demo.pictures import (
    Player,
    count_books,
    show_figures,
    show_message,
    show_pictures,
    show_players,
)
from dmcodec.demo.recordings import (
    Decoded,
    Fit,
    Recording,
    decode,
    describe_books,
    mix,
    open_recording,
)
from dmcodec.demo.visits import VISIT_S, Visits, write_codes, write_sound

CLIPS = {
    "low": Path(__file__).with_name("clips") / "low-voice.flac",
    "high": Path(__file__).with_name("clips") / "high-voice.flac",
}
_MAX_WAITING = 64
_MAX_BOOKS = 8  # of the slider until a model is known
_FITS = [("stretch the second to the first", "stretch"), ("cut both to the shorter", "cut")]
# One after the other, whoever asks.
_ALONE = {"concurrency_limit": 1, "concurrency_id": "codec", "api_visibility": "private"}
_HINT = '<p class="dm-hint">{}</p>'
_NO_BOOKS = _HINT.format("Give a recording: each of its books is then heard alone, and added.")
_NO_MIX = _HINT.format("Give one recording above and a second one here.")
_INTRO = """
# Speech into tokens, and back

A codec turns sound into codes, several *books* of them side by side. The first book says most; each
further one adds what the others left. Give a sound, and hear what n books are worth.
"""
_VOICES = """
The first book of one recording with the other books of another: what stays is what a book carries.
Do not use decoded speech to deceive about who said what.
"""

Update = dict[Any, Any]


class Page:
    """The parts of the page, and the answers to what visitors do.

    An answer is a dictionary of parts and what they show from then on; parts that are not in it
    stay as they are.
    """

    def __init__(self, models: Models, visits: Visits, *, max_seconds: float) -> None:
        self.models, self.visits, self.max_seconds = models, visits, max_seconds
        with gr.Blocks(title="dmcodec", analytics_enabled=False) as self.blocks:
            self._lay_out()
            self._connect()
        self.blocks.queue(max_size=_MAX_WAITING)

    def _lay_out(self) -> None:
        self.path, self.recording, self.decoded, self.second_path, self.second = (
            gr.State(time_to_live=VISIT_S) for _ in range(5)
        )
        gr.Markdown(_INTRO)
        with gr.Row():
            self.upload, self.microphone, self.clips = _lay_out_source("first")
            with gr.Column(min_width=260):
                self.model = gr.Dropdown(
                    self.models.names,
                    value=self.models.names[0],
                    allow_custom_value=self.models.is_open,
                    label="Model",
                    info="or a codec folder, or a Hugging Face id" if self.models.is_open else None,
                    elem_id="model",
                )
                self.model_facts = gr.HTML(elem_id="model-facts")
        self.message = gr.HTML(elem_id="message")
        with gr.Column(visible=False, elem_id="results") as self.results, gr.Tabs() as self.tabs:
            with gr.Tab("Listen", id="listen"):
                self._lay_out_listening()
            with gr.Tab("Book by book", id="books") as self.books_tab:
                self.books = gr.HTML(_NO_BOOKS, elem_id="books")
            with gr.Tab("Two voices", id="voices"):
                self._lay_out_voices()

    def _lay_out_listening(self) -> None:
        self.slider = gr.Slider(
            1, _MAX_BOOKS, _MAX_BOOKS, step=1, label="Books to decode", elem_id="slider"
        )
        with gr.Row():
            self.original = _player("Original", "original")
            self.sound = _player("Decoded", "decoded")
        self.pictures = gr.HTML(elem_id="pictures")
        self.figures = gr.HTML(elem_id="figures")
        self.download = gr.DownloadButton("Download .dmc", size="md", elem_id="download")

    def _lay_out_voices(self) -> None:
        gr.Markdown(_VOICES)
        with gr.Row():
            self.second_upload, self.second_microphone, self.second_clips = _lay_out_source(
                "second"
            )
        with gr.Row():
            self.split = gr.Slider(
                1, _MAX_BOOKS - 1, 1, step=1, label="Books that are exchanged", elem_id="split"
            )
            self.fit = gr.Radio(_FITS, value="stretch", label="Lengths", elem_id="fit")
        self.second_message = gr.HTML(elem_id="second-message")
        self.voices = gr.HTML(_NO_MIX, elem_id="voices")

    def _connect(self) -> None:
        shown = [
            *(self.path, self.recording, self.decoded, self.message, self.model_facts),
            *(self.results, self.tabs, self.original, self.slider, self.sound, self.download),
            *(self.figures, self.pictures, self.books, self.split),
        ]
        mixed = [self.second_path, self.second, self.second_message, self.voices]
        mixing = [self.recording, self.second, self.split, self.fit]
        heard = {"fn": self.look, "inputs": [self.recording, self.decoded], **_ALONE}
        heard["outputs"] = [self.figures, self.pictures]
        mix_again = {"fn": self.mix_voices, "inputs": mixing, "outputs": self.voices, **_ALONE}

        first = (self.upload, self.microphone, self.clips)
        for given, sources in _events(*first):
            opened = given(self.open_first, [*sources, self.model], shown, **_ALONE)
            opened.then(**heard).then(**mix_again)
        second = (self.second_upload, self.second_microphone, self.second_clips)
        for given, sources in _events(*second):
            opened = given(self.open_second, [*sources, self.model], mixed, **_ALONE)
            opened.then(**mix_again)
        for upload, microphone, clips in (first, second):
            for button in clips.values():  # what was given before is not what is heard now
                button.click(lambda: (None, None), outputs=[upload, microphone], **_ALONE)
        changed = self.model.change(self.open_first, [self.path, self.model], shown, **_ALONE)
        changed.then(**heard).then(
            self.open_second, [self.second_path, self.model], mixed, **_ALONE
        ).then(**mix_again)
        self.slider.input(
            self.choose_books,
            [self.recording, self.slider],
            [self.decoded, self.sound, self.download],
            trigger_mode="always_last",
            show_progress="hidden",
            **_ALONE,
        ).then(**heard, show_progress="hidden")
        self.books_tab.select(self.play_books, self.recording, self.books, **_ALONE)
        for event in (self.split.input, self.fit.input):
            event(**mix_again, trigger_mode="always_last")
        self.blocks.load(self.describe_model, self.model, self.model_facts, **_ALONE)
        self.blocks.unload(self.end)

    def describe_model(self, name: str | None) -> str:
        """What the chosen model is, or why it cannot be had."""
        try:
            return _HINT.format(self.models.get(name).describe())
        except Refused as problem:
            return show_message(str(problem))

    def open_first(self, path: str | None, model: str | None, request: gr.Request) -> Update:
        """A new recording with all of its books decoded; without one, what the model is."""
        session = _session(request)
        for room in ("first", "books", "mixed"):
            self.visits.clear(session, room)
        update: Update = {
            self.path: path,
            self.recording: None,
            self.decoded: None,
            self.message: "",
            self.model_facts: self.describe_model(model),
            self.figures: "",
            self.pictures: "",
            self.books: _NO_BOOKS,
            self.results: gr.Column(visible=False),
        }
        if path is None:
            return update
        try:
            recording = self._open(path, model)
        except Refused as problem:
            return update | {self.message: show_message(str(problem))}
        num_books = recording.num_codebooks
        original = None
        if recording.original is not None:
            folder = self.visits.folder(session, "first")
            name = f"{recording.name}.original"
            original = str(write_sound(folder, name, recording.original, recording.sample_rate))
        return update | {
            self.recording: recording,
            self.results: gr.Column(visible=True),
            self.tabs: gr.Tabs(selected="listen"),
            self.original: gr.Audio(original, visible=original is not None),
            self.slider: gr.Slider(maximum=num_books, value=num_books, interactive=num_books > 1),
            self.split: gr.Slider(maximum=max(1, num_books - 1), value=1),
            **self.choose_books(recording, num_books, request),
        }

    def choose_books(
        self, recording: Recording | None, num_books: int, request: gr.Request
    ) -> Update:
        """The first n books decoded, to be heard and downloaded."""
        if recording is None:
            return {self.sound: None}
        decoded = decode(recording, int(num_books))
        folder = self.visits.folder(_session(request), "first")
        name = f"{recording.name}.{count_books(num_books).replace(' ', '-')}"
        wav = write_sound(folder, name, decoded.waveform, recording.sample_rate)
        dmc = write_codes(folder, name, recording.dumps(decoded.num_codebooks))
        label = f"Decoded from {count_books(num_books)}"
        return {
            self.decoded: decoded,
            self.sound: gr.Audio(str(wav), label=label),
            self.download: gr.DownloadButton(
                f"Download {count_books(num_books)} as .dmc ({dmc.stat().st_size} bytes)", str(dmc)
            ),
        }

    def look(self, recording: Recording | None, decoded: Decoded | None) -> Update:
        """Figures and pictures of what is heard."""
        if recording is None or decoded is None:
            return {self.figures: "", self.pictures: ""}
        return {
            self.figures: show_figures(describe_books(recording, decoded)),
            self.pictures: show_pictures(recording, decoded),
        }

    def play_books(self, recording: Recording | None, request: gr.Request) -> str:
        """Players of each book alone, and of each added to those before it."""
        if recording is None:
            return _NO_BOOKS
        folder = self.visits.folder(_session(request), "books")
        rows = {}
        for book in range(1, recording.num_codebooks + 1):
            alone, added = decode(recording, 1, book - 1), decode(recording, book)
            sounds = {"alone": alone.waveform, f"books 1 to {book}": added.waveform}
            if book == 1:
                sounds.popitem()  # the same
            rows[f"Book {book}"] = [
                Player(caption, _write(folder, f"book-{book}-{number}", waveform, recording))
                for number, (caption, waveform) in enumerate(sounds.items())
            ]
        return show_players(rows)

    def open_second(self, path: str | None, model: str | None) -> Update:
        """The second voice, or a sentence where there is none."""
        update: Update = {self.second_path: path, self.second: None, self.second_message: ""}
        if path is None:
            return update
        try:
            return update | {self.second: self._open(path, model)}
        except Refused as problem:
            return update | {self.second_message: show_message(str(problem))}

    def mix_voices(
        self,
        first: Recording | None,
        second: Recording | None,
        num_exchanged: int,
        fit: Fit,
        request: gr.Request,
    ) -> str:
        """Players of two recordings and of their mixtures."""
        if first is None or second is None:
            return _NO_MIX
        try:
            mixture = mix(first, second, num_from_first=int(num_exchanged), fit=fit)
        except Refused as problem:
            return show_message(str(problem))
        num_books = min(first.num_codebooks, second.num_codebooks)
        low, high = _span(1, int(num_exchanged)), _span(int(num_exchanged) + 1, num_books)
        sounds = {
            "Mixed": {
                f"{low} of the first, {high} of the second": mixture.first_with_second,
                f"{low} of the second, {high} of the first": mixture.second_with_first,
            },
            "Themselves": {
                f"the first: {first.name}": mixture.first,
                f"the second: {second.name}": mixture.second,
            },
        }
        folder = self.visits.folder(_session(request), "mixed")
        rows = {
            heading: [
                Player(caption, _write(folder, f"{heading.lower()}-{number}", waveform, first))
                for number, (caption, waveform) in enumerate(row.items(), start=1)
            ]
            for heading, row in sounds.items()
        }
        return _HINT.format(mixture.notice) + show_players(rows)

    def end(self, request: gr.Request) -> None:
        """A visitor left: files go."""
        self.visits.end(_session(request))

    def _open(self, path: str, model: str | None) -> Recording:
        """The recording in a file that a visitor gave; raises Refused."""
        chosen = self.models.get(model)
        try:
            sound = SoundBytes(Path(path).name, Path(path).read_bytes())
        except OSError as problem:
            raise Refused("The file is gone by now: give it again.") from problem
        return open_recording(chosen, sound, max_seconds=self.max_seconds)


def _lay_out_source(which: str) -> tuple[gr.File, gr.Audio, dict[str, gr.Button]]:
    """Where a visitor gives a recording: a file, a microphone, or a clip that is there."""
    with gr.Column(min_width=260):
        upload = gr.File(label="Sound or .dmc file", height=170, elem_id=f"{which}-upload")
    with gr.Column(min_width=260):
        microphone = gr.Audio(
            sources=["microphone"],
            type="filepath",
            label="Or speak",
            editable=False,
            buttons=[],
            elem_id=f"{which}-microphone",
        )
        with gr.Row():
            clips = {
                name: gr.Button(f"Try a {name} voice", size="sm", elem_id=f"{which}-{name}")
                for name in CLIPS
            }
    return upload, microphone, clips


def _events(
    upload: gr.File, microphone: gr.Audio, clips: dict[str, gr.Button]
) -> list[tuple[Any, list[gr.components.Component]]]:
    """The ways to give a recording: an event, and the parts that then name the file."""
    return [
        (upload.upload, [upload]),
        (microphone.stop_recording, [microphone]),
        *((button.click, [gr.State(str(CLIPS[name]))]) for name, button in clips.items()),
    ]


def _player(label: str, elem_id: str) -> gr.Audio:
    return gr.Audio(
        label=label, interactive=False, buttons=["download"], min_width=260, elem_id=elem_id
    )


def _write(folder: Path, name: str, waveform: Any, recording: Recording) -> str:
    """Writes a sound where the page may fetch it; gives the address."""
    path = write_sound(folder, name, waveform, recording.sample_rate)
    # Changed sounds under an old name must not come out of the browser's cache.
    return f"gradio_api/file={quote(str(path))}?{path.stat().st_mtime_ns}"


def _session(request: gr.Request) -> str:
    return str(request.session_hash)


def _span(first: int, last: int) -> str:
    return f"book {first}" if first == last else f"books {first} to {last}"

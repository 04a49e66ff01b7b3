"""A small GPT on speech tokens: trains, compares its loss with unigram entropy, and speaks.

    dmcodec tokenize train.jsonl -o tokens/train
    dmcodec tokenize valid.jsonl -o tokens/valid
    python examples/token_gpt.py tokens/train tokens/valid -o gpt-out --minutes 10

Needs pip install 'dmcodec[data]' transformers. Losses are in nats a token. The unigram figure is
what a model would get that knows how often each code of each book is used, and nothing else.
"""
# ruff: noqa: T201, TID251

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import GPT2Config, GPT2LMHeadModel

import dmcodec
from dmcodec.tokens.lm import Vocabulary, flatten, leading_frames, pack, wrap
from dmcodec.tokens.shards import CorpusInfo, TokenRow, read_info, read_rows


def main() -> None:
    """Trains, measures, continues a recording and writes the sound."""
    arguments = parse_arguments()
    torch.manual_seed(arguments.seed)
    torch.set_num_threads(arguments.threads)
    info = read_info(arguments.train)
    vocabulary = Vocabulary(
        codebooks=tuple(range(arguments.books)), codebook_size=info.codebook_size
    )
    train, valid = (list(read_rows(folder)) for folder in (arguments.train, arguments.valid))
    length = arguments.sequence_length
    batches, held_out = (pack_rows(rows, vocabulary, length) for rows in (train, valid))
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=vocabulary.size,
            n_positions=length,
            n_embd=96,
            n_layer=3,
            n_head=4,
            resid_pdrop=0.1,
            embd_pdrop=0.1,
            attn_pdrop=0.1,
            bos_token_id=vocabulary.start_id,
            eos_token_id=vocabulary.end_id,
        )
    )
    num_parameters = sum(p.numel() for p in model.parameters())
    unigram = unigram_nats(train, valid, vocabulary)
    print(
        f"{num_parameters} parameters, {batches.numel()} training tokens of {len(train)} "
        f"recordings; unigram {unigram:.3f} nats a token"
    )
    seconds = 60 * arguments.minutes
    curve = train_model(model, batches, held_out, vocabulary, arguments.batch_size, seconds)
    arguments.output.mkdir(parents=True, exist_ok=True)
    codec = dmcodec.load(arguments.model)
    for name, codes in speak(model, valid[0], vocabulary, arguments.seconds, info).items():
        waveform = codec.decode(torch.from_numpy(codes.copy()))[0].numpy()
        dmcodec.write_audio(arguments.output / f"{name}.wav", waveform, info.sample_rate)
    result = {
        "parameters": num_parameters,
        "unigram_nats": round(unigram, 4),
        "valid_nats": curve[-1]["valid_nats"],
        "curve": curve,
    }
    (arguments.output / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    print(
        f"held-out loss {curve[-1]['valid_nats']:.3f}, unigram {unigram:.3f} nats a token; "
        f"prompt.wav and continuation.wav are in {arguments.output}"
    )


def pack_rows(rows: list[TokenRow], vocabulary: Vocabulary, length: int) -> torch.Tensor:
    """Recordings one after the other in rows of `length` ids, [N, length]; cut ends left out."""
    documents = [wrap(flatten(row.codes, vocabulary), vocabulary) for row in rows]
    ids, numbers = pack(documents, length, vocabulary.pad_id)
    return torch.from_numpy(ids[(numbers >= 0).all(axis=1)])


def unigram_nats(train: list[TokenRow], valid: list[TokenRow], vocabulary: Vocabulary) -> float:
    """Mean of -log p(code | book) on held-out codes, p from counts in the training codes + 1."""
    total, count = 0.0, 0
    for book in vocabulary.codebooks:
        seen = np.concatenate([row.codes[book] for row in train])
        held = np.concatenate([row.codes[book] for row in valid])
        counts = np.bincount(seen, minlength=vocabulary.codebook_size) + 1.0
        total -= float(np.log(counts / counts.sum())[held].sum())
        count += len(held)
    return total / count


def train_model(
    model: GPT2LMHeadModel,
    batches: torch.Tensor,
    held_out: torch.Tensor,
    vocabulary: Vocabulary,
    batch_size: int,
    seconds: float,
) -> list[dict[str, float]]:
    """Trains for a time; gives the losses on the way."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05, betas=(0.9, 0.95))
    curve: list[dict[str, float]] = []
    started, step, recent, next_report = time.monotonic(), 0, [], 0.0
    while True:
        progress = (time.monotonic() - started) / seconds
        if progress >= next_report or progress >= 1:
            valid = evaluate(model, held_out, vocabulary)
            curve.append({"step": step, "valid_nats": round(valid, 4)})
            if recent:
                curve[-1]["train_nats"] = round(float(np.mean(recent)), 4)
            print(", ".join(f"{name} {value}" for name, value in curve[-1].items()), flush=True)
            recent, next_report = [], next_report + 0.1
        if progress >= 1:
            return curve
        optimizer.param_groups[0]["lr"] = 2e-3 * min(1, (step + 1) / 50) * max(0.05, 1 - progress)
        chosen = batches[torch.randint(len(batches), (batch_size,))]
        model.train()
        loss = model(input_ids=chosen, labels=chosen).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        recent.append(loss.item())
        step += 1


@torch.no_grad()
def evaluate(model: GPT2LMHeadModel, ids: torch.Tensor, vocabulary: Vocabulary) -> float:
    """Mean loss over codes; start and end are easy and do not count."""
    model.eval()
    total, count = 0.0, 0
    for chunk in ids.split(16):
        labels = chunk.masked_fill(chunk >= vocabulary.start_id, -100)
        num_codes = int((labels[:, 1:] >= 0).sum())
        total += model(input_ids=chunk, labels=labels).loss.item() * num_codes
        count += num_codes
    return total / count


@torch.no_grad()
def speak(
    model: GPT2LMHeadModel, row: TokenRow, vocabulary: Vocabulary, seconds: float, info: CorpusInfo
) -> dict[str, NDArray[np.int64]]:
    """Codes [k, L] of the first three seconds of a recording, and of what the model adds."""
    model.eval()
    num_books, length = len(vocabulary.codebooks), model.config.n_positions
    frame_rate = info.sample_rate / info.hop_length
    prompt = row.codes[:, : round(3 * frame_rate)]
    ids = [vocabulary.start_id, *flatten(prompt, vocabulary)]
    num_prompt = len(ids)
    for position in range(round(seconds * frame_rate) * num_books):
        first = int(vocabulary.offsets[position % num_books])
        window = ids[-(length - 1) :]
        logits = model(input_ids=torch.tensor([window])).logits[0, -1]
        allowed = logits[first : first + vocabulary.codebook_size]  # codes of the book that is due
        probabilities = torch.softmax(allowed / 0.9, dim=-1)
        ids.append(first + int(torch.multinomial(probabilities, 1)))
    generated = leading_frames(ids[num_prompt:], vocabulary)
    known = leading_frames(ids[1:num_prompt], vocabulary)
    return {"prompt": known, "continuation": np.concatenate([known, generated], axis=1)}


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("train", type=Path, help="folder that dmcodec tokenize filled")
    parser.add_argument("valid", type=Path, help="another, of other speakers")
    parser.add_argument("-o", "--output", type=Path, default=Path("gpt-out"))
    parser.add_argument("--model", help="the codec of the tokens; default: the bundled one")
    parser.add_argument("--books", type=int, default=2, help="first books that are modelled")
    parser.add_argument("--minutes", type=float, default=10.0, help="training time")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of the continuation")
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()

"""A small GPT on speech tokens: trains, compares its loss with unigram entropy, and speaks.

    dmcodec tokenize train.jsonl -o tokens/train
    dmcodec tokenize valid.jsonl -o tokens/valid
    python examples/token_gpt.py tokens/train tokens/valid -o gpt-out

Needs pip install 'dmcodec[data]' transformers. Writes the opening of a held-out recording, what
the model goes on to say, the model, and result.json. Losses are in nats a code: the unigram figure
is what a model would get that knows how often each code of each book is used, and nothing else.
"""
# ruff: noqa: T201, TID251

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

import dmcodec
from dmcodec.tokens.lm import Vocabulary, flatten, leading_frames, pack, wrap
from dmcodec.tokens.shards import TokenRow, read_info, read_rows

LEARNING_RATE = 3e-3


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains, measures, continues a recording and writes the sound."""
    options = parse_arguments(arguments)
    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    info = read_info(options.train)
    vocabulary = Vocabulary(codebooks=tuple(range(options.books)), codebook_size=info.codebook_size)
    codec = dmcodec.load(options.model)
    if codec.fingerprint() != info.model_hash:
        raise SystemExit(
            f"the tokens are of model {info.model_id} ({info.model_hash}), not of "
            f"{codec.model_id}: name it with --model"
        )
    rows = {name: list(read_rows(getattr(options, name))) for name in ("train", "valid")}
    ids = {name: pack_rows(each, vocabulary, options.length) for name, each in rows.items()}
    for name, each in ids.items():
        if len(each) == 0:
            raise SystemExit(
                f"{getattr(options, name)} holds fewer than {options.length} ids: give more speech "
                "or a smaller --length"
            )
    model = make_model(vocabulary, options.length, options.width, options.layers)
    num_parameters = sum(p.numel() for p in model.parameters())
    print(f"{num_parameters} parameters, {ids['train'].numel()} ids of {len(rows['train'])} rows")

    curve = train(model, ids, vocabulary, options.steps, options.batch_size)

    result: dict[str, object] = {"parameters": num_parameters, "steps": options.steps}
    for name in ids:
        unigram = unigram_nats(ids["train"], ids[name], vocabulary)
        loss = curve[-1][name]
        print(f"{name}: loss {loss:.3f}, unigram {unigram:.3f} nats a code")
        result[name] = {"loss": loss, "unigram": unigram}
    options.output.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**result, "curve": curve}, indent=2)
    (options.output / "result.json").write_text(text + "\n")
    model.save_pretrained(options.output / "model")

    num_prompt, num_new = (
        round(seconds * info.sample_rate / info.hop_length)
        for seconds in (options.prompt_seconds, options.seconds)
    )
    prompt = max(rows["valid"], key=lambda row: row.num_samples).codes[:, :num_prompt]
    num_prompt = prompt.shape[1]
    spoken = go_on(model, prompt, vocabulary, num_new)
    for name, codes in {"prompt": spoken[:, :num_prompt], "continuation": spoken}.items():
        waveform = codec.decode(torch.from_numpy(codes.copy()))[0].numpy()
        dmcodec.write_audio(options.output / f"{name}.wav", waveform, info.sample_rate)
    print(f"prompt.wav, continuation.wav, model/ and result.json are in {options.output}")


def make_model(vocabulary: Vocabulary, length: int, width: int, num_layers: int) -> GPT2LMHeadModel:
    """A GPT-2 of any size, not trained yet."""
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=vocabulary.size,
            n_positions=length,
            n_embd=width,
            n_layer=num_layers,
            n_head=4,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=vocabulary.start_id,
            eos_token_id=vocabulary.end_id,
        )
    )


def pack_rows(rows: list[TokenRow], vocabulary: Vocabulary, length: int) -> Tensor:
    """Recordings one after the other in rows of `length` ids, [N, length]; the rest is left out."""
    documents = [wrap(flatten(row.codes, vocabulary), vocabulary) for row in rows]
    ids, numbers = pack(documents, length, vocabulary.pad_id)
    return torch.from_numpy(ids[(numbers >= 0).all(axis=1)])


def unigram_nats(train_ids: Tensor, ids: Tensor, vocabulary: Vocabulary) -> float:
    """Mean of -log p(code | book), p from counts in the training ids + 1."""
    num_codes, size = vocabulary.start_id, vocabulary.codebook_size  # special ids are above codes
    counts = torch.bincount(train_ids[train_ids < num_codes], minlength=num_codes) + 1.0
    tables = counts.reshape(-1, size)  # [books, V]
    log_p = (tables / tables.sum(dim=1, keepdim=True)).log().flatten()
    predicted = ids[:, 1:]
    return -float(log_p[predicted[predicted < num_codes]].mean())


def train(
    model: GPT2LMHeadModel,
    ids: dict[str, Tensor],
    vocabulary: Vocabulary,
    num_steps: int,
    batch_size: int,
) -> list[dict[str, float]]:
    """Trains on ids["train"]; gives the losses of both lists ten times on the way."""
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05, betas=(0.9, 0.95))
    generator = torch.Generator().manual_seed(torch.initial_seed())
    curve: list[dict[str, float]] = []
    for step in range(1, num_steps + 1):
        warm_up, cool_down = step / 50, 1 - step / (num_steps + 1)
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * min(1, warm_up, 0.02 + cool_down)
        drawn = torch.randint(len(ids["train"]), (batch_size,), generator=generator)
        batch = ids["train"][drawn]
        model.train()
        logits = model(input_ids=batch).logits  # [B, L, V]
        F.cross_entropy(logits[:, :-1].flatten(0, 1), batch[:, 1:].flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % max(1, num_steps // 10) == 0 or step == num_steps:
            losses = {name: evaluate(model, each[:64], vocabulary) for name, each in ids.items()}
            curve.append({"step": step, **losses})
            print(", ".join(f"{name} {value:.4g}" for name, value in curve[-1].items()), flush=True)
    return curve


@torch.no_grad()
def evaluate(model: GPT2LMHeadModel, ids: Tensor, vocabulary: Vocabulary) -> float:
    """Mean loss over codes; start and end are easy and do not count."""
    model.eval()
    total, count = 0.0, 0
    for chunk in ids.split(16):
        logits, due = model(input_ids=chunk).logits[:, :-1], chunk[:, 1:]
        is_code = due < vocabulary.start_id
        total += F.cross_entropy(logits[is_code], due[is_code], reduction="sum").item()
        count += int(is_code.sum())
    return total / count


@torch.no_grad()
def go_on(
    model: GPT2LMHeadModel, codes: NDArray[np.uint16], vocabulary: Vocabulary, num_frames: int
) -> NDArray[np.int64]:
    """The sequence's books of codes [K, L], and frames that the model adds: [k, L + num_frames]."""
    model.eval()
    ids = [vocabulary.start_id, *flatten(codes, vocabulary).tolist()]
    num_books, length = len(vocabulary.codebooks), model.config.n_positions
    for position in range(num_frames * num_books):
        first = int(vocabulary.offsets[position % num_books])
        logits = model(input_ids=torch.tensor([ids[-length:]])).logits[0, -1]
        allowed = logits[first : first + vocabulary.codebook_size]  # codes of the book that is due
        # Sharper sampling would end in silence: its codes are the easiest to predict.
        probabilities = torch.softmax(allowed, dim=-1)
        ids.append(first + int(torch.multinomial(probabilities, 1)))
    return leading_frames(ids[1:], vocabulary)


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("train", type=Path, help="folder that dmcodec tokenize filled")
    parser.add_argument("valid", type=Path, help="another, of other speakers")
    parser.add_argument("-o", "--output", type=Path, default=Path("gpt-out"))
    parser.add_argument("--model", help="the codec of the tokens; default: the bundled one")
    parser.add_argument("--books", type=int, default=2, help="first books that are modelled")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--length", type=int, default=256, help="ids in a training sequence")
    parser.add_argument("--width", type=int, default=96)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--prompt-seconds", type=float, default=3.0)
    parser.add_argument("--seconds", type=float, default=4.0, help="length of what is added")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()

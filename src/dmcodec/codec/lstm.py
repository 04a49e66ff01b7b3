"""The LSTM between the convolutions: whole, step by step, or one layer and direction at a time."""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from dmcodec.codec.conv import Memory

LARGE_LSTM = 512
"""Hidden sizes from here on have weights larger than caches: `is_lstm_stepped`."""

FEW_FRAMES = 16
"""Fewer are cheaper step by step: torch's LSTM prepares its weights anew at every call."""

State = tuple[Tensor, Tensor]
"""h and c."""


class SkipLSTM(nn.Module):
    """LSTM added to its input, [B, C, L] -> [B, C, L] (twice C when bidirectional)."""

    def __init__(self, channels: int, *, num_layers: int, is_bidirectional: bool) -> None:
        super().__init__()
        self.lstm = nn.LSTM(
            channels, channels, num_layers, batch_first=True, bidirectional=is_bidirectional
        )

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Runs over time; with `lengths` [B] the backward direction starts at each item's end."""
        x = x.transpose(1, 2)  # [B, L, C]
        if lengths is None or not self.lstm.bidirectional:
            y, _ = self.lstm(x)  # what comes after an item's end reaches backward directions only
        else:
            packed = nn.utils.rnn.pack_padded_sequence(
                x, lengths.cpu(), batch_first=True, enforce_sorted=False
            )
            y, _ = nn.utils.rnn.pad_packed_sequence(
                self.lstm(packed)[0], batch_first=True, total_length=x.shape[1]
            )
        if self.lstm.bidirectional:
            x = torch.cat([x, x], dim=-1)
        return (y + x).transpose(1, 2)

    def step(self, x: Tensor, memory: Memory) -> Tensor:
        """The next steps of a batch, [B, C, L] -> same. In the memory h and c lie batch first."""
        x = x.transpose(1, 2)  # [B, L, C]
        old = memory.take(2)
        state = None
        if old is not None:
            h, c = old
            state = (h.transpose(0, 1).contiguous(), c.transpose(0, 1).contiguous())
        if len(x) == 1 and x.shape[1] < FEW_FRAMES:
            y, (h, c) = run_layers(self.lstm, x, state)
        else:
            y, (h, c) = self.lstm(x, state)
        memory.new += [h.transpose(0, 1), c.transpose(0, 1)]
        return (x + y).transpose(1, 2)

    def run_items(self, inputs: list[Tensor]) -> list[Tensor]:
        """`forward` of items [L_i, C] -> [L_i, C] each (twice C when bidirectional)."""
        lstm = self.lstm
        if len(inputs) > 1 or not is_lstm_stepped(lstm):
            sizes = [len(x) for x in inputs]
            lengths = torch.tensor(sizes) if len(set(sizes)) > 1 else None
            x = nn.utils.rnn.pad_sequence(inputs, batch_first=True).transpose(1, 2)  # [B, C, L]
            return [y[:, :size].t() for y, size in zip(self(x, lengths), sizes, strict=True)]
        x = skip = inputs[0]
        if not lstm.bidirectional:
            y, _ = run_layers(lstm, x[None])
            return [y[0].add_(skip)]
        for layer in range(lstm.num_layers):
            forward, _ = run_direction(lstm, f"_l{layer}", x)
            backward, _ = run_direction(lstm, f"_l{layer}_reverse", x.flip(0))
            x = torch.cat([forward, backward.flip(0)], dim=1)
        return [x.add_(torch.cat([skip, skip], dim=1))]


def is_lstm_stepped(lstm: nn.LSTM) -> bool:
    """Whether `run_direction` beats torch's own LSTM for one item: a large one, on one thread.

    With several threads torch's own reads the weights with all of them at once.
    """
    return lstm.hidden_size >= LARGE_LSTM and torch.get_num_threads() == 1


def run_layers(lstm: nn.LSTM, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
    """`lstm(x, state)` of one item [1, L, C] with `run_direction`; one-directional LSTMs only."""
    y, ends = x[0], []
    for layer in range(lstm.num_layers):
        start = None if state is None else (state[0][layer, 0], state[1][layer, 0])
        y, end = run_direction(lstm, f"_l{layer}", y, start)
        ends.append(end)
    h, c = (torch.stack(parts)[:, None] for parts in zip(*ends, strict=True))
    return y[None], (h, c)


def run_direction(
    lstm: nn.LSTM, suffix: str, x: Tensor, state: State | None = None
) -> tuple[Tensor, State]:
    """One layer and direction of a large LSTM over one item, [L, C] -> [L, H] and its last state.

    Each step reads all recurrent weights (16 MB at full size), and that is what it costs. Every
    second step reads them in the opposite order, so that it finds what the step before read last
    still in the cache.

    Args:
        lstm: where the weights are.
        suffix: which of them: `_l0`, `_l0_reverse`, `_l1` and so on.
        x: the input in the order of this direction.
        state: h and c, [H] each; None for zeros.
    """
    w_in, w, b_in, b = (
        cast(Tensor, getattr(lstm, f"{name}{suffix}")).detach()
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )
    size, num_steps = lstm.hidden_size, len(x)
    inputs = torch.addmm(b_in + b, x, w_in.t()).view(num_steps, 4, size)
    outputs = x.new_empty(num_steps, size)
    gates = x.new_empty(4, size)
    in_and_forget, cell_gate, out_gate = gates[:2], gates[2], gates[3]
    in_gate, forget_gate = in_and_forget
    h, c = (x.new_zeros(size), x.new_zeros(size)) if state is None else state
    c, squashed = c.clone(), x.new_empty(size)
    weights, sums = w.view(4, size, size).unbind(0), gates.unbind(0)
    orders = ((0, 1, 2, 3), (3, 2, 1, 0))
    for step, (given, output) in enumerate(zip(inputs, outputs, strict=True)):
        parts = given.unbind(0)
        for gate in orders[step % 2]:
            torch.addmv(parts[gate], weights[gate], h, out=sums[gate])
        in_and_forget.sigmoid_()
        cell_gate.tanh_()
        out_gate.sigmoid_()
        c.mul_(forget_gate).addcmul_(in_gate, cell_gate)
        torch.mul(torch.tanh(c, out=squashed), out_gate, out=output)
        h = output
    return outputs, (h.clone(), c)


def single_direction(
    lstm: nn.LSTM, suffix: str, *, is_fast: bool
) -> Callable[[Tensor, State | None], tuple[Tensor, State]]:
    """One layer and direction of an LSTM as a function of [1, L, C] and a state."""
    if is_fast and is_lstm_stepped(lstm):

        def run(x: Tensor, state: State | None) -> tuple[Tensor, State]:
            y, state = run_direction(lstm, suffix, x[0], state)
            return y[None], state

        return run
    input_size = cast(Tensor, getattr(lstm, f"weight_ih{suffix}")).shape[1]
    single = nn.LSTM(input_size, lstm.hidden_size, batch_first=True, device="meta")
    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        setattr(single, f"{name}_l0", getattr(lstm, f"{name}{suffix}"))
    return single

"""The trained state: float32 masters of what is trained, and their optimizer."""

import collections
import functools
import json
import math
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from lib.common import files
from lib.model import adapter, device
from lib.model.end_token import end_row
from lib.params import Params

# float16's loss scale: halved at an overflow, doubled after this many steps without one
START_SCALE = 2.0**14
GROWTH_STEPS = 2000
# bitsandbytes counts a tensor's numbers in 32 bits
LARGEST_PIECE = 2**30
# above so many numbers, a processor's norm is taken in parts of so many: torch adds up squares in
# few float32 sums, and over 268 million numbers the norm was 1 to 4 % too low
LONG, PART = 2**24, 2**16


class Masters:
    """float32 copies of the adapter's weights (or of all), their gradients and their optimizer.

    With the 8 bits of bfloat16, a step of 2e-5 would vanish, and sums of gradients would be rough.
    All weights are in one tensor, `flat`, and all gradients in another: clipping, the optimizer and
    a sum over GPUs then take a few kernel launches instead of a few for each of 430 tensors.
    `weights` and `gradients` are views into them by name; `live` are the model's own parameters.
    """

    def __init__(self, model: Any, job: Params) -> None:
        # the end token's rows come first, so that they are one part of `flat`
        live = adapter.trainable(model)
        rows = {name: p for name, p in live.items() if end_row.STORED in name}
        self.live: dict[str, torch.nn.Parameter] = {**rows, **live}
        # if the base is spread over cards, so is the adapter; the masters are on its first card
        place = next(iter(self.live.values())).device
        self.flat = torch.cat(
            [p.detach().to(place, torch.float32).flatten() for p in self.live.values()]
        )
        self.flat.grad = torch.zeros_like(self.flat)
        self.weights = self._views(self.flat)
        self.gradients = self._views(self.flat.grad)
        self.file = "weights.safetensors" if job.full_finetuning else "adapter.safetensors"
        self.clipped = _find_clipped(model) if job.full_finetuning else {}

        # the loss is multiplied by `scale`, since float16 gradients vanish below 6e-8; the scale
        # is dynamic, as in torch.amp.GradScaler
        dtype, _ = device.choose_precision(job.precision, job.load_in_4bit)
        self.scales = dtype == torch.float16
        self.scale = START_SCALE if self.scales else 1.0
        self.steps_at_scale = 0

        # whether an update can be recorded: then it reads the rate on the device
        self.recordable = can_record(job) and not self.scales
        rate: float | torch.Tensor = job.learning_rate
        if self.recordable:
            rate = torch.tensor(rate, device=place)

        if job.optim == "adamw_8bit":
            # imported here, since bitsandbytes is installed only on machines with a GPU
            from bitsandbytes.optim import AdamW8bit as optimizer
        else:
            # on a processor, fused saves two copies of all weights
            fused = self.flat.is_cuda or job.full_finetuning or self.recordable
            optimizer = functools.partial(
                torch.optim.AdamW, fused=fused, capturable=self.recordable
            )
        of_rows = sum(p.numel() for p in rows.values())
        self.pieces = self._split(of_rows)
        groups: list[dict[str, Any]] = [{"params": self.pieces}]
        if of_rows:  # decay draws LoRA back to the base, but a row to zero
            groups = [{"params": self.pieces[:1], "weight_decay": 0.0}, {"params": self.pieces[1:]}]
        self.optimizer = optimizer(groups, lr=rate, weight_decay=job.weight_decay)
        self.copies = self._group_copies()
        # what copies `flat` to the model in one launch, if there is such a thing
        self.write: Callable[[torch.Tensor], None] | None = None

    def _split(self, of_rows: int) -> list[torch.Tensor]:
        """Return the masters as tensors that the optimizer can count, each with its gradient.

        The first one has the trained rows, if there are any.
        """
        if self.flat.numel() <= LARGEST_PIECE and not of_rows:
            return [self.flat]
        sizes = [of_rows] if of_rows else []
        sizes += [len(part) for part in self.flat[of_rows:].split(LARGEST_PIECE)]
        pieces = list(self.flat.split(sizes))
        for piece, gradient in zip(pieces, self.flat.grad.split(sizes), strict=True):
            piece.grad = gradient
        return pieces

    def _views(self, flat: torch.Tensor) -> dict[str, torch.Tensor]:
        parts = flat.split([p.numel() for p in self.live.values()])
        return {
            name: part.view_as(p) for (name, p), part in zip(self.live.items(), parts, strict=True)
        }

    def _group_copies(self) -> list[tuple[list[torch.Tensor], list[torch.Tensor]]]:
        """Return the model's parameters and their masters in groups that are copied at once.

        A GPU copies a list in a few launches if all of it is dense and of one type, and else one by
        one. So the columns of joined weights (lib/training/compiled.py), which are not dense, must
        not be in a list with the others.
        """
        groups = collections.defaultdict(list)
        for name, p in self.live.items():
            groups[p.device, p.dtype, p.is_contiguous()].append(name)
        return [
            ([self.live[name] for name in names], [self.weights[name] for name in names])
            for names in groups.values()
        ]

    # ----------------------------------------------------------------------------------------------
    # gradients

    def take_gradients(self) -> None:
        """Add the model's gradients to those of the masters, and drop them in the model."""
        names = [name for name, p in self.live.items() if p.grad is not None]
        if names:
            torch._foreach_add_(
                [self.gradients[name] for name in names],
                [self.live[name].grad.to(self.flat.device) for name in names],
            )
        self.drop_live_gradients()

    def drop_live_gradients(self) -> None:
        """Drop the gradients of the model's own parameters."""
        for p in self.live.values():
            p.grad = None

    def drop_gradients(self) -> None:
        """Drop all gradients of the step, in the model and in the masters."""
        self.drop_live_gradients()
        self.flat.grad.zero_()

    def norm(self) -> float:
        """Return the norm of the gradients before clipping; reading it waits for the GPU."""
        return float(measure_norm(self.flat.grad)) / self.scale

    def lower_scale(self) -> bool:
        """Drop gradients that overflowed in float16, and halve the loss scale.

        Return False without doing anything if the scale is 1.
        """
        if self.scale <= 1:
            return False
        self.drop_gradients()
        self.scale /= 2
        self.steps_at_scale = 0
        return True

    # ----------------------------------------------------------------------------------------------
    # the optimizer step

    def step(self, norm: float, rate: float, max_norm: float) -> None:
        """Make one optimizer step with gradients of this norm, clipped to `max_norm` unless 0."""
        self.set_rate(rate)
        self.move(torch.tensor(norm, dtype=torch.float64), max_norm)
        self.steps_at_scale += 1
        if self.scales and self.steps_at_scale == GROWTH_STEPS:
            self.scale *= 2
            self.steps_at_scale = 0

    def set_rate(self, rate: float) -> None:
        """Set the learning rate of the next step."""
        for group in self.optimizer.param_groups:
            if torch.is_tensor(group["lr"]):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def move(self, norm: torch.Tensor, max_norm: float) -> None:
        """Move the weights by gradients of this norm and drop those, without waiting for a GPU."""
        # clip as torch.nn.utils.clip_grad_norm_ does, and divide by the loss scale
        most = norm.new_full((), max_norm or math.inf, dtype=torch.float64)
        shrink = (most / (norm.double() + 1e-6)).clamp(max=1.0) / self.scale
        self.flat.grad.mul_(shrink.float())
        self.optimizer.step()
        for name, most in self.clipped.items():
            self.weights[name].clamp_(-most, most)
        self.drop_gradients()
        self.publish()

    @torch.no_grad()
    def publish(self) -> None:
        """Copy the masters into the model's own parameters, rounded to their precision."""
        if self.write:
            self.write(self.flat)
            return
        for live, masters in self.copies:
            torch._foreach_copy_(live, masters)

    # ----------------------------------------------------------------------------------------------
    # on disk

    def _name_pieces(self) -> Iterator[tuple[torch.Tensor, str]]:
        """Yield each piece with the prefix of its state's names; a single piece has none."""
        for number, piece in enumerate(self.pieces):
            yield piece, f"{number}/" if len(self.pieces) > 1 else ""

    def save(self, folder: pathlib.Path) -> None:
        """Write the weights, optimizer.safetensors and optimizer.json, without pickle.

        The optimizer's state is read by parameter, because bitsandbytes nests its tensors in
        state_dict().
        """
        state = {
            prefix + key: value
            for piece, prefix in self._name_pieces()
            for key, value in self.optimizer.state[piece].items()
        }
        weights = {name: weight.contiguous() for name, weight in self.weights.items()}
        save_file(weights, folder / self.file)
        tensors = {k: v.contiguous() for k, v in state.items() if torch.is_tensor(v)}
        save_file(tensors, folder / "optimizer.safetensors")
        numbers = {
            "scale": self.scale,
            "steps_at_scale": self.steps_at_scale,
            "state": {k: v for k, v in state.items() if not torch.is_tensor(v)},
        }
        files.write_json(folder / "optimizer.json", numbers)

    def load(self, folder: pathlib.Path) -> None:
        """Load what `save` wrote, and publish it."""
        for name, weight in load_file(folder / self.file).items():
            self.weights[name].copy_(weight)
        numbers = json.loads((folder / "optimizer.json").read_text())
        self.scale = numbers["scale"]
        self.steps_at_scale = numbers["steps_at_scale"]
        tensors = load_file(folder / "optimizer.safetensors")
        stored = {key: tensor.to(self.flat.device) for key, tensor in tensors.items()}
        stored |= numbers["state"]
        for piece, prefix in self._name_pieces():
            own = {k.removeprefix(prefix): v for k, v in stored.items() if k.startswith(prefix)}
            self.optimizer.state[piece].update(own)
        self.publish()


def can_record(job: Params) -> bool:
    """Tell whether a GPU can record the job's updates; bitsandbytes' AdamW counts outside of it."""
    return job.torch_compile and job.optim == "adamw_torch"


def _find_clipped(model: Any) -> dict[str, float]:
    """Return Gemma 3n's AltUp coefficients, by name, with the largest that its training allows.

    transformers clips the model's own copy in every forward pass of training, but the masters, and
    a forward pass afterwards, would keep what is larger.
    """
    most = getattr(model.config.get_text_config(), "altup_coef_clip", None)
    ends = ("prediction_coefs.weight", "correction_coefs.weight")
    return {name: most for name in adapter.trainable(model) if name.endswith(ends)} if most else {}


def measure_norm(gradients: torch.Tensor) -> torch.Tensor:
    """Return the norm of all gradients, in the same order each time."""
    if gradients.is_cuda or gradients.numel() <= LONG:
        return gradients.norm()
    return torch.stack([part.norm() for part in gradients.split(PART)]).norm()

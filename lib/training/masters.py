"""The trained state: float32 masters of the adapter, and their optimizer."""

import functools
import json
import math
import pathlib
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from lib.common import files
from lib.model import adapter, device
from lib.params import Params

START_SCALE, GROWTH_STEPS = (
    2.0**14,
    2000,
)  # float16's loss scale: halved at an overflow, doubled after so many steps without one


class Masters:
    """float32 copies of the adapter: steps of 2e-5 vanish in bfloat16's 8 bits, and gradients add up exactly enough.

    All weights lie in one tensor, all gradients in another, so that clipping, the optimizer and a sum over GPUs are a few
    launches and not a few for each of 430 tensors; `weights` and `gradients` are views by name.
    """

    def __init__(self, model: Any, job: Params):
        self.live = adapter.trainable(model)
        place = next(
            iter(self.live.values())
        ).device  # of a base spread over cards, the first adapter's
        self.flat = torch.cat(
            [p.detach().to(place, torch.float32).flatten() for p in self.live.values()]
        )
        self.flat.grad = torch.zeros_like(self.flat)
        self.weights, self.gradients = self._views(self.flat), self._views(self.flat.grad)
        # of the loss: float16 gradients vanish below 6e-8; dynamic, as in torch.amp.GradScaler
        self.scales = device.choose_precision(job.precision, job.load_in_4bit)[0] == torch.float16
        self.scale, self.steps_at_scale = START_SCALE if self.scales else 1.0, 0
        if job.optim == "adamw_8bit":
            from bitsandbytes.optim import AdamW8bit as optimizer
        else:
            optimizer = functools.partial(torch.optim.AdamW, fused=self.flat.is_cuda)
        self.optimizer = optimizer([self.flat], lr=job.learning_rate, weight_decay=job.weight_decay)

    def _views(self, flat: torch.Tensor) -> dict[str, torch.Tensor]:
        parts = flat.split([p.numel() for p in self.live.values()])
        return {n: part.view_as(p) for (n, p), part in zip(self.live.items(), parts, strict=True)}

    def take_gradients(self) -> None:
        found = [n for n, p in self.live.items() if p.grad is not None]
        if found:
            torch._foreach_add_(
                [self.gradients[n] for n in found],
                [self.live[n].grad.to(self.flat.device) for n in found],
            )
        self.drop_live_gradients()

    def drop_live_gradients(self) -> None:
        for p in self.live.values():
            p.grad = None

    def drop_gradients(self) -> None:
        self.drop_live_gradients()
        self.flat.grad.zero_()

    def norm(self) -> float:
        """The gradients' norm, before clipping; reading it waits for the GPU."""
        return float(self.flat.grad.norm()) / self.scale

    def lower_scale(self) -> bool:
        """After an overflow in float16: drop the gradients and halve the loss scale; False when there is nothing to halve."""
        if self.scale <= 1:
            return False
        self.drop_gradients()
        self.scale, self.steps_at_scale = self.scale / 2, 0
        return True

    def step(self, norm: float, rate: float, max_norm: float) -> None:
        """One optimizer step with the gradients of that norm, clipped to `max_norm` (0: not)."""
        shrink = (
            min(1.0, (max_norm or math.inf) / (norm + 1e-6)) / self.scale
        )  # torch.nn.utils.clip_grad_norm_'s rule
        if shrink != 1:
            self.flat.grad.mul_(shrink)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.drop_gradients()
        self.publish()
        self.steps_at_scale += 1
        if self.scales and self.steps_at_scale == GROWTH_STEPS:
            self.scale, self.steps_at_scale = self.scale * 2, 0

    @torch.no_grad()
    def publish(self) -> None:
        torch._foreach_copy_(list(self.live.values()), list(self.weights.values()))

    def save(self, folder: pathlib.Path) -> None:
        """adapter.safetensors, optimizer.safetensors and optimizer.json: no pickle.

        The state is read by parameter, not through state_dict(): bitsandbytes nests its tensors there.
        """
        state = self.optimizer.state[self.flat]
        save_file(
            {n: w.contiguous() for n, w in self.weights.items()}, folder / "adapter.safetensors"
        )
        save_file(
            {k: v.contiguous() for k, v in state.items() if torch.is_tensor(v)},
            folder / "optimizer.safetensors",
        )
        files.write_json(
            folder / "optimizer.json",
            {
                "scale": self.scale,
                "steps_at_scale": self.steps_at_scale,
                "state": {k: v for k, v in state.items() if not torch.is_tensor(v)},
            },
        )

    def load(self, folder: pathlib.Path) -> None:
        for name, weight in load_file(folder / "adapter.safetensors").items():
            self.weights[name].copy_(weight)
        numbers = json.loads((folder / "optimizer.json").read_text())
        self.scale, self.steps_at_scale = numbers["scale"], numbers["steps_at_scale"]
        for key, value in {
            **load_file(folder / "optimizer.safetensors"),
            **numbers["state"],
        }.items():
            self.optimizer.state[self.flat][key] = (
                value.to(self.flat.device) if torch.is_tensor(value) else value
            )
        self.publish()

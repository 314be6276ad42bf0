"""The trained state: float32 masters, optimizer, random numbers; on disk as folders that are whole or absent, no pickle."""

import hashlib
import json
import math
import pathlib
import shutil
import time
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from lib import files
from lib import model as models
from lib.params import Params, UserError


class Masters:
    """float32 copies of the adapter: steps of 2e-5 vanish in bfloat16's 8 bits, and gradients add up exactly enough."""

    def __init__(self, model: Any, job: Params):
        self.live = models.trainable(model)
        self.weights = {n: p.detach().float().clone() for n, p in self.live.items()}
        for weight in self.weights.values():
            weight.grad = torch.zeros_like(weight)
        if job.optim == "adamw_8bit":
            from bitsandbytes.optim import AdamW8bit as optimizer
        else:
            from torch.optim import AdamW as optimizer
        self.optimizer = optimizer(list(self.weights.values()), lr=job.learning_rate, weight_decay=job.weight_decay)

    def take_gradients(self) -> None:
        for name, p in self.live.items():
            if p.grad is not None:
                self.weights[name].grad += p.grad
                p.grad = None

    def drop_gradients(self) -> None:
        for name, p in self.live.items():
            p.grad = None
            self.weights[name].grad.zero_()

    def step(self, rate: float, max_norm: float) -> float:
        """One optimizer step; returns the gradient norm before clipping. Nothing is changed when that is not finite."""
        norm = float(torch.nn.utils.clip_grad_norm_(list(self.weights.values()), max_norm or math.inf))
        if not math.isfinite(norm):
            return norm
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.drop_gradients()
        self.publish()
        return norm

    @torch.no_grad()
    def publish(self) -> None:
        for name, p in self.live.items():
            p.copy_(self.weights[name])

    def save(self, folder: pathlib.Path) -> None:
        """adapter.safetensors, optimizer.safetensors and optimizer.json: no pickle.

        The state is read by parameter, not through state_dict(): bitsandbytes nests its tensors there, and shares one
        quantisation map among all parameters, which safetensors refuses, hence the clone.
        """
        tensors, numbers = {}, {}
        for name, weight in self.weights.items():
            for key, value in self.optimizer.state[weight].items():
                if torch.is_tensor(value):
                    tensors[f"{name}|{key}"] = value.clone(memory_format=torch.contiguous_format)
                else:
                    numbers[f"{name}|{key}"] = value
        save_file(self.weights, folder / "adapter.safetensors")
        save_file(tensors, folder / "optimizer.safetensors")
        files.write_json(folder / "optimizer.json", numbers)

    def load(self, folder: pathlib.Path) -> None:
        for name, weight in load_file(folder / "adapter.safetensors").items():
            self.weights[name].copy_(weight)
        values = {**load_file(folder / "optimizer.safetensors"), **json.loads((folder / "optimizer.json").read_text())}
        for key, value in values.items():
            name, _, part = key.rpartition("|")
            weight = self.weights[name]
            # AdamW's step counter, a scalar, stays on the CPU: reading it there does not wait for the GPU
            self.optimizer.state[weight][part] = value.to(weight.device) if torch.is_tensor(value) and value.ndim else value
        self.publish()


def rng_state() -> dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_rng_state(state: dict[str, torch.Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def _seal(state: dict[str, Any]) -> str:
    """sha256 over a checkpoint.json's values, so that a flipped bit in it is seen as well."""
    return hashlib.sha256(json.dumps({k: v for k, v in state.items() if k != "seal"}, sort_keys=True).encode()).hexdigest()


def save_checkpoint(folder: pathlib.Path, step: int, masters: Masters, identity: dict[str, Any], keep: int) -> None:
    """Write checkpoints/step-NNNNNN beside and rename; older ones beyond `keep` go afterwards."""
    final = folder / f"step-{step:06d}"
    if final.exists():
        return
    temporary = folder / f".{final.name}.tmp"
    for left in folder.glob(".step-*.tmp"):  # by a kill
        shutil.rmtree(left)
    temporary.mkdir(parents=True)
    masters.save(temporary)
    save_file(rng_state(), temporary / "rng.safetensors")
    state = {"step": step, **identity, "files": files.describe(temporary, ["."])}
    files.write_json(temporary / "checkpoint.json", {**state, "seal": _seal(state)})
    temporary.replace(final)
    for old in sorted(folder.glob("step-*"))[:-keep]:
        shutil.rmtree(old)


def newest_checkpoint(folder: pathlib.Path) -> tuple[pathlib.Path, dict[str, Any]] | None:
    """The newest checkpoint whose files match their hashes; damaged ones are passed over, and it says so."""
    for path in sorted(folder.glob("step-*"), reverse=True):
        try:
            state = json.loads((path / "checkpoint.json").read_text())
            trouble = files.damaged(path, state["files"]) if state["seal"] == _seal(state) else "checkpoint.json does not match its seal"
        except (OSError, ValueError, KeyError, TypeError) as error:
            trouble = f"checkpoint.json: {error}"
        if not trouble:
            return path, state
        print(f"checkpoint {path.name} is damaged ({trouble}); trying the one before it")
        path.rename(path.with_name(f"damaged-{path.name}-{int(time.time())}"))
    return None


def resume(folder: pathlib.Path, masters: Masters, identity: dict[str, Any]) -> int:
    """Load the newest good checkpoint; returns its step, 0 without one. Refuses one of other data, parameters or size."""
    found = newest_checkpoint(folder)
    if not found:
        return 0
    path, state = found
    differ = [f"  {k}: checkpoint {state.get(k)}, now {v}" for k, v in identity.items() if state.get(k) != v]
    if differ:
        raise UserError("\n".join([f"checkpoint {path.name} does not belong to this job:", *differ,
                                   "Start training over with FORCE=1, or choose another RUN=."]))
    masters.load(path)
    set_rng_state(load_file(path / "rng.safetensors"))
    return state["step"]

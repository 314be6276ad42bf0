"""One micro-batch of Gemma 3n with LoRA by hand-written layers, in place of transformers' own.

stack = Stack(model, longest)     # before the masters are made, or any address is kept
stack.bind(masters)
loss = stack(batch)               # adds the adapter's gradients to the masters'
"""

from typing import Any

import torch

from lib.training.batches import Batch
from lib.training.loss import losses_of_trained
from lib.training.masters import Masters
from lib.training.stack import ends
from lib.training.stack.attention import Rows
from lib.training.stack.layers import Layers
from lib.training.stack.places import Places
from lib.training.stack.weights import Layer


class Stack:
    """A model's embedding, hand-written layers and loss, for packed micro-batches.

    The model's weights become views of joined storage, and it goes on working. Do not move or copy
    it afterwards. A call neither reads anything back nor allocates differently from the one before,
    so it can be recorded as a CUDA graph after two runs, which compile.
    """

    def __init__(self, model: Any, longest: int) -> None:
        base = model.get_base_model()
        config = base.config.get_text_config()
        self.model, self.body, self.longest = model, base.model, longest
        scale = base.model.layers[0].mlp.down_proj.scaling["default"]
        self.layers = Layers(
            [Layer(layer, number, config) for number, layer in enumerate(base.model.layers)],
            config,
            scale,
        )
        self.on_card = model.device.type == "cuda"
        self.enter, self.leave = ends.enter, ends.leave
        if self.on_card:
            torch.cuda.empty_cache()  # the weights' former places fit nothing else
            self.enter = torch.compile(ends.enter, dynamic=False)
            self.leave = torch.compile(ends.leave, dynamic=False)

    def bind(self, masters: Masters) -> None:
        """Let calls add to these masters' gradients, and the masters publish in one launch."""
        self.flat = masters.flat
        of: dict[torch.nn.Parameter, torch.Tensor] = {}
        for layer, gradients in zip(self.layers.layers, self.layers.gradients, strict=True):
            of.update(layer.name_gradients(gradients))
        live = list(masters.live.values())
        assert set(live) == set(of), "the adapter alone must be trained"
        masters.write = Places(p.data for p in live).write
        self.of_gradients = Places(of[p] for p in live)

    def __call__(self, batch: Batch) -> torch.Tensor:
        """Return the weighted sum of a micro-batch's losses, and add its gradients."""
        with torch.no_grad():
            inputs = self.enter(self.body, batch.input_ids, batch.position_ids)
            streams = self.layers.forward(inputs, Rows(batch.bounds, self.longest))
        streams.requires_grad_()
        trained = self.leave(self.body, streams)[batch.where]
        losses = losses_of_trained(self.model, trained, batch.targets, fused=self.on_card)
        loss = (losses * batch.weights).sum()
        (grad,) = torch.autograd.grad(loss, streams)
        with torch.no_grad():
            self.layers.backward(grad.contiguous())
            self.of_gradients.add_to(self.flat.grad)
        return loss.detach()

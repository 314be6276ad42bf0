"""The end token's row: what it computes and learns, and that it alone changes in the tables.

python -m pytest tests/model/end_token/test_end_row.py
"""

import copy
import json

import pytest
import torch
from peft import PeftModel
from peft.tuners.trainable_tokens.layer import TrainableTokensLayer
from safetensors.torch import load_file
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from helpers.small_training import small_model
from helpers.tiny_models import a_job, shaken
from lib.common.errors import UserError
from lib.model import adapter, options
from lib.model.end_token import end_row
from lib.training import batches, loss
from lib.training.masters import Masters

TOKEN = 7
IDS = torch.tensor([[2, 5, TOKEN, 9, TOKEN], [2, 8, 30, TOKEN, 11]])
LABELS = torch.tensor([[-100, 5, TOKEN, 9, TOKEN], [-100, -100, 30, TOKEN, 11]])


def small_gemma3(tied=True):
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        tie_word_embeddings=tied,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )
    net = Gemma3ForCausalLM(config).eval().requires_grad_(False)
    return adapter.add(net, a_job())


@pytest.fixture(params=["Gemma 3n", "Gemma 3", "Gemma 3, untied"])
def net(request):
    """Return a small model with a shaken adapter and a trained row, far from the base's."""
    made = (
        small_model(a_job())
        if request.param == "Gemma 3n"
        else small_gemma3("un" not in request.param)
    )
    end_row.add(made, TOKEN)
    return shaken(made)


def plain_peft(net):
    """The same model with peft's own layers."""
    copied = copy.deepcopy(net)
    for module in copied.modules():
        if hasattr(module, "trainable_tokens_delta"):
            module.__class__ = TrainableTokensLayer
    return copied


def test_logits_and_gradients_are_those_of_peft(net):
    """Both ways to the row, as embedding and as output, add to its gradient."""
    peft = plain_peft(net)
    with torch.no_grad():
        torch.testing.assert_close(net(input_ids=IDS).logits, peft(input_ids=IDS).logits)
    batch = batches.batch_from_labels(IDS, LABELS)
    loss.token_losses(net, batch).sum().backward()
    logits = peft(input_ids=IDS).logits[:, :-1].flatten(0, 1)
    expected = torch.nn.functional.cross_entropy(logits, LABELS[:, 1:].flatten(), reduction="sum")
    expected.backward()
    wanted = {name: p.grad for name, p in peft.named_parameters() if p.grad is not None}
    found = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    assert found.keys() == wanted.keys()
    assert any(end_row.STORED in name for name in found)
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5)


def test_training_moves_that_row_only(net):
    before = {n: p.detach().clone() for n, p in net.named_parameters() if not p.requires_grad}
    job = a_job(precision="fp32", weight_decay=0.5)
    masters = Masters(net, job)
    rows = [name for name in masters.live if end_row.STORED in name]
    assert list(masters.live)[: len(rows)] == rows
    old = {name: masters.weights[name].clone() for name in rows}
    loss.token_losses(net, batches.batch_from_labels(IDS, LABELS)).sum().backward()
    masters.take_gradients()
    masters.step(masters.norm(), 1e-2, 1.0)
    assert all(torch.equal(p, before[n]) for n, p in net.named_parameters() if n in before)
    for name in rows:
        # the first step of Adam is the rate times the gradient's sign; decay would add to it
        assert (masters.weights[name] - old[name]).abs().max() == pytest.approx(1e-2, rel=1e-3)
        assert torch.equal(masters.weights[name], masters.live[name])


def test_optimizer_state_of_both_parts_is_saved_and_loaded(net, tmp_path):
    job = a_job(precision="fp32", weight_decay=0.5)
    ends = []
    for stop_between in (False, True):
        model = copy.deepcopy(net)
        masters = Masters(model, job)
        for _ in range(3):
            loss.token_losses(model, batches.batch_from_labels(IDS, LABELS)).sum().backward()
            masters.take_gradients()
            masters.step(masters.norm(), 1e-2, 1.0)
            if stop_between:
                masters.save(tmp_path)
                model = copy.deepcopy(net)
                masters = Masters(model, job)
                masters.load(tmp_path)
        ends.append(masters.flat.clone())
    assert torch.equal(*ends)


def test_a_folded_model_computes_the_same_and_has_no_peft_layer(net):
    with torch.no_grad():
        wanted = net(input_ids=IDS).logits
        folded = end_row.fold_in(copy.deepcopy(net))
        torch.testing.assert_close(folded(input_ids=IDS).logits, wanted)
    assert end_row.find(net) is not None
    assert end_row.find(folded) is None
    loss.split_model(folded)


def test_the_output_weight_alone_is_refused(net):
    with pytest.raises(AssertionError, match="lack the trained row"):
        loss.split_model(net)


def test_a_saved_adapter_loads_with_plain_peft(net, tmp_path):
    adapter.save(net, Masters(net, a_job()).weights, tmp_path / "a", "owner/base", "abc")
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    tied = net.config.tie_word_embeddings
    assert config["trainable_token_indices"] == (
        [TOKEN] if tied else {"embed_tokens": [TOKEN], "lm_head": [TOKEN]}
    )
    names = [n for n in load_file(tmp_path / "a" / "adapter_model.safetensors") if "lora" not in n]
    assert len(names) == (1 if tied else 2)
    fresh = (
        small_model(a_job()) if hasattr(net.config, "laurel_rank") else small_gemma3(tied)
    ).unload()
    loaded = PeftModel.from_pretrained(fresh, tmp_path / "a").eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(input_ids=IDS).logits, net(input_ids=IDS).logits)


def test_the_size_counts_the_rows(net):
    job = a_job(train_end_token=True, lora_r=net.peft_config["default"].r)
    assert adapter.check_size(net, job)
    with pytest.raises(UserError, match="but this architecture"):
        adapter.check_size(net, a_job(train_end_token=False, lora_r=job.lora_r))


def test_the_operations_are_those_of_the_plain_output_layer(net):
    plain = end_row.plain_weight(net.get_base_model().get_output_embeddings())
    assert plain.shape == (96, 32)
    assert (
        plain.data_ptr()
        == end_row.plain_weight(
            end_row.fold_in(net).get_base_model().get_output_embeddings()
        ).data_ptr()
    )


def test_a_base_without_an_end_token_is_an_error(tmp_path):
    (tmp_path / "tokenizer.json").write_text('{"added_tokens": [{"id": 1, "content": "<eos>"}]}')
    with pytest.raises(UserError, match="no token `<end_of_turn>`.*train_end_token: false"):
        end_row.find_token(tmp_path)


def test_unsloth_is_not_chosen_for_a_row(machine):
    machine("Tesla T4", 15, (7, 5))
    backend, why = options.choose_backend(a_job(train_end_token=True, load_in_4bit=True))
    assert (backend, why) == ("transformers", "train_end_token was not tried with unsloth")

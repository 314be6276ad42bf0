"""A tiny random Gemma 3n with the true architecture, so that whole-pipeline tests run on a CPU in seconds.

python tests/helpers/tiny_gemma3n.py FOLDER
"""

import io
import sys
from pathlib import Path

import sentencepiece
import torch
from transformers import Gemma3nForCausalLM, Gemma3nTextConfig, GemmaTokenizer, GenerationConfig

VOCAB = 2048
OWNING, SHARING = 20, 5  # layers
CONTROL = ["<mask>", "<start_of_turn>", "<end_of_turn>"]

# Gemma's published turn format: the system message is put before the first user message, "assistant" is "model".
TEMPLATE = (
    "{{ bos_token }}{%- set ns = namespace(system='') -%}"
    "{%- if messages[0]['role'] == 'system' -%}{%- set ns.system = messages[0]['content'] + '\n\n' -%}"
    "{%- set turns = messages[1:] -%}{%- else -%}{%- set turns = messages -%}{%- endif -%}"
    "{%- for turn in turns -%}"
    "{{ '<start_of_turn>' + ('model' if turn['role'] == 'assistant' else turn['role']) + '\n' }}"
    "{{ (ns.system if loop.first else '') + turn['content'] | trim + '<end_of_turn>\n' }}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}"
)

WORDS = """
a about abdomen above adult after again air airway all allergic ambulance an and ankle any are arm artery as ask
aspirin at automated back bandage bee before bite bleeding blanket blister blood blue body bone both breast breath burn
but by call can carbon cardiac care careful casualty cause chemical chest child choking circulation clean cloth cold
collapse compress confused conscious control cool cover cramp cut danger deep defibrillator dehydration diabetic do
doctor dose dressing drink drowning drug ear elbow elevate emergency epileptic every eye face faint fall fever fifteen
finger firm first five flush fluid foot for fracture from frostbite gauze gently get give glove glucose go hand hard
have he head heart heat heavy help her his hospital hot hour how hurt hypothermia ice if immediately in infant
infection inhaler injury insect is it keep kind knee know leave left leg lie life lift light limb look loose lung may
medical medicine minute model monitor month more mouth move muscle neck need never no normal nose not now numb of off
old on once one open or other our out overdose oxygen pain palm panic paralysis part patient person place poison
position pregnant press pressure prevent protect pulse pump push rapid rash recovery remove rescue rest right rinse
safe scald seizure severe shade shallow shock should shoulder sign sit skin sling slow snake some speak spine splint
sprain stay sterile sting stomach stop stroke sudden sugar support sure swallow swelling symptom system take talk tell
temperature ten than that the then there they thirty this throat tight time to tongue tooth touch tourniquet treat turn
twenty two unconscious under until up upper use user venom very victim vomit wait warm wash watch water weak what when
where whether while who why with without wound wrap wrist yes you your
""".split()


# The models of most seeds repeat the prompt's last line break, an empty answer; 36 is the first whose
# answers in the tests are never empty, and differ.
def build(folder, seed=36, sharing=SHARING):
    """Write the model (34 M parameters, bf16) and its tokenizer as a Hugging Face folder, and return it."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    build_tokenizer(folder)
    # llama.cpp hard-codes of Gemma 3n: per-layer inputs of 256, laurel rank 64, 4 altup inputs, sparsity
    # in the first 10 layers, K/V owned by the first 20. Widths are free, and how many layers share
    # K/V: five, one period of sliding and full attention, where E4B has fifteen and E2B ten.
    config = Gemma3nTextConfig(
        vocab_size=VOCAB,
        vocab_size_per_layer_input=VOCAB,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=OWNING + sharing,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        hidden_size_per_layer_input=256,
        laurel_rank=64,
        altup_num_inputs=4,
        num_kv_shared_layers=sharing,
        activation_sparsity_pattern=[0.95] * 10 + [0.0] * (OWNING + sharing - 10),
        max_position_embeddings=2048,
        sliding_window=512,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
        dtype="bfloat16",
    )
    generator = torch.Generator().manual_seed(seed)
    model = Gemma3nForCausalLM(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            draw = torch.randn(weight.shape, generator=generator)
            if (
                weight.dim() == 1
            ):  # norms and altup's output scale, whose own start (zero) would hide per-layer inputs
                # small branches keep a random model smooth: bf16 and Q8_0 then stay near the float32 logits
                centre = (
                    0.35
                    if "q_norm" in name or "k_norm" in name
                    else 0.4
                    if ".post_" in name
                    else 1.0
                )
                weight.copy_(centre * (1 + 0.1 * draw))
            elif "prediction_coefs" in name or "correction_coefs" in name:
                weight.copy_(0.1 * draw)
            else:
                weight.copy_(draw / weight.shape[1] ** 0.5)
    model.generation_config = GenerationConfig(
        bos_token_id=2,
        eos_token_id=[1, 4 + CONTROL.index("<end_of_turn>")],
        pad_token_id=0,
        do_sample=False,
    )
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


def random_adapter(base, folder, seed=1):
    """Write a LoRA adapter (r=4, language layers) whose B is not zero, in PEFT's layout, and return its folder."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    model = Gemma3nForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    config = LoraConfig(
        r=4,
        lora_alpha=4,
        target_modules=r".*layers\.\d+\.(?:self_attn\.(?:q|o)_proj|mlp\.(?:gate|up|down)_proj)",
        task_type="CAUSAL_LM",
        init_lora_weights=False,
    )
    get_peft_model(model, config).save_pretrained(folder)
    return folder


def build_tokenizer(folder):
    """Train the 2,048-piece byte-fallback BPE and write tokenizer.model, tokenizer.json and tokenizer_config.json."""
    stems = [stem + ending for stem in WORDS for ending in ("", "s", "ed", "ing", "ly", "'s")]
    nines = [" ".join(stems[i : i + 9]) for i in range(0, len(stems), 9)]
    lines = [nine + ". " + nine.capitalize() + "?" for nine in nines]
    proto = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=proto,
        model_type="bpe",
        vocab_size=VOCAB,
        byte_fallback=True,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        pad_piece="<pad>",
        eos_piece="<eos>",
        bos_piece="<bos>",
        unk_piece="<unk>",
        control_symbols=CONTROL,
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        split_digits=True,
        character_coverage=1.0,
        num_threads=1,
        required_chars="0123456789\n",
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(proto.getvalue())
    pieces = sentencepiece.SentencePieceProcessor(model_proto=proto.getvalue())
    vocab = {pieces.id_to_piece(i): i for i in range(pieces.get_piece_size())}
    merges = []  # a piece's place in the list is its priority, so its in-vocabulary splits take that place
    for piece in vocab:
        splits = [(piece[:i], piece[i:]) for i in range(1, len(piece))]
        known = [(vocab[a], vocab[b], (a, b)) for a, b in splits if a in vocab and b in vocab]
        merges += [pair for _, _, pair in sorted(known)]
    tokenizer = GemmaTokenizer(
        vocab=vocab,
        merges=merges,
        model_max_length=2048,
        add_bos_token=True,
        additional_special_tokens=CONTROL[1:],
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder, save_jinja_files=False)


if __name__ == "__main__":
    print(build(sys.argv[1]))

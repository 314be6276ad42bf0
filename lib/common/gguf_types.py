"""Every GGUF file type that a run can export, and the tensor types that such files consist of.

    gguf_types.FILE_TYPES["q4_k_m"].weights         # "Q4_K"
    gguf_types.TENSOR_TYPES["Q4_K"].fallback        # "Q5_0"

A file type is a recipe: it names the tensor type of most weights and of the few that get a finer
one. The parameters, the quantiser, the checks before a file gets its name and the estimate of disk
space all read these two tables. A new type is a new row here, plus llama.cpp's own choice for it in
tests/export/test_quantise.py.
"""

from typing import Literal, NamedTuple

# the names of FILE_TYPES again, for the schema of parameters: a type checker cannot read a table
GgufType = Literal["f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0"]


class ParityBounds(NamedTuple):
    """How far a sound file usually is from the 16-bit model, on answer tokens of held-out rows."""

    kl: float  # largest mean KL divergence, in nats
    # largest perplexity, as a multiple of the 16-bit model's; the inverse is the smallest one
    perplexity_ratio: float
    agreement: float  # smallest share of positions with the same likeliest token


class FileType(NamedTuple):
    """How a file's weights are stored (llama.cpp's names), and what the checks expect of it."""

    weights: str  # most tensors
    embeddings: str  # embeddings that are the output layer too
    finer: str  # attn_v and ffn_down of the layers that llama.cpp stores more precisely
    disk_share: float  # size over that of the 16-bit base
    bounds: ParityBounds
    precise: bool = False  # precise enough to compare adapters: 4 to 6 bits would hide them
    # what llama.cpp gives ffn_down of the first eighth of the layers in a file with an importance
    # matrix, where it distrusts four bits; empty if that changes nothing
    guarded: str = ""

    @property
    def is_packed(self) -> bool:
        """Whether weights are packed; 16-bit types only convert numbers."""
        return self.weights not in ("F16", "BF16")

    @property
    def is_weighted(self) -> bool:
        """Whether an importance matrix changes the packing."""
        return TENSOR_TYPES[self.weights].is_weighted


class TensorType(NamedTuple):
    """How one tensor's numbers are stored, and how far a sound block may be from its source."""

    block_limit: float  # largest difference in a block, as a share of the block's largest number
    # an absolute difference that counts as rounding too; it matters only among numbers near zero
    block_slack: float = 0.0
    # the type used for rows whose length is a multiple of 32, but not of this type's block of 256
    fallback: str = ""
    is_weighted: bool = True  # whether an importance matrix changes the packing


# disk_share is an estimate made before anything is downloaded. For the text part of Gemma 3n E4B,
# gguf_plan.predict_bytes gives 0.535, 0.415, 0.383, 0.353 and 0.341 of its bf16 GGUF, from q8_0 to
# q4_0; for E2B 0.537 to 0.364. The base on the hub also holds the picture and audio towers, which
# no GGUF has, so the shares of the two smallest types may lie below.
#
# The comment above each row has a Gemma 3 270M's figures in the order of ParityBounds (the demo's,
# trained 22 steps; 128 positions; the worst of up to three draws). Larger models should lose less.
# A barely trained one loses more by rounding alone (133 positions, perplexity 24 to 50; torch gives
# the same with the rounded numbers): after 3 steps on 53 rows q8_0 gave 0.0247, 1.042, 0.92. So
# lib/export/parity/verdicts.py lets a file pass that rounding explains.
# The 16-bit types leave room for a reference that itself computed in bfloat16
# (lib/export/parity/reference.py).
FILE_TYPES = {
    # 0.0000068, 1.000, 0.99
    "f16": FileType("F16", "F16", "F16", 1.0, ParityBounds(3e-3, 1.02, 0.88), precise=True),
    # 0.000056, 1.001, 0.98
    "bf16": FileType("BF16", "BF16", "BF16", 1.0, ParityBounds(3e-3, 1.02, 0.88), precise=True),
    # 0.0029, 0.991, 0.95; after 3 steps 0.0092, 1.072, 0.92
    "q8_0": FileType("Q8_0", "Q8_0", "Q8_0", 0.54, ParityBounds(0.01, 1.08, 0.88), precise=True),
    # 0.0135, 1.019, 0.92; after 3 steps 0.0152, 1.099, 0.92
    "q6_k": FileType("Q6_K", "Q6_K", "Q6_K", 0.45, ParityBounds(0.04, 1.12, 0.82)),
    # 0.043, 1.058, 0.84; the untrained base 0.041, 1.119, 0.90
    "q5_k_m": FileType("Q5_K", "Q6_K", "Q6_K", 0.4, ParityBounds(0.13, 1.25, 0.7)),
    # 0.37, 1.396, 0.64: much worse than the 16-bit model, yet the file is sound
    "q4_k_m": FileType("Q4_K", "Q6_K", "Q6_K", 0.35, ParityBounds(0.8, 1.8, 0.45)),
    # 1.19, 3.316, 0.36: worse still, and sound too
    "q4_0": FileType("Q4_0", "Q6_K", "Q4_0", 0.33, ParityBounds(2.0, 5.0, 0.2), guarded="Q4_1"),
}

# F16 rounds to 11 bits. Q8_0, Q5_0, Q5_1 and Q4_0 divide a block's range into 254, 32, 31 and 16
# steps. The limit is half a step plus the scale's own rounding; for Q4_0 and Q5_0 it is a whole
# step, because one end of their range has one number less. K types choose scales for the least
# square error, so their limits are measured. Largest difference seen in Q6_K, Q5_K and Q4_K:
# 0.016, 0.054, 0.058 in a trained Gemma 3 270M; 0.016, 0.056, 0.106 in random Gemma 3n; 0.020,
# 0.066, 0.124 in 14 distributions made to be hard (the uniform one is the worst). The slack is the
# difference that half a step of the smallest float16 scale makes.
#
# With an importance matrix, a block's largest number may be far off, where its column matters
# little. There the limit is for the block's error weighted by the importance (the root of its mean
# square), of which the packers keep to less than half: 0.063 was seen in Q4_0, 0.043 in Q4_1, 0.029
# in Q5_0, 0.027 in Q4_K and 0.013 in Q6_K of the demo.
TENSOR_TYPES = {
    "F32": TensorType(0.0, is_weighted=False),
    "BF16": TensorType(2**-8, is_weighted=False),
    "F16": TensorType(2**-11, 2**-25, is_weighted=False),
    "Q8_0": TensorType(0.0045, 127 * 2**-25, is_weighted=False),
    "Q6_K": TensorType(0.03, 4096 * 2**-25, fallback="Q8_0"),
    "Q5_K": TensorType(0.09, 2000 * 2**-25, fallback="Q5_1"),
    "Q5_1": TensorType(0.034, 32 * 2**-25),
    "Q5_0": TensorType(0.0635, 16 * 2**-25),
    "Q4_K": TensorType(0.15, 1000 * 2**-25, fallback="Q5_0"),
    "Q4_1": TensorType(0.07, 16 * 2**-25),
    "Q4_0": TensorType(0.126, 8 * 2**-25),
}

"""How fast a named GPU would run ReST-EM, and what memory it takes: reckoned, not measured.

Takes a GPU's data sheet (`GPUS`) and the shape of a base model; gives a `Throughput` and a
`Memory`. For a machine that is at hand, a timed probe is far better: this is for one that is not.

Arithmetic, with N the model's parameters and A the adapter's (2 operations for each
multiplication and addition; derived as in Kaplan et al. 2020, arXiv 2001.08361, section 2.1):

* reading and scoring a token: a forward pass, 2N + 2A;
* training a token: forward 2N + 2A; backward through the frozen weights only by their input, 2N,
  as none of them has a gradient; through the adapter by its input and its weights, 4A. Together
  4N + 6A, where training all weights would take 6N;
* writing: as scoring, but a step, which gives each text in flight one token, also reads all
  weights once from memory, and waits for the launch of every layer's kernels. The slowest of the
  three is the step's time.

Attention over the text is left out (about 1 to 7 % at 512 tokens), and the head is counted for all
tokens. Both are small beside what is not known: the share of the peak that is reached.

**Assumptions, not measurements**, with wide ranges:

* 10 to 40 % of the peak in matrix products (model FLOPs utilisation). Measured here was 25 % of the
  rate of square bfloat16 products, on a CPU (``benchmarks/results/trials.json``); no GPU was.
* 20 to 80 % of the memory's bandwidth.
* 0.1 to 1 ms a layer and step of writing, whatever the model's size, for launches from Python.

Prices are not in the table: they change, and differ by several times between providers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aios.core.errors import UsageError
from aios.core.restem_costs import Memory, Throughput
from aios.core.restem_workload import Span

SHARE_OF_PEAK = Span(0.10, 0.20, 0.40)
SHARE_OF_BANDWIDTH = Span(0.20, 0.40, 0.80)
LAYER_SECONDS = Span(0.0001, 0.0003, 0.001)
HALF_BYTES = 2  # of a number in bfloat16 or float16
EXACT_BYTES = 4  # of a number in an adapter's masters
# Trainings at a time and tokens of a pass: those of `backends.trials.bank_memory`.
CPU_TRAININGS, CPU_PASS_TOKENS = 16, 1024
GPU_TRAININGS, GPU_PASS_TOKENS = 64, 16384
LEAST_PASS_TOKENS = 512  # shorter passes do not hold the longest texts
MEMORY_SHARE = 0.8
_LOGIT_TOKENS = 128
_MAX_NUMBER = 10**9  # of a shape; configurations come from outside


@dataclass(frozen=True, slots=True)
class GPU:
    """A GPU as its maker describes it.

    Attributes:
        name: As ``--gpu`` takes it.
        peak_tflops: Dense matrix products in `dtype`, sums in float32, without sparsity.
        memory_gb: Memory, in 10⁹ bytes.
        bandwidth_gb_s: Of that memory, in 10⁹ bytes a second.
        dtype: The 16-bit format that it multiplies in.
        source: The maker's document, with its year.
    """

    name: str
    peak_tflops: float
    memory_gb: float
    bandwidth_gb_s: float
    dtype: str
    source: str


_TABLE = (
    GPU("A100-40GB", 312, 40, 1555, "bfloat16", "NVIDIA A100 data sheet, 2021"),
    GPU("A100-80GB", 312, 80, 2039, "bfloat16", "NVIDIA A100 data sheet, 2021 (SXM)"),
    GPU("H100-SXM", 989, 80, 3350, "bfloat16", "NVIDIA H100 data sheet, 2023 (half of sparse)"),
    GPU("H100-PCIe", 756, 80, 2000, "bfloat16", "NVIDIA H100 data sheet, 2023 (half of sparse)"),
    GPU("L4", 121, 24, 300, "bfloat16", "NVIDIA L4 data sheet, 2023 (half of sparse)"),
    GPU("T4", 65, 16, 320, "float16", "NVIDIA T4 product brief, 2019"),
    GPU("A10G", 70, 24, 600, "bfloat16", "NVIDIA A10G data sheet, 2021"),
    GPU("RTX-4090", 165.2, 24, 1008, "bfloat16", "NVIDIA Ada architecture white paper, 2022"),
)
GPUS: Mapping[str, GPU] = {gpu.name: gpu for gpu in _TABLE}
_OTHER_NAMES = {"h100": "H100-SXM", "a100": "A100-40GB"}


def find_gpu(name: str) -> GPU:
    """A GPU by its name; capitals, spaces, ``-`` and ``_`` do not matter.

    Raises:
        UsageError: It is not in the table.
    """
    wanted = _OTHER_NAMES.get(_folded(name), name)
    for gpu in GPUS.values():
        if _folded(gpu.name) == _folded(wanted):
            return gpu
    raise UsageError(
        f"the GPU {name!r} is not in the table", f"known: {', '.join(GPUS)}; or probe this machine"
    )


def _folded(name: str) -> str:
    return "".join(c for c in name.casefold() if c not in " -_").removeprefix("nvidia")


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The sizes of a decoder like Llama's.

    Attributes:
        parameters: Numbers in the weights.
        layers: Decoder layers.
        hidden: Hidden size.
        inner: Inner size of the MLP.
        vocabulary: Tokens.
        attention: Width of all query heads.
        keys: Width of all key heads.
        exact: Whether it is the model's own; else it has the usual proportions.
    """

    parameters: int
    layers: int
    hidden: int
    inner: int
    vocabulary: int
    attention: int
    keys: int
    exact: bool

    @classmethod
    def of_config(cls, parameters: int, config: Mapping[str, Any]) -> ModelShape | None:
        """The shape that a ``config.json`` describes; None where it says too little."""
        text = config.get("text_config")
        config = text if isinstance(text, Mapping) else config
        hidden = _number(config, "hidden_size", "n_embd")
        layers = _number(config, "num_hidden_layers", "n_layer")
        vocabulary = _number(config, "vocab_size")
        heads = _number(config, "num_attention_heads", "n_head")
        if hidden is None or layers is None or vocabulary is None or heads is None:
            return None
        width = _number(config, "head_dim") or hidden // heads
        kept = _number(config, "num_key_value_heads") or heads
        inner = _number(config, "intermediate_size", "n_inner") or 4 * hidden
        sizes = (layers, hidden, inner, vocabulary, heads * width, kept * width)
        return cls(parameters, *sizes, exact=True)

    @classmethod
    def of_size(cls, parameters: int) -> ModelShape:
        """A shape of the usual proportions, where only the number of parameters is known.

        A width of 128 for each layer, 12 · layers · width² parameters, an MLP of 8/3 of the width
        and 32,000 tokens, as the Llama of 7 billion parameters (2023) has: 32 layers of 4096.
        """
        layers = max(1, round((parameters / (12 * 128**2)) ** (1 / 3)))
        hidden = 128 * layers
        inner = round(8 / 3 * hidden)
        return cls(parameters, layers, hidden, inner, 32_000, hidden, hidden, exact=False)

    def adapter_parameters(self, rank: int) -> int:
        """Numbers in a LoRA adapter on all linear layers but the head: r · (in + out) each."""
        h, a, k, i = self.hidden, self.attention, self.keys, self.inner
        return rank * self.layers * (2 * (h + a) + 2 * (h + k) + 3 * (h + i))


def _number(config: Mapping[str, Any], *names: str) -> int | None:
    for name in names:
        value = config.get(name)
        if type(value) is int and 0 < value <= _MAX_NUMBER:
            return value
    return None


def throughput_on(
    gpu: GPU, shape: ModelShape, *, rank: int, sft_rank: int, width: int
) -> Throughput:
    """How fast a GPU would be; see the module's head for what is assumed.

    Args:
        gpu: The GPU.
        shape: The base model's.
        rank: Of the trials' adapters.
        sft_rank: Of the generator's adapter.
        width: Self-edits that are written at a time.
    """
    peak, band = gpu.peak_tflops * 1e12, gpu.bandwidth_gb_s * 1e9
    base, small, large = (
        shape.parameters,
        shape.adapter_parameters(rank),
        shape.adapter_parameters(sft_rank),
    )
    reached = SHARE_OF_PEAK.times(peak)

    def step(share: float, read: float, launch: float) -> float:
        """Seconds in which each text in flight gets a token."""
        products = width * 2 * (base + large) / (share * peak)
        weights = HALF_BYTES * (base + large) / (read * band)
        return max(products, weights, launch * shape.layers)

    peaks, bands, layer = SHARE_OF_PEAK, SHARE_OF_BANDWIDTH, LAYER_SECONDS
    return Throughput(
        write=Span(
            width / step(peaks.low, bands.low, layer.high),
            width / step(peaks.middle, bands.middle, layer.middle),
            width / step(peaks.high, bands.high, layer.low),
        ),
        train=reached.times(1 / (4 * base + 6 * small)),
        score=reached.times(1 / (2 * (base + small))),
        fit=reached.times(1 / (4 * base + 6 * large)),
        read=reached.times(1 / (2 * (base + large))),
        source=(
            f"{gpu.name}: {gpu.source}; assumed that {100 * peaks.low:.0f} to "
            f"{100 * peaks.high:.0f} % of its peak is reached, not measured"
        ),
    )


def trial_memory(
    shape: ModelShape,
    *,
    rank: int,
    number_bytes: int,
    on_gpu: bool,
    available_bytes: int = 0,
) -> Memory:
    """Memory while trials are trained, by the formula of `backends.trials.bank_memory`.

    Args:
        shape: The base model's.
        rank: Of the trials' adapters.
        number_bytes: Of a number of the weights and activations.
        on_gpu: Whether as many are trained at a time as on a GPU.
        available_bytes: What the device has for all of it; passes are halved and fewer are
            trained at a time where it would not do, as the bank does. 0: not known.
    """
    trainings, tokens = (
        (GPU_TRAININGS, GPU_PASS_TOKENS) if on_gpu else (CPU_TRAININGS, CPU_PASS_TOKENS)
    )
    adapter = shape.adapter_parameters(rank)
    model, training = number_bytes * shape.parameters, 3 * EXACT_BYTES * adapter
    member = (EXACT_BYTES + number_bytes) * adapter
    kept = shape.layers * (18 * shape.hidden + 5 * shape.inner) * number_bytes
    logits = 2 * 4 * shape.vocabulary * _LOGIT_TOKENS // CPU_PASS_TOKENS
    if available_bytes:
        room = MEMORY_SHARE * (available_bytes - model)
        while tokens > LEAST_PASS_TOKENS and tokens * (kept + logits) + training + member > room:
            tokens //= 2
        left = room - tokens * (kept + logits)
        trainings = max(1, min(trainings, int(left // (training + member))))
    a_pass = tokens * (kept + logits) + trainings * member
    return Memory(model, trainings, training, a_pass, tokens, available_bytes)

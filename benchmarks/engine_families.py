"""One network of every family of timm, and 25 architectures of transformers, compiled: equal to eager, and how fast?

    python benchmarks/engine_families.py --output engine_families.json --seconds 300 --gigabytes 12

Each network (untrained, small) runs in a separate process with limits of time and memory. What is found is added to the
file, and networks that are in it are left out: an interrupted command resumes; `--again` measures what was
not equal once more. Every network is compiled without a mask and with a random one that keeps a tenth of the weights.
Outputs are compared with eager torch's in float32, relative to the largest; times are median processor
seconds of alternating calls on one thread. Networks this small spend much of eager's time on call overhead.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from structure_families import FAMILIES, exit_code, prepare, swept

EXACT = 1e-4
"""Largest difference to eager torch, relative to the largest output."""

MAGNIFIED = 3
"""How often eager torch's own distance to float64 a network may be from it: HaloNet, untrained, magnifies rounding to a
tenth of its outputs, in eager torch too."""

SLOWER = 1.05
"""Times of eager torch's from which a network counts as slower."""

_DECODER = {
    "vocab_size": 100,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": 64,
    "use_cache": False,
}
_GROUPED = {**_DECODER, "num_key_value_heads": 2}
_ENCODER = {key: value for key, value in _DECODER.items() if key != "use_cache"}
_GPT = {"vocab_size": 100, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64, "use_cache": False}
_T5 = {"vocab_size": 100, "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4}
_SEEN = {**_ENCODER, "image_size": 64, "patch_size": 8}

TRANSFORMERS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", _GROUPED),
    "mistral": ("MistralForCausalLM", {**_GROUPED, "sliding_window": 8}),
    "qwen2": ("Qwen2ForCausalLM", _GROUPED),
    "qwen3": ("Qwen3ForCausalLM", {**_GROUPED, "head_dim": 16}),
    "gemma": ("GemmaForCausalLM", {**_GROUPED, "head_dim": 16}),
    "gemma2": ("Gemma2ForCausalLM", {**_GROUPED, "head_dim": 16}),
    "phi": ("PhiForCausalLM", _DECODER),
    "gpt2": ("GPT2LMHeadModel", _GPT),
    "gptj": ("GPTJForCausalLM", {**_GPT, "rotary_dim": 8}),
    "gpt_neox": ("GPTNeoXForCausalLM", _DECODER),
    "opt": ("OPTForCausalLM", {**_DECODER, "ffn_dim": 128, "word_embed_proj_dim": 64}),
    "bloom": (
        "BloomForCausalLM",
        {"vocab_size": 100, "hidden_size": 64, "n_layer": 2, "n_head": 4, "use_cache": False},
    ),
    "falcon": ("FalconForCausalLM", {**_DECODER, "new_decoder_architecture": False}),
    "mamba": ("MambaForCausalLM", {**_DECODER, "state_size": 8}),
    "t5": ("T5ForConditionalGeneration", {**_T5, "use_cache": False}),
    "t5 encoder": ("T5EncoderModel", _T5),
    "bart": (
        "BartForConditionalGeneration",
        {
            "vocab_size": 100,
            "d_model": 64,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "use_cache": False,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 128,
            "decoder_ffn_dim": 128,
            "max_position_embeddings": 64,
        },
    ),
    "bert": ("BertModel", _ENCODER),
    "roberta": ("RobertaModel", _ENCODER),
    "electra": ("ElectraModel", {**_ENCODER, "embedding_size": 64}),
    "albert": ("AlbertModel", {**_ENCODER, "embedding_size": 32}),
    "distilbert": ("DistilBertModel", {"vocab_size": 100, "dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 128}),
    "deberta v2": ("DebertaV2Model", {**_ENCODER, "type_vocab_size": 0}),
    "vit": ("ViTModel", _SEEN),
    "clip vision": ("CLIPVisionModel", _SEEN),
}
"""Architecture -> its class, and the settings of its configuration."""

TOKENS = 24


# -- one network, in a separate process --------------------------------------------------------------------------------


def build_network(name: str) -> tuple[Any, Any]:
    """The network in evaluation mode and two examples for it."""
    import torch

    if name.startswith("transformers:"):
        import transformers

        kind, settings = TRANSFORMERS[name.partition(":")[2]]
        model_class = getattr(transformers, kind)
        model = model_class(model_class.config_class(**settings, pad_token_id=0, bos_token_id=1, eos_token_id=2))
        if "image_size" in settings:
            return model.eval(), {"pixel_values": torch.randn(2, 3, settings["image_size"], settings["image_size"])}
        inputs = {"input_ids": torch.randint(3, 100, (2, TOKENS))}
        if "ConditionalGeneration" in kind:
            inputs["decoder_input_ids"] = torch.randint(3, 100, (2, TOKENS // 2))
        return model.eval(), inputs
    from tasks.models.library_support import import_or_skip

    network, size, options = FAMILIES[name.partition(":")[2]]
    model = import_or_skip("timm").create_model(network, pretrained=False, num_classes=7, **options)
    return model.eval(), torch.randn(2, 3, size, size)


def measured(name: str) -> dict[str, Any]:
    """Return the result for one network."""
    import torch

    from engine.families import shake

    torch.manual_seed(0)
    model, inputs = build_network(name)
    model = stirred(shake(model))
    found: dict[str, Any] = {"parameters": sum(parameter.numel() for parameter in model.parameters())}
    for density in (1.0, 0.1):
        one = found[f"density {density:g}"] = compiled(model, inputs, density)
        if "error" in one:
            return {**found, "outcome": one["outcome"], "error": one["error"]}
    parts = [found[f"density {density:g}"] for density in (1.0, 0.1)]
    return {**found, "outcome": "equal" if all(map(equal, parts)) else "different"}


def equal(part: dict[str, Any]) -> bool:
    """Whether outputs are eager torch's; or, of a network that magnifies rounding, as near to float64's as those."""
    return part["apart"] <= EXACT or part["apart from float64"] <= MAGNIFIED * part["eager apart from float64"]


def stirred(model: Any) -> Any:
    """The network with numbers in weights that begin as zeros: a head of zeros makes every output equal."""
    import torch

    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        if not bool(parameter.any()):
            parameter.data.normal_(0, 0.02, generator=generator)
    return model


def compiled(model: Any, inputs: Any, density: float) -> dict[str, Any]:
    """How the network compares with itself in eager torch, of the weights that a random mask keeps."""
    import torch

    from ticketry.core.mask import Mask
    from ticketry.core.scope import scope
    from ticketry.errors import TicketryError
    from ticketry_engine.capture import capture
    from ticketry_engine.compiled import Compiled

    generator = torch.Generator().manual_seed(1)
    shapes = scope(model).shapes
    mask = Mask({name: torch.rand(shape, generator=generator) < density for name, shape in shapes.items()})
    mask.apply_(model)
    to_exact: dict[str, float] = {}
    try:
        began = time.perf_counter()
        fast = Compiled(capture(model, None, inputs), threads=1)
        seconds = time.perf_counter() - began
        call = (lambda function: function(**inputs)) if isinstance(inputs, dict) else lambda function: function(inputs)
        with torch.no_grad():
            apart = difference(call(fast), call(model))
            times = in_turns([lambda: call(fast), lambda: call(model)])
    except TicketryError as error:
        return {"outcome": "refused", "error": f"{type(error).__name__}: {error}"[:600]}
    if apart > EXACT:
        with torch.no_grad():
            exact, double = copy.deepcopy(model).double(), doubled(inputs)
            wanted = exact(**double) if isinstance(double, dict) else exact(double)
            to_exact = {
                "apart from float64": difference(call(fast), wanted, across=True),
                "eager apart from float64": difference(call(model), wanted, across=True),
            }
    layers = fast.layers()
    torch_layers = [layer for layer in layers if layer.where == "torch"]
    return {
        "apart": apart,
        **to_exact,
        "layers": len(layers),
        "in torch": len(torch_layers),
        "operations in torch": dict(Counter(layer.kind for layer in torch_layers).most_common(12)),
        "regions": len(fast._natives),
        "seconds to compile": round(seconds, 2),
        "milliseconds": [round(1e3 * each, 3) for each in times],
        "times as fast": round(times[1] / times[0], 3),
        "fixed batch": list(fast.graph.notes),
    }


def doubled(inputs: Any) -> Any:
    """The inputs, their numbers of float32 in float64."""
    if isinstance(inputs, dict):
        return {name: doubled(value) for name, value in inputs.items()}
    return inputs.double() if inputs.is_floating_point() else inputs


def difference(found: Any, wanted: Any, across: bool = False) -> float:
    """The largest difference of any output, relative to the largest number of that output.

    across: compare outputs of different data types too.
    """
    import torch
    from torch.utils._pytree import tree_flatten

    pairs = [
        [
            leaf
            for leaf in tree_flatten(dict(each) if isinstance(each, dict) else each)[0]
            if isinstance(leaf, torch.Tensor)
        ]
        for each in (found, wanted)
    ]
    found_apart = [
        _difference(made.to(right.dtype) if across else made, right) for made, right in zip(*pairs, strict=True)
    ]
    return max(found_apart, default=float("inf"))


def _difference(made: Any, right: Any) -> float:
    """Return the difference of one output; infinite if only one is a number, or if nothing can be compared."""
    import torch

    if made.shape != right.shape or made.dtype != right.dtype:
        return float("inf")
    if not made.is_floating_point():
        return 0.0 if torch.equal(made, right) else float("inf")
    finite = right.isfinite()
    if not bool(right[finite].any()) or not torch.equal(finite, made.isfinite()):
        return float("inf")
    return float((made - right)[finite].abs().max()) / max(float(right[finite].abs().max()), 1e-30)


def in_turns(functions: list[Callable[[], Any]], rounds: int = 9, most: float = 20.0) -> list[float]:
    """Return the median seconds of each function over alternating calls, after one warm-up call.

    Seconds of the processor: by the clock a process that others crowd out is a hundred times as fast, or as slow. And
    of this thread, which is the only one that computes: a process whose time is limited (`RLIMIT_CPU`) reads its own
    in steps of 10 ms.
    """
    samples: list[list[float]] = [[] for _ in functions]
    end = time.perf_counter() + most
    for turn in range(rounds + 1):
        for function, several in zip(functions, samples, strict=True):
            began = time.thread_time()
            function()
            if turn:
                several.append(time.thread_time() - began)
        if turn >= 3 and time.perf_counter() > end:
            break
    return [statistics.median(several) for several in samples]


# -- all of them -------------------------------------------------------------------------------------------------------


def main() -> int:
    names = [*(f"transformers:{name}" for name in TRANSFORMERS), *(f"timm:{name}" for name in FAMILIES)]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("engine_families.json"))
    parser.add_argument("--only", nargs="*", default=names, metavar="NAME", help="timm:FAMILY or transformers:NAME")
    parser.add_argument("--again", action="store_true", help="what was not equal is measured once more")
    parser.add_argument("--seconds", type=int, default=300, help="for one network")
    parser.add_argument("--gigabytes", type=int, default=12, help="of addresses for one network")
    parser.add_argument("--one", choices=names, metavar="NAME", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    prepare_engine(arguments.only)
    if arguments.one:
        print(json.dumps(measured(arguments.one)))
        return 0
    found = swept(measured, arguments.only, arguments)
    tell(found)
    return exit_code(found)


def prepare_engine(names: Sequence[str]) -> None:
    """Call `prepare`, and import what torch.export and the compiler need by compiling a small network."""
    prepare()
    import torch

    import ticketry as tk

    if any(name.startswith("transformers:") for name in names):
        import_module("transformers.models.llama.modeling_llama")  # most of the library comes with it
    tk.compile(torch.nn.Linear(16, 16).eval(), None, torch.randn(2, 16))


def tell(found: dict[str, Any]) -> None:
    """Counts of outcomes, and the networks that are slower than eager torch."""
    print(dict(Counter(one["outcome"] for one in found.values())))
    parts = {
        (name, density): one[density]
        for name, one in found.items()
        for density in ("density 1", "density 0.1")
        if one["outcome"] == "equal"
    }
    exact = {key: part["apart"] for key, part in parts.items() if part["apart"] <= EXACT}
    print(f"at most {max(exact.values(), default=0):.1e} of eager torch's; as far from float64 as those:")
    print({key: part["apart"] for key, part in parts.items() if part["apart"] > EXACT})
    print(
        "layers in torch:",
        sum(part["in torch"] for part in parts.values()),
        "of",
        sum(part["layers"] for part in parts.values()),
    )
    for density in ("density 1", "density 0.1"):
        rows = {name: one[density]["times as fast"] for name, one in found.items() if one["outcome"] == "equal"}
        slow = {name: ratio for name, ratio in rows.items() if ratio < 1 / SLOWER}
        print(f"{density}: {len(slow)} of {len(rows)} are slower than eager by more than 5 %: {slow}")


if __name__ == "__main__":
    sys.exit(main())

"""Half of the channels of one network of every family of timm: is the smaller network the masked one, gradients too?

    python benchmarks/structure_families.py --output families.json --seconds 600 --gigabytes 12

Each network (its family's smallest, untrained, narrower where an option makes it so) runs in a separate process with
limits of time and memory. What is found is added to the file, and families that are in it are left out: an interrupted
command resumes; `--again` measures what was not equal once more. Compared in float64, in evaluation mode
and in training mode: outputs, and the gradient of every parameter.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

HERE = Path(__file__).resolve().parent

EXACT = 1e-9
"""Largest difference in float64, relative to the largest of the outputs, or of a parameter's gradient."""

EXAMPLES = 8
"""That are compared: norms over the two that channels are followed with magnify rounding a million times."""

SHALLOW: dict[str, Any] = {"depth": 2, "embed_dim": 192, "num_heads": 3}

FAMILIES: dict[str, tuple[str, int, dict[str, Any]]] = {
    "beit": ("beit_base_patch16_224", 64, {"img_size": 64, **SHALLOW}),
    "byoanet": ("halonet_h1", 256, {}),
    "byobnet": ("mobileone_s1", 64, {}),
    "cait": ("cait_xxs24_224", 64, {"img_size": 64}),
    "coat": ("coat_tiny", 64, {"img_size": 64}),
    "convit": ("convit_tiny", 64, {"img_size": 64}),
    "convmixer": ("convmixer_768_32", 64, {}),
    "convnext": ("convnext_zepto_rms", 64, {}),
    "cpubone": ("cpubone_nano", 64, {}),
    "crossvit": ("crossvit_tiny_240", 240, {}),
    "csatv2": ("csatv2", 64, {}),
    "cspnet": ("cs3darknet_focus_s", 64, {}),
    "cspnext": ("cspnext_tiny", 64, {}),
    "davit": ("davit_tiny", 64, {}),
    "deepseek_vit": ("deepseek_vit_412m", 224, SHALLOW),
    "deit": ("deit_tiny_distilled_patch16_224", 64, {"img_size": 64}),
    "densenet": ("densenet121", 64, {}),
    "dla": ("dla46x_c", 64, {}),
    "dpn": ("dpn48b", 64, {}),
    "edgenext": ("edgenext_xx_small", 64, {}),
    "efficientformer": ("efficientformer_l1", 224, {}),
    "efficientformer_v2": ("efficientformerv2_s0", 64, {"img_size": 64}),
    "efficientnet": ("efficientnet_b0", 64, {}),
    "efficientvim": ("efficientvim_m1", 64, {}),
    "efficientvit_mit": ("efficientvit_b0", 64, {}),
    "efficientvit_msra": ("efficientvit_m0", 64, {}),
    "eva": ("vit_tiny_patch16_dinov3_qkvb", 64, {"img_size": 64}),
    "fasternet": ("fasternet_t0", 64, {}),
    "fastvit": ("fastvit_t8", 64, {}),
    "focalnet": ("focalnet_tiny_srf", 64, {}),
    "gcvit": ("gcvit_xxtiny", 64, {"img_size": 64}),
    "gemma4_vit": ("gemma4_vit_167m_enc", 96, {"depth": 2}),
    "ghostnet": ("ghostnet_050", 64, {}),
    "hardcorenas": ("hardcorenas_b", 64, {}),
    "hgnet": ("hgnetv2_b0", 64, {}),
    "hiera": ("hiera_tiny_224", 64, {"img_size": 64}),
    "hieradet_sam2": ("sam2_hiera_tiny", 64, {}),
    "hrnet": ("hrnet_w18_small", 64, {}),
    "iformer": ("iformer_t", 64, {}),
    "inception_next": ("inception_next_atto", 64, {}),
    "inception_resnet_v2": ("inception_resnet_v2", 96, {}),
    "inception_v3": ("inception_v3", 96, {}),
    "inception_v4": ("inception_v4", 96, {}),
    "lcnetv2": ("lcnetv2_small", 64, {}),
    "levit": ("levit_128s", 64, {"img_size": 64}),
    "lowformer": ("lowformer_b0", 64, {}),
    "mambaout": ("mambaout_femto", 64, {}),
    "maxxvit": ("maxvit_pico_rw_256", 64, {"img_size": 64}),
    "metaformer": ("poolformerv2_s12", 64, {}),
    "mlp_mixer": ("gmlp_ti16_224", 64, {"img_size": 64}),
    "mobilenetv3": ("lcnet_035", 64, {}),
    "mobilenetv5": ("mobilenetv5_base", 64, {}),
    "mobilevit": ("mobilevit_xxs", 64, {}),
    "mvitv2": ("mvitv2_tiny", 64, {"img_size": 64}),
    "naflexvit": ("naflexvit_so150m2_patch16_reg1_gap", 64, SHALLOW),
    "nasnet": ("nasnetalarge", 64, {"num_features": 1152, "stem_size": 48}),
    "nest": ("nest_tiny", 64, {"img_size": 64}),
    "nextvit": ("nextvit_small", 64, {}),
    "nfnet": ("nf_regnet_b0", 64, {}),
    "pit": ("pit_ti_224", 64, {"img_size": 64}),
    "pnasnet": ("pnasnet5large", 96, {}),
    "pvt_v2": ("pvt_v2_b0", 64, {}),
    "qwen3_vit": ("qwen3_vit_88m", 64, {"depth": 2}),
    "rdnet": ("rdnet_tiny", 64, {}),
    "regnet": ("regnety_002", 64, {}),
    "repghost": ("repghostnet_050", 64, {}),
    "repvit": ("repvit_m1", 64, {}),
    "res2net": ("res2net50_14w_8s", 64, {}),
    "resnest": ("resnest14d", 64, {}),
    "resnet": ("resnet10t", 64, {}),
    "resnetv2": ("resnetv2_18", 64, {}),
    "rexnet": ("rexnet_100", 64, {}),
    "selecsls": ("selecsls42", 64, {}),
    "senet": ("legacy_seresnext26_32x4d", 64, {}),
    "sequencer": ("sequencer2d_s", 64, {}),
    "shvit": ("shvit_s1", 64, {}),
    "sknet": ("skresnet18", 64, {}),
    "starnet": ("starnet_s050", 64, {}),
    "swiftformer": ("swiftformer_xs", 64, {}),
    "swin_transformer": ("swin_tiny_patch4_window7_224", 64, {"img_size": 64}),
    "swin_transformer_v2": ("swinv2_tiny_window8_256", 64, {"img_size": 64}),
    "swin_transformer_v2_cr": ("swinv2_cr_tiny_224", 64, {"img_size": 64}),
    "tiny_vit": ("tiny_vit_5m_224", 64, {}),
    "tnt": ("tnt_s_patch16_224", 64, {"img_size": 64}),
    "tresnet": ("tresnet_m", 64, {}),
    "twins": ("twins_svt_small", 64, {}),
    "vgg": ("vgg11_bn", 32, {"mlp_ratio": 0.125}),
    "visformer": ("visformer_tiny", 64, {"img_size": 64}),
    "vision_transformer": ("vit_tiny_patch16_224", 64, {"img_size": 64}),
    "vision_transformer_hybrid": ("vit_tiny_r_s16_p8_224", 64, {"img_size": 64}),
    "vision_transformer_relpos": ("vit_srelpos_small_patch16_224", 64, {"img_size": 64}),
    "vision_transformer_sam": ("samvit_base_patch16_224", 64, {"img_size": 64, **SHALLOW}),
    "vitamin": ("vitamin_small_224", 64, {"img_size": 64}),
    "volo": ("volo_d1_224", 64, {"img_size": 64}),
    "vovnet": ("ese_vovnet19b_slim_dw", 64, {}),
    "xception": ("legacy_xception", 96, {}),
    "xception_aligned": ("xception41p", 64, {}),
    "xcit": ("xcit_nano_12_p8_224", 64, {}),
}
"""Family -> its network, the size of its images, and options of its making."""


# -- one network, in a separate process --------------------------------------------------------------------------------


def measured(family: str) -> dict[str, Any]:
    """Return the result for one network."""
    import torch

    import ticketry as tk
    from halving import difference, gradients_apart, halved
    from public_models import settled
    from tasks.models.library_support import import_or_skip
    from ticketry.core.structure.removal_trial import tried_structure
    from ticketry.core.structure.smaller_model import plan_for_structure
    from ticketry.errors import TicketryError

    name, size, options = FAMILIES[family]
    torch.manual_seed(0)
    model = settled(import_or_skip("timm").create_model(name, pretrained=False, num_classes=7, **options))
    many = torch.randn(EXAMPLES, 3, size, size, generator=torch.Generator().manual_seed(5))
    x = many[:2]
    total = sum(parameter.numel() for parameter in model.parameters())
    found: dict[str, Any] = {"network": name, "parameters": total}
    began = time.process_time()
    try:
        structure = tried_structure(model, x)
        found["seconds"] = round(time.process_time() - began, 1)
        free = [group for group in structure.groups if group.prunable]
        found |= {"groups": len(structure.groups), "groups that can go": len(free)}
        found["channels"] = sum(group.size for group in free)
        found["stays"] = dict(Counter(group.reason.partition(" (in ")[0] for group in structure.groups if group.reason))
        mask = halved(model, structure)
        plan = plan_for_structure(model, mask, x, structure)
    except TicketryError as error:
        return {**found, "outcome": "refused", "error": f"{type(error).__name__}: {error}"}
    small = tk.structure.rebuild(model, plan)
    found["share left"] = sum(parameter.numel() for parameter in small.parameters()) / total
    for training in (False, True):
        mode = "training" if training else "evaluation"
        found[f"outputs, {mode}"] = difference(model, small, mask, many, training=training)
        found[f"gradients, {mode}"], found[f"furthest, {mode}"] = gradients_apart(
            model, small, mask, plan, many, training=training
        )
    numbers = [value for key, value in found.items() if key.startswith(("outputs", "gradients"))]
    return {**found, "outcome": "equal" if all(number <= EXACT for number in numbers) else "different"}


# -- all of them -------------------------------------------------------------------------------------------------------


def in_a_process(measure: Callable[[str], dict[str, Any]], name: str, seconds: int, gigabytes: int) -> dict[str, Any]:
    """Call `measure` in a fork of this process; return its result, or how the fork ended.

    A fork has what this process imported: a process begun anew would take longer to import than most networks take.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        _run_fork(measure, name, seconds, gigabytes, writing)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status in (-signal.SIGXCPU, -signal.SIGKILL):
        return {"outcome": "too long", "error": f"more than {seconds} s of a processor, or killed for memory"}
    if status:
        return {"outcome": "failed", "error": f"ended by signal {-status}" if status < 0 else text[-2000:]}
    return dict(json.loads(text))


def _run_fork(
    measure: Callable[[str], dict[str, Any]], name: str, seconds: int, gigabytes: int, writing: int
) -> NoReturn:
    """The fork's life: limited, what it found written into the pipe, ended without what its parent does at its end."""
    resource.setrlimit(resource.RLIMIT_AS, (gigabytes << 30, gigabytes << 30))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    with os.fdopen(writing, "w") as pipe:
        try:
            pipe.write(json.dumps(measure(name)))
            status = 0
        except BaseException:  # report any end of the fork
            pipe.write(traceback.format_exc())
            status = 1
    os._exit(status)


def swept(
    measure: Callable[[str], dict[str, Any]], names: Sequence[str], arguments: argparse.Namespace
) -> dict[str, Any]:
    """Return the results of all networks; measure those that the file lacks, and add them to it."""
    found: dict[str, Any] = json.loads(arguments.output.read_text()) if arguments.output.exists() else {}
    for name in names:
        if name in found and not (arguments.again and found[name]["outcome"] != "equal"):
            continue
        found[name] = in_a_process(measure, name, arguments.seconds, arguments.gigabytes)
        arguments.output.write_text(json.dumps(found, indent=1) + "\n")
        print(name, found[name]["outcome"], found[name].get("error", "")[-300:], flush=True)
    return found


def exit_code(found: dict[str, Any]) -> int:
    """0 if each network was equal or refused with a reason."""
    return 0 if all(one["outcome"] in ("equal", "refused") for one in found.values()) else 1


def prepare() -> None:
    """Import once, before forking, what all networks need."""
    sys.path[:1] = [str(HERE.parent / "tests")]  # not this folder
    import torch

    from tasks.models.library_support import import_or_skip

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    import_or_skip("timm")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("families.json"))
    parser.add_argument("--only", nargs="*", choices=[*FAMILIES], default=[*FAMILIES], metavar="FAMILY")
    parser.add_argument("--again", action="store_true", help="what was not equal is measured once more")
    parser.add_argument("--seconds", type=int, default=600, help="of a processor, for one network")
    parser.add_argument("--gigabytes", type=int, default=12, help="of addresses for one network")
    parser.add_argument("--one", choices=[*FAMILIES], metavar="FAMILY", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    prepare()
    if arguments.one:
        print(json.dumps(measured(arguments.one)))
        return 0
    found = swept(measured, arguments.only, arguments)
    print(dict(Counter(one["outcome"] for one in found.values())))
    return exit_code(found)


if __name__ == "__main__":
    sys.exit(main())

"""ticketry doctor: check what this machine and environment have, and say what each finding means for speed."""

from __future__ import annotations

import dataclasses
import json
import textwrap
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ticketry.cli.arguments import parse
from ticketry.cli.store import format_megabytes
from ticketry_engine import processor

_DESCRIPTION = """\
What this machine and this environment have, and what each means for speed: processor, threads, precision, packages of
the extras, caches, data sets, a GPU. Nothing is downloaded, timed or written.

examples:
  ticketry doctor
  ticketry doctor --data /data --json"""

EXTRAS = {
    "lab": (("matplotlib", "pillow", "pooch", "scipy"), "searches, verdicts, reports, images and downloads of data"),
    "engine": (("llvmlite",), "compile, bench and sparse training in kernels of this processor"),
    "gpu": (("triton",), "kernels of GPUs"),
    "digits": (("scikit-learn",), "the task digits"),
    "timm": (("timm",), "networks of timm"),
    "torchvision": (("torchvision",), "networks of torchvision"),
    "transformers": (("transformers", "accelerate"), "networks of Hugging Face's transformers, and its Trainer"),
    "lightning": (("lightning",), "callbacks of Lightning"),
    "text": (("tokenizers",), "texts with a tokenizer of their own"),
    "onnx": (("onnx", "onnxscript", "onnxruntime"), "export to ONNX, and ONNX Runtime to compare with"),
    "openvino": (("openvino",), "OpenVINO to compare with"),
    "hypergraph": (("mtkahypar",), "structure regroup --method hypergraph"),
    "control": (("gymnasium",), "tasks of Gymnasium"),
    "ray": (("ray",), "training on Ray (--on ray)"),
    "dask": (("distributed",), "training on Dask (--on dask:ADDRESS)"),
    "slurm": (("submitit",), "training on Slurm (--on slurm:partition=NAME)"),
    "energy": (("codecarbon", "nvidia-ml-py"), "energy where the machine has no meter"),
    "pandas": (("pandas",), "tables of pandas"),
    "cloud": (("obstore",), "stores in buckets"),
    "trackio": (("trackio",), "logging to Trackio"),
    "wandb": (("wandb",), "logging to Weights & Biases"),
    "mlflow": (("mlflow-skinny", "sqlalchemy", "alembic"), "logging to MLflow"),
    "tensorboard": (("tensorboard",), "logging to TensorBoard"),
    "hub": (("huggingface_hub",), "tickets on the Hugging Face hub"),
}
"""Packages and purpose of each extra, by name; the names and packages are those in pyproject.toml."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Arguments:
    data: Path | None = None
    """Folder of data sets, searched first."""
    json: bool = False
    """Print the result as one JSON object."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """Result of one check of the machine or the installed software, with the effect on speed."""

    part: str
    found: str
    means: str
    """What the finding means for speed, or what is impossible without a missing part."""


def main(words: Sequence[str]) -> int:
    """Run `ticketry doctor`: run all checks, print their results, and return 0."""
    arguments: _Arguments = parse(_Arguments, words, prog="ticketry doctor", description=_DESCRIPTION)
    sections = {
        "machine": list(_check_machine()),
        "extras": list(_check_extras()),
        "caches": list(_check_caches()),
        "data sets": list(_check_data_sets(arguments.data)),
    }
    if arguments.json:
        rows = {name: [dataclasses.asdict(one) for one in found] for name, found in sections.items()}
        print(json.dumps({"environment": _describe_environment(), **rows}))
        return 0
    print("  ".join(f"{name} {found}" for name, found in _describe_environment().items()))
    for name, findings in sections.items():
        print(f"\n{name}")
        for one in findings:
            print(f"  {one.part:<16} {one.found}")
            if one.means:
                print(textwrap.fill(one.means, 98, initial_indent=" " * 19, subsequent_indent=" " * 19))
    return 0


def _describe_environment() -> dict[str, Any]:
    from ticketry_engine.bench.timing import machine

    found = machine()
    return {**found["versions"], "python": found["python"], "system": found["system"]}


def _check_machine() -> Iterator[Finding]:
    import torch

    from ticketry_engine.bench.timing import machine
    from ticketry_engine.processor import computes_in_bf16

    found = machine()
    yield Finding("processor", found["processor"], "")
    yield _check_vector_units(found["features"])
    yield Finding(
        "cores",
        f"{found['cores']}, load {found['load']}",
        "As many networks are trained at once, one thread each (--workers); others that compute slow them.",
    )
    bf16 = computes_in_bf16()
    yield Finding(
        "precision",
        "bfloat16 and float32" if bf16 else "float32",
        "Convolutional networks train in bfloat16 by default, in about half the time a step (else --precision fp32)."
        if bf16
        else "It does not multiply in bfloat16, with which a step of convolutional networks takes about half.",
    )
    yield Finding("last cache", format_megabytes(found["last_cache_bytes"]), "")
    if torch.cuda.is_available():
        yield Finding("GPU", torch.cuda.get_device_name(), "Networks train there (--device cpu for the other).")
    else:
        yield Finding("GPU", "none that torch sees", "Networks train on the processor.")


def _check_vector_units(features: Sequence[str]) -> Finding:
    width, means = "none that is used here", "Kernels run without wide vectors; training stays in torch by default."
    if why := processor.why_kernels_do_not_run():
        means = f"Models run and train in torch alone: {why}."
    elif "avx512f" in features:
        width, means = "AVX-512, 16 float32", "All kernels run here; --kernels auto trains sparse networks in them."
    elif "avx2" in features:
        width = "AVX2, 8 float32"
        means = "Kernels run here; --kernels auto trains sparse networks in them, dense ones in torch."
    elif "asimd" in features:
        width = "NEON, 4 float32"
    return Finding("vectors", width, means)


def _check_extras() -> Iterator[Finding]:
    for extra, (packages, purpose) in EXTRAS.items():
        versions = {package: _installed_version(package) for package in packages}
        if missing := [package for package, found in versions.items() if not found]:
            yield Finding(extra, f"no {', '.join(missing)}", f"For {purpose}: pip install 'ticketry[{extra}]'")
        else:
            yield Finding(extra, ", ".join(f"{package} {found}" for package, found in versions.items()), "")


def _installed_version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _check_caches() -> Iterator[Finding]:
    from ticketry.files import cache_folder as data
    from ticketry.files import describe_os_error, is_folder, iterate_files, why_not_private
    from ticketry.lab.store.maintenance import count_file_bytes
    from ticketry_engine.support import files

    folders: dict[str, tuple[Callable[[], Path], str]] = {
        "data": (data, "Data sets, downloaded or prepared, and kernels: what is deleted is made or fetched again."),
        "kernels": (
            lambda: files.private_cache_folder("kernels"),
            "Of these, compiled kernels: without them a model compiles and starts slower the first time.",
        ),
    }
    for name, (folder, means) in folders.items():
        place = folder()
        try:
            size = format_megabytes(count_file_bytes(iterate_files(place))) if is_folder(place) else "not there yet"
        except OSError as error:
            size = f"not readable ({describe_os_error(error)})"
        why = why_not_private(place) if name == "kernels" else ""
        yield Finding(name, f"{size}, {place}", f"Not used, since {why}. {means}" if why else means)


def _check_data_sets(folder: Path | None) -> Iterator[Finding]:
    from ticketry.tasks.data import image_files, tables
    from ticketry.tasks.data.locate import find_files, places
    from ticketry.tasks.language import corpus

    collections = {
        "mnist": image_files.MNIST.collection(),
        "fashion-mnist": image_files.FASHION_MNIST.collection(),
        "cifar10": image_files.CIFAR10.collection(),
        "cifar100": image_files.CIFAR100.collection(),
        "tiny-imagenet": image_files.WHOLE.collection(),
        "tiny-imagenet-20": image_files.TWENTY.collection(),
        **{name: corpus.collection(name) for name in ("ptb", "wikitext-2")},
        **{f"uci-{name}": published.collection() for name, published in tables.PUBLISHED.items()},
    }
    where = places(folder)
    for name, collection in collections.items():
        files = find_files(collection, where)
        absent = "not found; downloaded when it is needed" if collection.origins else "not found, and has no download"
        yield Finding(name, str(files[0].parent) if files else absent, "")

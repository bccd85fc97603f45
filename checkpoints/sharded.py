"""The sharded format of a checkpoint: a folder that all processes write and read, each its own part.

    out_dir/last.pt/.metadata         where each part of each tensor is: torch.distributed.checkpoint's index
    out_dir/last.pt/__0_0.distcp, …   the parts, one file for each process
    out_dir/last.pt/state.pt          all that is no tensor

For models whose state is too large for one host's memory (--checkpoint_format=sharded). The folder has a file's
name and is used like one: checkpoint.load puts the tensors together, for sample.py, say, and any number of
processes can go on from it. What is unpickled from it can hold no code.
"""

import io
import pickle
import warnings
import zipfile
import zlib
from pathlib import Path, PurePosixPath

import torch

from checkpoints.file import read, write
from checkpoints.publish import beside, not_written, remove
from checkpoints.publish import publish as publish_files
from checkpoints.saver import Saver
from system.distributed import Ranks

INDEX, REST = ".metadata", "state.pt"


def save(state: dict, paths: list[Path], saver: Saver | None, ranks: Ranks) -> None:
    """Writes `state`, as checkpoint.save does, to folders; every rank must call it. It returns when all is done.

    state: as in a file, but with this rank's shards (DTensors), and Parameters rather than copies of them, so
    that tied ones are known by their identity. Raises ValueError on all ranks if a file cannot be written."""
    import torch.distributed.checkpoint as dcp  # here and below: a second that most runs need not spend

    temporary = beside(paths[0], "tmp")
    tensors, rest = flatten(state)

    def prepare() -> None:
        saver.wait()
        saver.before()
        remove(temporary)

    def publish() -> None:
        try:
            rest["index_crc32"] = zlib.crc32((temporary / INDEX).read_bytes())
            write(temporary / REST, rest)
            publish_files(temporary, paths, saver.keep_of(paths))
        except (OSError, RuntimeError) as error:
            raise ValueError(not_written(paths[0], error)) from error

    ranks.on_main(prepare)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that there is but one process
            writer = dcp.FileSystemWriter(temporary)  # fsyncs its files
            dcp.save(tensors, storage_writer=writer, no_dist=ranks.world_size == 1)
    except dcp.api.CheckpointException as error:
        raise ValueError(not_written(paths[0], next(iter(error.failures.values()))[0])) from None
    ranks.on_main(publish)


def flatten(state: dict) -> tuple[dict[str, torch.Tensor], dict]:
    """Tensors by names as model.transformer.wte.weight and optimizer.0.exp_avg; and the rest, in which "model"
    says which names stand for the tensor of another."""
    tensors, names, aliases = {}, {}, {}
    for name, tensor in state["model"].items():
        if names.setdefault(id(tensor), name) == name:
            tensors[f"model.{name}"] = tensor
        else:
            aliases[name] = names[id(tensor)]
    for number, slot in state["optimizer"]["state"].items():
        tensors |= {f"optimizer.{number}.{key}": value for key, value in slot.items()}
    return tensors, {**state, "model": aliases, "optimizer": {**state["optimizer"], "state": {}}}


def load(path: Path, verify: bool = False, meta: bool = False) -> dict:
    """The checkpoint in folder `path` as that in a file: whole tensors on the CPU, or on the meta device, which
    costs nothing. verify: compare every part with its checksum. Raises an exception of any kind if it is damaged."""
    try:
        rest = read(path / REST, verify)
        index = read_index(path, rest["index_crc32"])
        if verify:
            compare_checksums(path, index)
    except FileNotFoundError as error:  # which of a file means that there is none at all
        raise RuntimeError(f"{Path(error.filename).name} is missing") from error
    tensors = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype, device="meta" if meta else "cpu")
        for name, entry in index.state_dict_metadata.items()
    }
    if not meta:
        read_tensors(path, tensors, index)
    model, moments = {}, {}
    for name, tensor in tensors.items():
        kind, _, name = name.partition(".")
        if kind == "model":
            model[name] = tensor
        else:
            number, _, key = name.partition(".")
            moments.setdefault(int(number), {})[key] = tensor
    model |= {name: model[other] for name, other in rest["model"].items()}
    return {**rest, "model": model, "optimizer": {**rest["optimizer"], "state": moments}}


def load_into(path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, state: dict) -> None:
    """Reads this rank's part of the weights straight into `model`, and puts that of the moments into `state`, which
    load(meta=True) returned, for load_optimizer. Every rank must call it; there is never a second copy."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    moments = {
        number: {
            key: torch.zeros_like(parameters[number].detach())
            if value.shape == parameters[number].shape
            else torch.zeros_like(value, device="cpu")
            for key, value in slot.items()
        }
        for number, slot in state["optimizer"]["state"].items()
    }
    state["optimizer"]["state"] = moments
    tensors, _ = flatten({"model": model.state_dict(keep_vars=True), "optimizer": {"state": moments}})
    read_tensors(path, tensors, read_index(path, state["index_crc32"]), no_dist=False)


def read_tensors(path: Path, tensors: dict[str, torch.Tensor], index, no_dist: bool = True) -> None:
    import torch.distributed as dist
    import torch.distributed.checkpoint as dcp

    reader = dcp.FileSystemReader(path)
    reader.read_metadata = lambda *_, **__: index  # its own would run code that is hidden there
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # that there is but one process
            dcp.load(tensors, storage_reader=reader, no_dist=no_dist or not dist.is_initialized())
    except dcp.api.CheckpointException as error:
        raise ValueError(f"checkpoint {path} is damaged: {next(iter(error.failures.values()))[0]}") from None


class IndexUnpickler(pickle.Unpickler):
    """Knows the classes of torch.distributed.checkpoint's index for tensors, and nothing that could run code."""

    CLASSES = {
        "torch.distributed.checkpoint.metadata": (
            "Metadata", "TensorStorageMetadata", "TensorProperties", "_MEM_FORMAT_ENCODING", "ChunkStorageMetadata",
            "MetadataIndex", "StorageMeta",
        ),
        "torch.distributed.checkpoint.filesystem": ("_StorageInfo",),
        "torch.serialization": ("_get_layout",),
        "torch": ("Size", "float32", "float16", "bfloat16", "int64"),
    }  # fmt: skip

    def find_class(self, module: str, name: str):
        if module.split(".")[0] == "pathlib" and name in ("PosixPath", "WindowsPath"):
            return PurePosixPath  # where it was saved: of no meaning here, nor on another system
        if name not in self.CLASSES.get(module, ()):
            raise pickle.UnpicklingError(f"{INDEX} asks for {module}.{name}")
        return super().find_class(module, name)


def read_index(path: Path, crc32: int):
    """The index as torch.distributed.checkpoint's Metadata."""
    data = (path / INDEX).read_bytes()
    if zlib.crc32(data) != crc32:
        raise ValueError(f"{path / INDEX} differs from its checksum")
    return IndexUnpickler(io.BytesIO(data)).load()


def compare_checksums(path: Path, index) -> None:
    """Raises an exception unless each part, a zip archive by itself, matches the CRC-32 in it."""
    from tqdm import tqdm

    total = sum(part.length for part in index.storage_data.values())
    with tqdm(
        total=total, desc=f"checking {path.name}", unit="B", unit_scale=True, disable=None if total > 2**31 else True
    ) as bar:
        for part in index.storage_data.values():
            with open(path / part.relative_path, "rb") as file:
                file.seek(part.offset)
                with zipfile.ZipFile(io.BytesIO(file.read(part.length))) as archive:
                    if archive.testzip() is not None:
                        raise ValueError(f"{part.relative_path} differs from its checksum")
            bar.update(part.length)

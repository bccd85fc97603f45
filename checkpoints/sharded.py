"""The sharded format: a folder that all processes write and read, each its own part.

    out_dir/last.pt/.metadata         torch.distributed.checkpoint's index: where each part of each tensor is
    out_dir/last.pt/__0_0.distcp, …   the parts, one file for each process
    out_dir/last.pt/state.pt          everything that is not a tensor

For models whose state does not fit into one host's memory (--checkpoint_format=sharded). The folder has a file's name
and is used like one; any number of processes can resume from it. Reading it cannot run code hidden there.
"""

import io
import pickle
import warnings
import zipfile
import zlib
from enum import Enum
from pathlib import Path, PurePosixPath

import torch

from checkpoints.file import progress_bar, read_archive, write_archive
from checkpoints.publish import beside, discard, publish, write_failure
from checkpoints.saver import Saver
from system.distributed import Ranks

INDEX, REST = ".metadata", "state.pt"


def save_sharded(state: dict, paths: list[Path], saver: Saver | None, ranks: Ranks) -> None:
    """Writes `state` to folders as save_checkpoint does to files, and waits; every rank must call it.

    state: with this rank's shards (DTensors), and the Parameters themselves: tied ones are recognized by identity.
    saver: rank 0's. Raises ValueError on all ranks if a file cannot be written.
    """
    import torch.distributed.checkpoint as dcp  # here and below: takes a second that most runs need not spend

    temporary = beside(paths[0], "tmp")
    tensors, rest = split_state(state)

    def prepare() -> None:
        saver.wait()
        saver.before()
        discard(temporary)

    def finish() -> None:
        try:
            rest["index_crc32"] = zlib.crc32((temporary / INDEX).read_bytes())
            write_archive(temporary / REST, rest)
            publish(temporary, paths, saver.versions_of(paths))
        except (OSError, RuntimeError) as error:
            raise write_failure(paths[0], error) from error

    ranks.on_main(prepare)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about a single process
            writer = dcp.FileSystemWriter(temporary)  # syncs its files
            dcp.save(tensors, storage_writer=writer, no_dist=ranks.world_size == 1)
    except dcp.api.CheckpointException as error:
        raise write_failure(paths[0], next(iter(error.failures.values()))[0]) from None
    ranks.on_main(finish)


def split_state(state: dict) -> tuple[dict[str, torch.Tensor], dict]:
    """Tensors named like model.lm_head.weight and optimizer.0.exp_avg; and the rest, whose "model" maps the names of
    tied weights to the stored one."""
    tensors, names, aliases = {}, {}, {}
    for name, tensor in state["model"].items():
        if names.setdefault(id(tensor), name) == name:
            tensors[f"model.{name}"] = tensor
        else:
            aliases[name] = names[id(tensor)]
    for number, slot in state["optimizer"]["state"].items():
        tensors |= {f"optimizer.{number}.{key}": value for key, value in slot.items()}
    return tensors, {**state, "model": aliases, "optimizer": {**state["optimizer"], "state": {}}}


def join_state(tensors: dict[str, torch.Tensor], rest: dict) -> dict:
    """The inverse of split_state."""
    model, moments = {}, {}
    for name, tensor in tensors.items():
        kind, _, name = name.partition(".")
        if kind == "model":
            model[name] = tensor
        else:
            number, _, key = name.partition(".")
            moments.setdefault(int(number), {})[key] = tensor
    model |= {name: model[stored] for name, stored in rest["model"].items()}
    return {**rest, "model": model, "optimizer": {**rest["optimizer"], "state": moments}}


def load_sharded(path: Path, verify: bool = False, meta: bool = False) -> dict:
    """load_checkpoint for a folder, which assembles whole tensors. Raises many kinds of exceptions."""
    try:
        rest = read_archive(path / REST, verify)
        index = read_index(path, rest["index_crc32"])
        if verify:
            verify_parts(path, index)
    except FileNotFoundError as error:  # load_checkpoint takes this type for a missing checkpoint, not a damaged one
        raise RuntimeError(f"{Path(error.filename).name} is missing") from error
    tensors = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype, device="meta" if meta else "cpu")
        for name, entry in index.state_dict_metadata.items()
    }
    if not meta:
        read_shards(path, tensors, index)
    return join_state(tensors, rest)


def load_shards(path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, state: dict) -> None:
    """Reads this rank's shards of the weights into `model` and of the moments into `state`, which is the result of
    load_checkpoint(meta=True), for load_optimizer. Every rank must call it; there is never a second copy."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for number, slot in state["optimizer"]["state"].items():
        parameter = parameters[number].detach()
        for key, value in slot.items():
            is_moment = value.shape == parameter.shape  # else a step count
            slot[key] = torch.zeros_like(parameter) if is_moment else torch.zeros_like(value, device="cpu")
    tensors, _ = split_state({"model": model.state_dict(keep_vars=True), "optimizer": state["optimizer"]})
    read_shards(path, tensors, read_index(path, state["index_crc32"]), no_dist=not torch.distributed.is_initialized())


def read_shards(path: Path, tensors: dict[str, torch.Tensor], index, no_dist: bool = True) -> None:
    """Fills `tensors` in place; with no_dist=False every rank its own."""
    import torch.distributed.checkpoint as dcp

    reader = dcp.FileSystemReader(path)
    reader.read_metadata = lambda *_, **__: index  # its own would run code hidden there
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # about a single process
            dcp.load(tensors, storage_reader=reader, no_dist=no_dist)
    except dcp.api.CheckpointException as error:
        raise ValueError(f"checkpoint {path} is damaged: {next(iter(error.failures.values()))[0]}") from None


class IndexUnpickler(pickle.Unpickler):
    """Accepts the classes of torch.distributed.checkpoint's index, none of which can run code."""

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
            return PurePosixPath  # the folder it was saved to: not needed, and on another system not a valid class
        if (module, name) == ("builtins", "getattr"):  # how Python 3.11.0 to 3.11.3 write a member of an Enum
            return member
        if name not in self.CLASSES.get(module, ()):
            raise pickle.UnpicklingError(f"{INDEX} asks for {module}.{name}")
        return super().find_class(module, name)


def member(of: type[Enum], name: str) -> Enum:
    """getattr(of, name) for an index, where only a member of an Enum may be asked for."""
    if not (isinstance(of, type) and issubclass(of, Enum) and name in of.__members__):
        raise pickle.UnpicklingError(f"{INDEX} asks for {name} of {of}")
    return of[name]


def read_index(path: Path, crc32: int):
    """The index, a torch.distributed.checkpoint.metadata.Metadata."""
    data = (path / INDEX).read_bytes()
    if zlib.crc32(data) != crc32:
        raise ValueError(f"{path / INDEX} does not match its checksum")
    return IndexUnpickler(io.BytesIO(data)).load()


def verify_parts(path: Path, index) -> None:
    """Raises an exception unless each part, a zip archive of its own, matches its CRC-32 checksums."""
    with progress_bar(path, sum(part.length for part in index.storage_data.values())) as bar:
        for part in index.storage_data.values():
            with open(path / part.relative_path, "rb") as file:
                file.seek(part.offset)
                with zipfile.ZipFile(io.BytesIO(file.read(part.length))) as archive:
                    if archive.testzip() is not None:
                        raise ValueError(f"{part.relative_path} does not match its checksum")
            bar.update(part.length)

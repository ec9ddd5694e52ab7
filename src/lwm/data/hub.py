"""Records of Hugging Face datasets, by index where they are on this disk, or as a stream.

Needs the extra `datasets`.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from lwm.core.errors import UserError
from lwm.data.records import Record

#: What marks a directory written by `datasets`' save_to_disk.
SAVED_DATASET_FILES = ("dataset_info.json", "dataset_dict.json")


class HubRows:
    """The rows of a Hugging Face dataset on this disk."""

    def __init__(self, name: str, dataset: Any) -> None:
        self.name = name
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Record:
        return Record(f"{self.name}:{index + 1}", self._dataset[index])


class HubStream:
    """A Hugging Face dataset in streaming form."""

    def __init__(self, name: str, dataset: Any) -> None:
        self.name = name
        self._dataset = dataset
        self._beginning = dataset.state_dict()
        self._rows: Iterator[dict[str, Any]] = iter(())
        self.set_state(None)

    def __iter__(self) -> Iterator[Record]:
        while True:
            try:
                yield self.read()
            except EOFError:
                return

    def read(self) -> Record:
        import datasets  # noqa: PLC0415 (an extra)

        try:
            values = next(self._rows)
        except StopIteration:
            raise EOFError(f"{self.name} has {self._count} records") from None
        except (ValueError, OSError, datasets.exceptions.DatasetsError) as error:
            raise UserError(f"{self.name}: cannot read record {self._count + 1}: {error}") from error
        self._count += 1
        self._place = None
        return Record(f"{self.name}:{self._count}", values)

    def get_state(self) -> dict:
        return {"count": self._count, "dataset": self._place or self._dataset.state_dict()}

    def set_state(self, state: dict | None) -> None:
        self._count = state["count"] if state else 0
        # Until the first record is read, the dataset's own state is that of its previous reading.
        self._place = state["dataset"] if state else self._beginning
        self._dataset.load_state_dict(self._place)
        self._rows = iter(self._dataset)


def open_dataset(path: str, split: str, subset: str | None, streaming: bool) -> Any:
    """A dataset by its name on the Hub, or one that was saved to a directory.

    Raises:
        UserError: it cannot be opened, or has no such split; or the package `datasets` is not installed.
    """
    datasets = import_datasets()
    try:
        if not is_saved_dataset(path):
            return datasets.load_dataset(path, subset, split=split, streaming=streaming)
        dataset = datasets.load_from_disk(path)
    except (ValueError, OSError, datasets.exceptions.DatasetsError) as error:
        raise UserError(f"cannot open dataset {path!r} (split {split!r}): {error}") from error
    if isinstance(dataset, dict):
        if split not in dataset:
            raise UserError(f"dataset {path} has no split {split!r}; it has {', '.join(dataset)}")
        dataset = dataset[split]
    return dataset.to_iterable_dataset() if streaming else dataset


def stream_files(builder: str, files: list[str], path: str, **options: Any) -> HubStream:
    """Local files through the library's own reader of their format. `path`: what the user named them by.

    Raises:
        UserError: they hold no records or cannot be opened; or the package `datasets` is not installed.
    """
    datasets = import_datasets()
    try:
        dataset = datasets.load_dataset(builder, data_files=files, split="train", streaming=True, **options)
    except StopIteration:  # it asks the files for a first record
        raise UserError(f"{path} holds no records") from None
    except (ValueError, OSError, datasets.exceptions.DatasetsError) as error:
        raise UserError(f"cannot open {path} as a stream: {error}") from error
    return HubStream(path, dataset)


def is_saved_dataset(path: str) -> bool:
    """Whether a directory was written by `datasets`' save_to_disk."""
    return any(os.path.isfile(Path(path) / name) for name in SAVED_DATASET_FILES)


def import_datasets() -> ModuleType:
    """The library.

    Raises:
        UserError: it is not installed; says how to.
    """
    try:
        import datasets  # noqa: PLC0415 (an extra)
    except ImportError:
        raise UserError("Hugging Face datasets need the package `datasets`: pip install 'lwm[datasets]'") from None
    return datasets

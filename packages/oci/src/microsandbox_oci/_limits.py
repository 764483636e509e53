"""Bounds on everything that an image, a registry or an archive can make large."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from pathlib import Path

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
_SIZE = re.compile(r"([0-9]{1,15})([KMGT]?)")
_UNITS = {"": 1, "K": KIB, "M": MIB, "G": GIB, "T": 1024 * GIB}
_LARGEST = (1 << 62) - 1


@dataclass(frozen=True, slots=True)
class Limits:
    """What the store accepts. Sizes are bytes.

    Attributes:
        manifest_size: a manifest or index; the cap that registries use (distribution: 4 MiB).
        config_size: an image configuration.
        index_depth: indexes within indexes.
        index_documents: indexes and manifests read to find one image.
        images_per_source: images in one archive or layout.
        layers: layers of one image.
        layer_size: one layer, uncompressed.
        layer_entries: names and inodes of one layer.
        file_size: what one file may claim; sparse files claim more than they store.
        path_length: one path or link target.
        xattrs_size: extended attributes of one entry.
        header_size: one PAX or GNU long-name record.
        metadata_size: names, targets and attributes of one layer together, as they are held in memory.
        image_entries: names and inodes of all layers of one image together.
        image_metadata_size: their names, targets and attributes, as they are held in memory.
        decompression_ratio: uncompressed per compressed byte, once ``ratio_grace`` bytes came out.
            DEFLATE reaches 1032, bombs come close to it, real layers stay below 100.
        ratio_grace: uncompressed bytes free of that rule: small layers of zeros are legitimate.
        window_log: base-2 logarithm of the largest zstd window.
        archive_size: an archive that has to be spooled, uncompressed.
        archive_entries: entries of an archive.
    """

    manifest_size: int = 4 * MIB
    config_size: int = 8 * MIB
    index_depth: int = 4
    index_documents: int = 64
    images_per_source: int = 256
    layers: int = 256
    layer_size: int = 64 * GIB
    layer_entries: int = 2_000_000
    file_size: int = 1024 * GIB
    path_length: int = 4095
    xattrs_size: int = 128 * KIB
    header_size: int = MIB
    metadata_size: int = GIB
    image_entries: int = 8_000_000
    image_metadata_size: int = 3 * GIB
    decompression_ratio: int = 200
    ratio_grace: int = 256 * MIB
    window_log: int = 27
    archive_size: int = 128 * GIB
    archive_entries: int = 100_000

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) < 1:
                raise ValueError(f"limit {field.name} must be at least 1")

    @classmethod
    def from_file(cls, path: Path) -> Limits:
        """Read limits from a TOML file; what it does not name has its default. A missing file names nothing.

        A value is a whole number, or a text with a unit: ``layer_size = "128G"``.

        Raises:
            OptionsInvalid: the file cannot be read, is no TOML, or names no limit or no value for one.
        """
        from microsandbox_oci._registry_options import OptionsInvalid, read_toml

        known = [field.name for field in fields(cls)]
        values: dict[str, int] = {}
        for name, given in read_toml(path).items():
            if name not in known:
                raise OptionsInvalid(
                    f"{path}: unknown limit {name}", hint=f"known limits: {', '.join(sorted(known))}"
                )
            value = _value(given)
            if value is None:
                raise OptionsInvalid(
                    f'{path}: {name} must be a whole number from 1, or a text such as "64G"',
                    hint="units are K, M, G and T",
                )
            values[name] = value
        return cls(**values)

    def for_merge(self) -> dict[str, int]:
        """Return the limits of one image's layers together under the names the native converter uses."""
        return {"max_entries": self.image_entries, "max_metadata": self.image_metadata_size}

    def for_converter(self) -> dict[str, int]:
        """Return the limits of one layer under the names the native converter uses."""
        return {
            "max_entries": self.layer_entries,
            "max_size": self.layer_size,
            "max_file_size": self.file_size,
            "max_ratio": self.decompression_ratio,
            "ratio_floor": self.ratio_grace,
            "max_path": self.path_length,
            "max_xattrs": self.xattrs_size,
            "max_header": self.header_size,
            "max_metadata": self.metadata_size,
            "max_window_log": self.window_log,
        }


def _value(given: object) -> int | None:
    value = given if isinstance(given, int) and not isinstance(given, bool) else 0
    if isinstance(given, str) and (matched := _SIZE.fullmatch(given)):
        value = int(matched[1]) * _UNITS[matched[2]]
    return value if 1 <= value <= _LARGEST else None

"""The description of an archive: which file holds which slice of which variable, and what its voxels are.

Nothing in this module accesses the archive. A description is checked when it is created. If the files do not match it,
the error is raised when the first of them is read.
"""

import re
import string
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path, PurePosixPath
from typing import Any

from ..core.documents import short
from ..core.errors import InvalidArgumentError
from ..core.geometry import DIMS, BoundingBox, Shape, check_bounding_box, check_shape, check_voxel_size
from ..core.kinds import FOREGROUND, KINDS, RAW, RESERVED_NAMES, Kind
from .formats.registry import FORMAT_OF_SUFFIX, FORMATS

DTYPES = ("uint8", "uint16", "uint32")
LONGEST_NAME = 240

AS_A_MASK = (
    'of a mask must be uint8; other dtypes need kind = "image" or kind = "instances" (without kind it is a mask)'
)
"""What is wrong with the dtype of a mask, which is what a variable is by default."""

EXAMPLES = {
    "name": 'name = "mine"',
    "url": 'url = "https://example.org/data" or url = "/data/mine"',
    "shape": "shape = [z, y, x]",
    "variables": "[variables.raw] and the attributes of raw",
}
"""Lines of a description, for each attribute that it must have."""

COLOR = re.compile("#[0-9a-fA-F]{6}")
NUMBER = re.compile(r"(0[1-9])?d")

VOXEL_SIZE_GIVEN = "given by the caller as voxel_size_nm=(z, y, x)"
"""The `voxel_size_source` of a Dataset whose voxel size the caller gave."""


@dataclass(frozen=True, kw_only=True)
class Variable:
    """One variable of an archive, and the files that hold its slices, one slice per file.

    Attributes:
        name: Name in the Dataset.
        files: Path of a file below the archive's root, with the number of the slice as `{z}`, `{z:03d}`, ...
        first: Number in the name of the first file.
        format: `tiff`, `png` (masks only) or `hdf5`; if empty, the suffix of `files` decides.
        dataset: For HDF5, the path of the array in a file.
        kind: `image`, `mask` (0 and any other value, which becomes 255) or `instances` (0, or the number of an object).
        dtype: Dtype of the voxels: `uint8` (always for a mask), `uint16` or `uint32`. A value in a
            file that does not fit is an error when it is read.
        meaning: What a label marks, as one word, such as `mitochondrion`; if empty, the name.
        long_name: A short description; if empty, it is derived from kind and meaning.
        color: Colour in pictures and viewers, as #rrggbb; if empty, a common one.
        default: Whether the variable is opened when the caller names no labels.
        bytes_per_pixel: Approximate bytes of a file per pixel, for estimates; if None, the usual value of the format.

    Raises:
        InvalidArgumentError: A value is not valid; the message names the attribute. (ValueError)
    """

    name: str
    files: str
    kind: Kind = "mask"
    dtype: str = "uint8"
    first: int = 0
    format: str = ""
    dataset: str = ""
    meaning: str = ""
    long_name: str = ""
    color: str = ""
    default: bool = True
    bytes_per_pixel: float | None = None

    def __post_init__(self) -> None:
        for attribute in fields(self):
            self._check_type(attribute.name, attribute.type)
        is_free = self.name not in (*DIMS, *RESERVED_NAMES)
        is_short = len(self.name.encode()) <= LONGEST_NAME
        self._check("name", self.name.isidentifier() and is_free and is_short, "is no name of a variable")
        self._check_files()
        if not self.format:
            suffix = PurePosixPath(self.files).suffix[1:].lower()
            formats = " or ".join(f'format = "{name}"' for name in FORMATS)
            self._check("files", suffix, f"has no suffix, which would tell the format; add {formats}")
            object.__setattr__(self, "format", FORMAT_OF_SUFFIX.get(suffix, suffix))
        self._check("format", self.format in FORMATS, f"is none of {', '.join(FORMATS)}")
        self._check("kind", self.kind in KINDS, f"is none of {', '.join(KINDS)}")
        self._check("dtype", self.dtype in DTYPES, f"is none of {', '.join(DTYPES)}")
        self._check("dtype", self.kind != "mask" or self.dtype == "uint8", AS_A_MASK)
        self._check(
            "format", self.format != "png" or self.kind == "mask", "is for masks only; give files of another format"
        )
        is_hdf5 = self.format == "hdf5"
        self._check("dataset", is_hdf5 or not self.dataset, f"is for hdf5, not for {self.format}; leave it out")
        self._check("dataset", not is_hdf5 or self.dataset, "must be the path of the array in each file")
        self._check("meaning", not re.search(r"\s", self.meaning), "must be one word")
        self._check("color", not self.color or COLOR.fullmatch(self.color), "is not of the form #rrggbb")
        self._check("first", self.first >= 0, "must be at least 0")
        self._check("bytes_per_pixel", self.bytes_per_pixel is None or 0 < self.bytes_per_pixel < 1e3, "cannot be")

    @classmethod
    def of(cls, name: str, described: Any) -> "Variable":
        """Return the variable that a TOML table or a JSON object describes.

        Args:
            name: Name in the Dataset.
            described: The other attributes by name; `files` must be there.

        Returns:
            The variable.

        Raises:
            InvalidArgumentError: There are unknown keys, or values that are not valid. (ValueError)
        """
        if not isinstance(described, Mapping):
            raise InvalidArgumentError(f"The variable {short(name)} is described by {short(described)}.")
        _check_keys(f"The variable {short(name)}", cls, described, {"name"})
        if "files" not in described:
            raise InvalidArgumentError(f"The variable {short(name)} has no files.")
        return cls(name=name, **described)

    def described(self) -> dict[str, Any]:
        """Return the variable as plain JSON, without default values; see `of`."""
        values = {attribute.name: (getattr(self, attribute.name), attribute.default) for attribute in fields(self)}
        return {name: value for name, (value, usual) in values.items() if name != "name" and value != usual}

    @property
    def places(self) -> tuple[str, int, str, str]:
        """What decides where voxels are in which file; the rest only says what they are."""
        return self.files, self.first, self.format, self.dataset

    @property
    def folder(self) -> str:
        """The folder of the files below the archive's root; empty if it is the root itself."""
        return self.files.rpartition("/")[0]

    def path(self, z: int) -> str:
        """Return the path of the file of a slice.

        Args:
            z: The slice.

        Returns:
            The path below the archive's root.
        """
        return self.files.format(z=z + self.first)

    def slice_of(self, address: str) -> int | None:
        """Return the slice that a file holds.

        Args:
            address: Path or URL of the file.

        Returns:
            The slice (z); None if it is not a file of this variable.
        """
        before, after = (re.escape(part) for part in re.split(r"\{z[^}]*\}", self.files))
        match = re.search(f"(?:^|/){before}([0-9]{{1,10}}){after}$", address)
        z = int(match[1]) - self.first if match else -1
        return z if match and z >= 0 and match[0].lstrip("/") == self.path(z) else None

    @property
    def attributes(self) -> dict[str, Any]:
        """The CF attributes, such as the meaning of a mask's two values; also the colour, and the kind of instances."""
        meaning = self.meaning or self.name
        words = meaning.replace("_", " ")
        usual: dict[Kind, str] = {
            "image": "electron microscopy, uncalibrated intensity",
            "mask": f"mask of {words}; may cover only a part of a slice",
            "instances": f"instances of {words}; may not be all",
        }
        of_kind: dict[Kind, dict[str, Any]] = {
            "image": {},
            "mask": {"flag_values": [0, FOREGROUND], "flag_meanings": f"background {meaning}"},
            "instances": {"kind": "instances"},
        }
        color = {"color": self.color} if self.color else {}
        return {"long_name": self.long_name or usual[self.kind], **of_kind[self.kind], **color}

    def _check_files(self) -> None:
        try:
            parts = list(string.Formatter().parse(self.files))
        except ValueError:
            parts = []
        numbers = [(name, spec, conversion) for _, name, spec, conversion in parts if name is not None]
        self._check(
            "files",
            len(numbers) == 1
            and numbers[0][0] == "z"
            and numbers[0][2] is None
            and (not numbers[0][1] or NUMBER.fullmatch(numbers[0][1])),
            "must have the number of the slice once, as {z} or {z:03d}",
        )
        literal = "".join(text for text, *_ in parts)
        folders = self.files.split("/")
        self._check(
            "files",
            "://" not in literal
            and not set(literal) & set("\\?#%{}\0")
            and all(part not in ("", ".", "..") for part in folders),
            "must be a path below the archive's root",
        )

    def _check_type(self, name: str, expected: Any) -> None:
        value = getattr(self, name)
        kinds = {str: "a text", int: "a whole number", bool: "true or false"}
        wanted: Any = expected if expected in kinds else str if name == "kind" else (int, float, type(None))
        is_right = isinstance(value, wanted) and not (isinstance(value, bool) and wanted is not bool)
        self._check(name, is_right, f"must be {kinds.get(wanted, 'a number')}")

    def _check(self, attribute: str, is_right: Any, problem: str) -> None:
        if not is_right:
            value = getattr(self, attribute)
            raise InvalidArgumentError(f"The variable {short(self.name)}: {attribute} = {short(value)} {problem}.")


@dataclass(frozen=True, kw_only=True)
class Archive:
    """An archive of slices: the source of all information about it.

    Attributes:
        name: Its name. Together with the variable and the voxels it identifies the content of a store: the same archive
            at another address has the same name.
        url: The address of the archive.
        shape: Voxels (z, y, x).
        variables: Its variables: `raw`, which is the image, and labels.
        title: A title of one line.
        license: SPDX identifier of the licence.
        citation: The publication to cite.
        references: Where the archive is described.
        tissue_box: Box outside of which the image is empty; None if it is not known.
        voxel_size_nm: Size of a voxel (z, y, x) in nm; None if it is not known.
        voxel_size_source: The origin of the voxel size, or why the size is not known.

    Raises:
        InvalidArgumentError: A value is not valid; the message names the attribute. (ValueError)
    """

    name: str
    url: str = field(repr=False)  # it may hold a password
    shape: Shape
    variables: tuple[Variable, ...]
    title: str = ""
    license: str = ""
    citation: str = ""
    references: str = ""
    tissue_box: BoundingBox | None = None
    voxel_size_nm: tuple[float, float, float] | None = None
    voxel_size_source: str = "not given"

    def __post_init__(self) -> None:
        for name in ("name", "url", "title", "license", "citation", "references", "voxel_size_source"):
            if not isinstance(getattr(self, name), str):
                raise InvalidArgumentError(f"The archive's {name} = {short(getattr(self, name))} must be a text.")
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)*", self.name):
            raise InvalidArgumentError(f"name = {short(self.name)} is no name of an archive: letters, digits, -._/.")
        set_once = object.__setattr__
        set_once(self, "shape", check_shape(self.shape))
        if not isinstance(self.variables, Sequence) or not all(isinstance(of, Variable) for of in self.variables):
            raise InvalidArgumentError(f"{self.name}: variables must be a tuple of liver_dask.Variable.")
        set_once(self, "variables", tuple(self.variables))
        names = [variable.name for variable in self.variables]
        double = [name for name in names if names.count(name) > 1]
        if double:
            raise InvalidArgumentError(f"{self.name}: there are two variables {double[0]!r}.")
        if RAW not in names or self[RAW].kind != "image":
            raise InvalidArgumentError(f"{self.name}: there is no variable {RAW!r} of the kind 'image'.")
        if self.tissue_box is not None:
            set_once(self, "tissue_box", check_bounding_box(self.tissue_box, self._whole))
        if self.voxel_size_nm is not None:
            set_once(self, "voxel_size_nm", check_voxel_size(self.voxel_size_nm))

    def __repr__(self) -> str:
        """Return the name, the shape and the names of the variables; the address may hold a password."""
        names = ", ".join(variable.name for variable in self.variables)
        return f"<Archive {self.name}: {' x '.join(map(str, self.shape))} voxels (z, y, x) of {names}>"

    @classmethod
    def from_toml(cls, path: str | Path) -> "Archive":
        """Return the archive that a TOML file describes.

        The file has the attributes by name, and a table `variables.NAME` for each variable.

        Args:
            path: The file.

        Returns:
            The archive.

        Raises:
            InvalidArgumentError: The file cannot be read, is not TOML, has an unknown key, or has a value that is not
                valid. (ValueError)
        """
        try:
            found = tomllib.loads(Path(path).expanduser().read_text(encoding="utf-8"))
        except OSError as error:
            raise InvalidArgumentError(f"Cannot read {path}: {error.strerror or error}.") from error
        except (ValueError, RecursionError) as error:
            raise InvalidArgumentError(f"{path} is not valid TOML ({error}).") from error
        try:
            return cls._of(found)
        except InvalidArgumentError as error:
            raise InvalidArgumentError(f"{path}: {error}") from error

    @classmethod
    def _of(cls, found: dict[str, Any]) -> "Archive":
        _check_keys("The archive", cls, found, set())
        for name in ("name", "url", "shape", "variables"):
            if name not in found:
                raise InvalidArgumentError(f"The archive has no {name}; add {EXAMPLES[name]}.")
        tables = found["variables"]
        if not isinstance(tables, dict):
            raise InvalidArgumentError(f"variables = {short(tables)} must be tables: [variables.raw], ...")
        return cls(**found | {"variables": tuple(Variable.of(name, table) for name, table in tables.items())})

    def __getitem__(self, name: str) -> Variable:
        """Return a variable by its name.

        Raises:
            InvalidArgumentError: There is no such variable; the message lists all variables. (ValueError)
        """
        for variable in self.variables:
            if variable.name == name:
                return variable
        known = ", ".join(variable.name for variable in self.variables)
        raise InvalidArgumentError(f"{self.name} has no variable {short(name)}; it has {known}.")

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels that are opened when the caller names none."""
        return tuple(variable.name for variable in self.variables if variable.name != RAW and variable.default)

    def check_labels(self, labels: str | Iterable[str] | None) -> tuple[str, ...]:
        """Check names of labels.

        Args:
            labels: One name or several; the default labels if None.

        Returns:
            The names in the given order, without duplicates.

        Raises:
            InvalidArgumentError: A label does not exist; the message lists those that exist. (ValueError)
        """
        if labels is None:
            return self.labels
        known = [variable.name for variable in self.variables if variable.name != RAW]
        try:
            names = (labels,) if isinstance(labels, str) else tuple(dict.fromkeys(labels))
        except TypeError:
            raise InvalidArgumentError(f"labels={labels!r} must be names of {', '.join(known)}.") from None
        unknown = [name for name in names if name not in known]
        if unknown:
            raise InvalidArgumentError(
                f"Unknown label {short(unknown[0])}; the classes of {self.name} are {', '.join(known)}."
            )
        return names

    def of_shape(self, shape: Sequence[int] | None) -> "Archive":
        """Return the same archive with another shape.

        Args:
            shape: Voxels (z, y, x); the archive's own if None.

        Returns:
            The archive. If the shape is another one, it is not known where its tissue lies.

        Raises:
            InvalidArgumentError: The shape is not three positive whole numbers. (ValueError)
        """
        checked = self.shape if shape is None else check_shape(shape)
        return self if checked == self.shape else replace(self, shape=checked, tissue_box=None)

    @property
    def full_box(self) -> BoundingBox:
        """The box of a full export: the tissue, or the whole volume if the tissue box is not known."""
        return self.tissue_box or self._whole

    @property
    def _whole(self) -> BoundingBox:
        z, y, x = self.shape
        return BoundingBox(0, x, 0, y, 0, z)

    def check_bounding_box(self, bounding_box: Sequence[int]) -> BoundingBox:
        """Check that a box is not empty, and lies in the volume.

        Args:
            bounding_box: (x_min, x_max, y_min, y_max, z_min, z_max) in voxels, each max exclusive.

        Returns:
            The same box, as a named tuple with these names.

        Raises:
            InvalidArgumentError: The box is empty, or extends beyond the volume. (ValueError)
        """
        return check_bounding_box(bounding_box, self._whole)

    def path(self, variable: str, z: int) -> str:
        """Return the path of the file of a slice.

        Args:
            variable: Name of the variable.
            z: The slice.

        Returns:
            The path below the archive's root.

        Raises:
            InvalidArgumentError: There is no such variable. (ValueError)
        """
        return self[variable].path(z)

    def attributes(self, source: str, voxel_size_nm: Sequence[float] | None) -> dict[str, Any]:
        """Return the attributes of a Dataset of this archive.

        Args:
            source: Where the archive is.
            voxel_size_nm: Size of a voxel (z, y, x) in nm, as the caller says; the archive's own if None.

        Returns:
            Title, source, licence, citation and voxel size, as plain JSON.

        Raises:
            InvalidArgumentError: A voxel size is not three numbers above 0. (ValueError)
        """
        known: dict[str, Any] = {
            "title": self.title or self.name,
            "source": source,
            "license": self.license,
            "citation": self.citation,
            "references": self.references,
        }
        stated, size = self.voxel_size_source, self.voxel_size_nm
        if voxel_size_nm is not None:
            stated, size = VOXEL_SIZE_GIVEN, check_voxel_size(voxel_size_nm)
        sizes = {} if size is None else {"voxel_size_nm": list(size)}
        return known | sizes | {"voxel_size_source": stated}


def _check_keys(what: str, described: Any, found: Mapping[str, Any], without: set[str]) -> None:
    known = {attribute.name for attribute in fields(described)} - without
    unknown = [key for key in found if key not in known]
    if unknown:
        raise InvalidArgumentError(f"{what} has no attribute {short(unknown[0])}; it has {', '.join(sorted(known))}.")

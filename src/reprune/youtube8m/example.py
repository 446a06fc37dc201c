"""The content of a YouTube-8M record: a protobuf `SequenceExample` to and from NumPy arrays, without TensorFlow.

The message classes are built here from a description. It is TensorFlow's `SequenceExample`, with one difference that
the wire format does not show: a feature list is declared as `bytes`, not as a message. protobuf then hands a list over
in one piece, and because all frames of a list have the same size, their headers can be checked, and their bytes taken
out, as the columns of one array. A list that is encoded in any other legal way goes through protobuf frame by frame.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

DEFAULT_FEATURES: Mapping[str, int] = {"rgb": 1024, "audio": 128}
"""The frame features of YouTube-8M: name to number of bytes per frame."""

_ID_NAMES = ("id", "video_id")
_PACKAGE = "reprune.youtube8m"


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """One video.

    Attributes:
        id: The video's identifier.
        labels: The classes it belongs to, int64, in the order of the file.
        frames: Quantised features, uint8, T × F: a row per frame, feature lists side by side in the order asked for.
    """

    id: str
    labels: NDArray[np.int64]
    frames: NDArray[np.uint8]


class ContentError(ValueError):
    """What a record holds is not what was asked for: says what, and what to do. The reader adds where."""


def parse_example(payload: bytes, features: Mapping[str, int], classes: int | None) -> Record:
    """Decode one serialised `SequenceExample`.

    Args:
        payload: The message.
        features: Names of the feature lists to read and their bytes per frame.
        classes: How many classes there are; None accepts any label from 0 on.

    Raises:
        ContentError: The message is malformed, lacks something, or does not fit `features` and `classes`.
    """
    try:
        example = _MESSAGES["SequenceExample"].FromString(payload)
    except DecodeError as error:
        raise ContentError(f"not a protobuf SequenceExample ({error}); is it a YouTube-8M frame-level file?") from error
    context = example.context.feature
    return Record(_parse_id(context), _parse_labels(context, classes), _parse_frames(example, features))


def serialise_example(record: Record, features: Mapping[str, int]) -> bytes:
    """Encode a record as a `SequenceExample`, byte for byte the same for the same record.

    Raises:
        ContentError: The arrays are not what a reader with these `features` would give back.
    """
    labels, frames = np.asarray(record.labels), np.asarray(record.frames)
    width = sum(features.values())
    if frames.dtype != np.uint8 or frames.ndim != 2 or frames.shape[1] != width or not len(frames):
        raise ContentError(
            f"frames must be uint8 of shape T × {width} with T ≥ 1, not {frames.dtype} {frames.shape}: "
            "quantise them, and let features= name the lists that they hold"
        )
    if labels.ndim != 1 or (labels.size and (labels.dtype.kind not in "iu" or labels.min() < 0)):
        raise ContentError(f"labels must be a list of integers from 0 on, not {labels!r}")
    example = _MESSAGES["SequenceExample"]()
    context = example.context.feature
    context["id"].bytes_list.value.append(record.id.encode())
    context["labels"].int64_list.SetInParent()
    context["labels"].int64_list.value.extend(labels.tolist())
    start = 0
    for name, size in features.items():
        header = _frame_header(size)
        rows = np.empty((len(frames), len(header) + size), np.uint8)
        rows[:, : len(header)] = header
        rows[:, len(header) :] = frames[:, start : start + size]
        example.feature_lists.feature_list[name] = rows.tobytes()
        start += size
    return bytes(example.SerializeToString(deterministic=True))


def _parse_id(context: Any) -> str:
    for name in _ID_NAMES:
        if name in context:
            values = context[name].bytes_list.value
            if len(values) != 1:
                raise ContentError(f"context feature {name!r} holds {len(values)} byte strings, not one")
            try:
                return str(values[0].decode())
            except UnicodeDecodeError as error:
                raise ContentError(f"context feature {name!r} is not text: {values[0]!r}") from error
    raise ContentError(f"no context feature 'id' or 'video_id' (there is {_listed(context)})")


def _parse_labels(context: Any, classes: int | None) -> NDArray[np.int64]:
    if "labels" not in context or context["labels"].WhichOneof("kind") != "int64_list":
        raise ContentError(
            f"no context feature 'labels' with integers (there is {_listed(context)}); "
            "YouTube-8M's test partition has none, use train or validate"
        )
    labels = np.array(context["labels"].int64_list.value, np.int64)
    outside = labels[(labels < 0) | (False if classes is None else labels >= classes)]
    if outside.size:
        allowed = "from 0 on" if classes is None else f"0 to {classes - 1}"
        raise ContentError(f"labels {outside.tolist()} are outside the classes, {allowed}; is classes= right?")
    return labels


def _parse_frames(example: Any, features: Mapping[str, int]) -> NDArray[np.uint8]:
    lists = example.feature_lists.feature_list
    parts = []
    if not lists:
        raise ContentError(
            f"no frames, only features of the video as a whole ({_listed(example.context.feature)}): give YouTube-8M's "
            "frame-level files, not the video-level ones"
        )
    for name, size in features.items():
        if name not in lists:
            raise ContentError(f"no feature list {name!r} (there is {_listed(lists)}); name the lists with features=")
        parts.append(_frame_matrix(name, lists[name], size))
    counts = {name: len(part) for name, part in zip(features, parts, strict=True)}
    if len(set(counts.values())) > 1:
        raise ContentError(f"feature lists of different lengths, {counts} frames; leave one out with features=")
    if not len(parts[0]):
        raise ContentError("no frames")
    return np.concatenate(parts, axis=1)


def _frame_matrix(name: str, encoded: bytes, size: int) -> NDArray[np.uint8]:
    """Return the frames of one encoded feature list, T × size."""
    header = _frame_header(size)
    stride = len(header) + size
    if len(encoded) % stride == 0:
        rows = np.frombuffer(encoded, np.uint8).reshape(-1, stride)
        if (rows[:, : len(header)] == header).all():
            return rows[:, len(header) :]
    try:
        found = list(_MESSAGES["FeatureList"].FromString(encoded).feature)
    except DecodeError as error:
        raise ContentError(f"feature list {name!r} is not a protobuf FeatureList ({error})") from error
    kinds = {feature.WhichOneof("kind") for feature in found} - {"bytes_list", None}
    if kinds:
        raise ContentError(
            f"the frames of {name!r} are of kind {sorted(kinds)[0]}, not bytes: quantise them to 8 bits as YouTube-8M "
            f"does, one byte string of {size} bytes a frame"
        )
    frames = [feature.bytes_list.value for feature in found]
    for position, values in enumerate(frames):
        sizes = [len(value) for value in values]
        if sizes != [size]:
            held = f"{sizes[0]} bytes" if len(sizes) == 1 else f"{len(sizes)} byte strings"
            raise ContentError(
                f"frame {position} of {name!r} holds {held}, not {size} bytes; set its size in features="
            )
    return np.frombuffer(b"".join(values[0] for values in frames), np.uint8).reshape(-1, size)


def _listed(mapping: Any) -> str:
    return ", ".join(repr(name) for name in sorted(mapping)) or "nothing"


@lru_cache
def _frame_header(size: int) -> NDArray[np.uint8]:
    """Return the bytes that stand before a frame of `size` bytes in a feature list: tags and lengths."""
    frames = _MESSAGES["FeatureList"]()
    frames.feature.add().bytes_list.value.append(bytes(size))
    encoded = frames.SerializeToString()
    return np.frombuffer(encoded, np.uint8, len(encoded) - size)


def _build_messages() -> dict[str, Any]:
    """Declare the messages and return the classes of those that are parsed from bytes."""
    proto = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name=f"{_PACKAGE}.proto", package=_PACKAGE, syntax="proto3")

    def add(message: Any, name: str, number: int, kind: str, repeated: bool = False) -> Any:
        """Add a field to a message; a kind with a capital is another message."""
        field = message.field.add(name=name, number=number)
        field.label = proto.LABEL_REPEATED if repeated else proto.LABEL_OPTIONAL
        if kind[0].isupper():
            field.type, field.type_name = proto.TYPE_MESSAGE, f".{_PACKAGE}.{kind}"
        else:
            field.type = getattr(proto, f"TYPE_{kind.upper()}")
        return field

    def add_map(name: str, field: str, kind: str) -> None:
        """Declare a message that is one map from strings: to protobuf, a repeated entry of key and value."""
        message = file.message_type.add(name=name)
        entry = message.nested_type.add(name="".join(map(str.capitalize, field.split("_"))) + "Entry")
        entry.options.map_entry = True
        add(entry, "key", 1, "string")
        add(entry, "value", 2, kind)
        add(message, field, 1, f"{name}.{entry.name}", repeated=True)

    for name, kind in (("BytesList", "bytes"), ("FloatList", "float"), ("Int64List", "int64")):
        add(file.message_type.add(name=name), "value", 1, kind, repeated=True)
    feature = file.message_type.add(name="Feature")
    feature.oneof_decl.add(name="kind")
    for number, kind in enumerate(("BytesList", "FloatList", "Int64List"), start=1):
        add(feature, kind.replace("List", "_list").lower(), number, kind).oneof_index = 0
    add(file.message_type.add(name="FeatureList"), "feature", 1, "Feature", repeated=True)
    add_map("Features", "feature", "Feature")
    add_map("FeatureLists", "feature_list", "bytes")  # TensorFlow's is FeatureList: see the module's docstring
    example = file.message_type.add(name="SequenceExample")
    add(example, "context", 1, "Features")
    add(example, "feature_lists", 2, "FeatureLists")

    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    names = ("SequenceExample", "FeatureList")
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}")) for name in names}


_MESSAGES = _build_messages()

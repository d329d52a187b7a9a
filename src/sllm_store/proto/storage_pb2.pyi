from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DeviceType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DEVICE_TYPE_DISK: _ClassVar[DeviceType]
    DEVICE_TYPE_CPU: _ClassVar[DeviceType]
    DEVICE_TYPE_GPU: _ClassVar[DeviceType]
DEVICE_TYPE_DISK: DeviceType
DEVICE_TYPE_CPU: DeviceType
DEVICE_TYPE_GPU: DeviceType

class GetServerConfigRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetServerConfigResponse(_message.Message):
    __slots__ = ("mem_pool_size", "chunk_size")
    MEM_POOL_SIZE_FIELD_NUMBER: _ClassVar[int]
    CHUNK_SIZE_FIELD_NUMBER: _ClassVar[int]
    mem_pool_size: int
    chunk_size: int
    def __init__(self, mem_pool_size: _Optional[int] = ..., chunk_size: _Optional[int] = ...) -> None: ...

class RegisterModelRequest(_message.Message):
    __slots__ = ("model_path",)
    MODEL_PATH_FIELD_NUMBER: _ClassVar[int]
    model_path: str
    def __init__(self, model_path: _Optional[str] = ...) -> None: ...

class RegisterModelResponse(_message.Message):
    __slots__ = ("model_path", "model_size")
    MODEL_PATH_FIELD_NUMBER: _ClassVar[int]
    MODEL_SIZE_FIELD_NUMBER: _ClassVar[int]
    model_path: str
    model_size: int
    def __init__(self, model_path: _Optional[str] = ..., model_size: _Optional[int] = ...) -> None: ...

class MemCopyChunk(_message.Message):
    __slots__ = ("src_offset", "size", "dst_offset", "handle_idx")
    SRC_OFFSET_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    DST_OFFSET_FIELD_NUMBER: _ClassVar[int]
    HANDLE_IDX_FIELD_NUMBER: _ClassVar[int]
    src_offset: int
    size: int
    dst_offset: int
    handle_idx: int
    def __init__(self, src_offset: _Optional[int] = ..., size: _Optional[int] = ..., dst_offset: _Optional[int] = ..., handle_idx: _Optional[int] = ...) -> None: ...

class MemCopyChunkList(_message.Message):
    __slots__ = ("chunks",)
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    chunks: _containers.RepeatedCompositeFieldContainer[MemCopyChunk]
    def __init__(self, chunks: _Optional[_Iterable[_Union[MemCopyChunk, _Mapping]]] = ...) -> None: ...

class MemCopyHandle(_message.Message):
    __slots__ = ("cuda_ipc_handle",)
    CUDA_IPC_HANDLE_FIELD_NUMBER: _ClassVar[int]
    cuda_ipc_handle: bytes
    def __init__(self, cuda_ipc_handle: _Optional[bytes] = ...) -> None: ...

class MemCopyHandleList(_message.Message):
    __slots__ = ("handles",)
    HANDLES_FIELD_NUMBER: _ClassVar[int]
    handles: _containers.RepeatedCompositeFieldContainer[MemCopyHandle]
    def __init__(self, handles: _Optional[_Iterable[_Union[MemCopyHandle, _Mapping]]] = ...) -> None: ...

class LoadModelRequest(_message.Message):
    __slots__ = ("model_path", "replica_uuid", "chunks", "handles", "target_device_type")
    class ChunksEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: MemCopyChunkList
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[MemCopyChunkList, _Mapping]] = ...) -> None: ...
    class HandlesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: MemCopyHandleList
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[MemCopyHandleList, _Mapping]] = ...) -> None: ...
    MODEL_PATH_FIELD_NUMBER: _ClassVar[int]
    REPLICA_UUID_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    HANDLES_FIELD_NUMBER: _ClassVar[int]
    TARGET_DEVICE_TYPE_FIELD_NUMBER: _ClassVar[int]
    model_path: str
    replica_uuid: str
    chunks: _containers.MessageMap[str, MemCopyChunkList]
    handles: _containers.MessageMap[str, MemCopyHandleList]
    target_device_type: DeviceType
    def __init__(self, model_path: _Optional[str] = ..., replica_uuid: _Optional[str] = ..., chunks: _Optional[_Mapping[str, MemCopyChunkList]] = ..., handles: _Optional[_Mapping[str, MemCopyHandleList]] = ..., target_device_type: _Optional[_Union[DeviceType, str]] = ...) -> None: ...

class LoadModelResponse(_message.Message):
    __slots__ = ("model_path",)
    MODEL_PATH_FIELD_NUMBER: _ClassVar[int]
    model_path: str
    def __init__(self, model_path: _Optional[str] = ...) -> None: ...

class ConfirmModelRequest(_message.Message):
    __slots__ = ("model_path", "replica_uuid", "target_device_type")
    MODEL_PATH_FIELD_NUMBER: _ClassVar[int]
    REPLICA_UUID_FIELD_NUMBER: _ClassVar[int]
    TARGET_DEVICE_TYPE_FIELD_NUMBER: _ClassVar[int]
    model_path: str
    replica_uuid: str
    target_device_type: DeviceType
    def __init__(self, model_path: _Optional[str] = ..., replica_uuid: _Optional[str] = ..., target_device_type: _Optional[_Union[DeviceType, str]] = ...) -> None: ...

class ConfirmModelResponse(_message.Message):
    __slots__ = ("model_path", "code")
    MODEL_PATH_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    model_path: str
    code: int
    def __init__(self, model_path: _Optional[str] = ..., code: _Optional[int] = ...) -> None: ...

class UnloadModelRequest(_message.Message):
    __slots__ = ("model_path", "replica_uuid", "target_device_type")
    MODEL_PATH_FIELD_NUMBER: _ClassVar[int]
    REPLICA_UUID_FIELD_NUMBER: _ClassVar[int]
    TARGET_DEVICE_TYPE_FIELD_NUMBER: _ClassVar[int]
    model_path: str
    replica_uuid: str
    target_device_type: DeviceType
    def __init__(self, model_path: _Optional[str] = ..., replica_uuid: _Optional[str] = ..., target_device_type: _Optional[_Union[DeviceType, str]] = ...) -> None: ...

class UnloadModelResponse(_message.Message):
    __slots__ = ("model_path", "code")
    MODEL_PATH_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    model_path: str
    code: int
    def __init__(self, model_path: _Optional[str] = ..., code: _Optional[int] = ...) -> None: ...

class ClearMemRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ClearMemResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class LocalRequest(_message.Message):
    __slots__ = ("status", "plan", "load")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    status: GetStatusRequest
    plan: PlanLoadRequest
    load: LoadRequest
    def __init__(self, status: _Optional[_Union[GetStatusRequest, _Mapping]] = ..., plan: _Optional[_Union[PlanLoadRequest, _Mapping]] = ..., load: _Optional[_Union[LoadRequest, _Mapping]] = ...) -> None: ...

class LocalReply(_message.Message):
    __slots__ = ("status", "plan", "event", "error")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    EVENT_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    status: GetStatusResponse
    plan: PlanLoadResponse
    event: LoadEvent
    error: LocalError
    def __init__(self, status: _Optional[_Union[GetStatusResponse, _Mapping]] = ..., plan: _Optional[_Union[PlanLoadResponse, _Mapping]] = ..., event: _Optional[_Union[LoadEvent, _Mapping]] = ..., error: _Optional[_Union[LocalError, _Mapping]] = ...) -> None: ...

class LocalError(_message.Message):
    __slots__ = ("name", "message")
    NAME_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    name: str
    message: str
    def __init__(self, name: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class PlanLoadRequest(_message.Message):
    __slots__ = ("model", "device_map")
    class DeviceMapEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    MODEL_FIELD_NUMBER: _ClassVar[int]
    DEVICE_MAP_FIELD_NUMBER: _ClassVar[int]
    model: str
    device_map: _containers.ScalarMap[str, str]
    def __init__(self, model: _Optional[str] = ..., device_map: _Optional[_Mapping[str, str]] = ...) -> None: ...

class PlanLoadResponse(_message.Message):
    __slots__ = ("plan", "arenas", "aliases", "format", "path", "tensors")
    class AliasesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    PLAN_FIELD_NUMBER: _ClassVar[int]
    ARENAS_FIELD_NUMBER: _ClassVar[int]
    ALIASES_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    plan: str
    arenas: _containers.RepeatedCompositeFieldContainer[Arena]
    aliases: _containers.ScalarMap[str, str]
    format: str
    path: str
    tensors: Tensors
    def __init__(self, plan: _Optional[str] = ..., arenas: _Optional[_Iterable[_Union[Arena, _Mapping]]] = ..., aliases: _Optional[_Mapping[str, str]] = ..., format: _Optional[str] = ..., path: _Optional[str] = ..., tensors: _Optional[_Union[Tensors, _Mapping]] = ...) -> None: ...

class Arena(_message.Message):
    __slots__ = ("device", "size_bytes", "decoding")
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    DECODING_FIELD_NUMBER: _ClassVar[int]
    device: str
    size_bytes: int
    decoding: Decoding
    def __init__(self, device: _Optional[str] = ..., size_bytes: _Optional[int] = ..., decoding: _Optional[_Union[Decoding, _Mapping]] = ...) -> None: ...

class Decoding(_message.Message):
    __slots__ = ("image_bytes", "raw_bytes", "pieces", "decodes")
    IMAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    RAW_BYTES_FIELD_NUMBER: _ClassVar[int]
    PIECES_FIELD_NUMBER: _ClassVar[int]
    DECODES_FIELD_NUMBER: _ClassVar[int]
    image_bytes: int
    raw_bytes: int
    pieces: _containers.RepeatedScalarFieldContainer[int]
    decodes: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, image_bytes: _Optional[int] = ..., raw_bytes: _Optional[int] = ..., pieces: _Optional[_Iterable[int]] = ..., decodes: _Optional[_Iterable[int]] = ...) -> None: ...

class Tensors(_message.Message):
    __slots__ = ("names", "kind", "arena", "offset_bytes", "kinds", "buffers")
    NAMES_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    ARENA_FIELD_NUMBER: _ClassVar[int]
    OFFSET_BYTES_FIELD_NUMBER: _ClassVar[int]
    KINDS_FIELD_NUMBER: _ClassVar[int]
    BUFFERS_FIELD_NUMBER: _ClassVar[int]
    names: _containers.RepeatedScalarFieldContainer[str]
    kind: _containers.RepeatedScalarFieldContainer[int]
    arena: _containers.RepeatedScalarFieldContainer[int]
    offset_bytes: _containers.RepeatedScalarFieldContainer[int]
    kinds: _containers.RepeatedCompositeFieldContainer[Kind]
    buffers: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, names: _Optional[_Iterable[str]] = ..., kind: _Optional[_Iterable[int]] = ..., arena: _Optional[_Iterable[int]] = ..., offset_bytes: _Optional[_Iterable[int]] = ..., kinds: _Optional[_Iterable[_Union[Kind, _Mapping]]] = ..., buffers: _Optional[_Iterable[int]] = ...) -> None: ...

class Kind(_message.Message):
    __slots__ = ("dtype", "shape", "stride")
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    STRIDE_FIELD_NUMBER: _ClassVar[int]
    dtype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    stride: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, dtype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., stride: _Optional[_Iterable[int]] = ...) -> None: ...

class LoadRequest(_message.Message):
    __slots__ = ("client", "plan", "targets", "timeout_s", "shared", "question", "spent_s")
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    SHARED_FIELD_NUMBER: _ClassVar[int]
    QUESTION_FIELD_NUMBER: _ClassVar[int]
    SPENT_S_FIELD_NUMBER: _ClassVar[int]
    client: str
    plan: str
    targets: _containers.RepeatedCompositeFieldContainer[DeviceTarget]
    timeout_s: float
    shared: bool
    question: PlanLoadRequest
    spent_s: float
    def __init__(self, client: _Optional[str] = ..., plan: _Optional[str] = ..., targets: _Optional[_Iterable[_Union[DeviceTarget, _Mapping]]] = ..., timeout_s: _Optional[float] = ..., shared: bool = ..., question: _Optional[_Union[PlanLoadRequest, _Mapping]] = ..., spent_s: _Optional[float] = ...) -> None: ...

class DeviceTarget(_message.Message):
    __slots__ = ("device", "ipc_handle", "offset_bytes")
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    IPC_HANDLE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_BYTES_FIELD_NUMBER: _ClassVar[int]
    device: str
    ipc_handle: bytes
    offset_bytes: int
    def __init__(self, device: _Optional[str] = ..., ipc_handle: _Optional[bytes] = ..., offset_bytes: _Optional[int] = ...) -> None: ...

class LoadEvent(_message.Message):
    __slots__ = ("bytes_done", "bytes_total", "done", "held", "chunks", "chunk_size", "tier", "plan", "arenas")
    BYTES_DONE_FIELD_NUMBER: _ClassVar[int]
    BYTES_TOTAL_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    CHUNK_SIZE_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    ARENAS_FIELD_NUMBER: _ClassVar[int]
    bytes_done: int
    bytes_total: int
    done: bool
    held: bool
    chunks: _containers.RepeatedScalarFieldContainer[int]
    chunk_size: int
    tier: str
    plan: PlanLoadResponse
    arenas: _containers.RepeatedCompositeFieldContainer[SharedArena]
    def __init__(self, bytes_done: _Optional[int] = ..., bytes_total: _Optional[int] = ..., done: bool = ..., held: bool = ..., chunks: _Optional[_Iterable[int]] = ..., chunk_size: _Optional[int] = ..., tier: _Optional[str] = ..., plan: _Optional[_Union[PlanLoadResponse, _Mapping]] = ..., arenas: _Optional[_Iterable[_Union[SharedArena, _Mapping]]] = ...) -> None: ...

class SharedArena(_message.Message):
    __slots__ = ("device", "ipc_handle", "offset_bytes", "size_bytes")
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    IPC_HANDLE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_BYTES_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    device: str
    ipc_handle: bytes
    offset_bytes: int
    size_bytes: int
    def __init__(self, device: _Optional[str] = ..., ipc_handle: _Optional[bytes] = ..., offset_bytes: _Optional[int] = ..., size_bytes: _Optional[int] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[Model]
    def __init__(self, models: _Optional[_Iterable[_Union[Model, _Mapping]]] = ...) -> None: ...

class Model(_message.Message):
    __slots__ = ("name", "format", "size_bytes", "host_bytes", "pinned", "leases", "tensors", "error", "stored_bytes", "resident")
    NAME_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    HOST_BYTES_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    LEASES_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    STORED_BYTES_FIELD_NUMBER: _ClassVar[int]
    RESIDENT_FIELD_NUMBER: _ClassVar[int]
    name: str
    format: str
    size_bytes: int
    host_bytes: int
    pinned: bool
    leases: int
    tensors: int
    error: str
    stored_bytes: int
    resident: _containers.RepeatedCompositeFieldContainer[ResidentArena]
    def __init__(self, name: _Optional[str] = ..., format: _Optional[str] = ..., size_bytes: _Optional[int] = ..., host_bytes: _Optional[int] = ..., pinned: bool = ..., leases: _Optional[int] = ..., tensors: _Optional[int] = ..., error: _Optional[str] = ..., stored_bytes: _Optional[int] = ..., resident: _Optional[_Iterable[_Union[ResidentArena, _Mapping]]] = ...) -> None: ...

class ResidentArena(_message.Message):
    __slots__ = ("device", "size_bytes", "pinned", "leases")
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    LEASES_FIELD_NUMBER: _ClassVar[int]
    device: str
    size_bytes: int
    pinned: bool
    leases: int
    def __init__(self, device: _Optional[str] = ..., size_bytes: _Optional[int] = ..., pinned: bool = ..., leases: _Optional[int] = ...) -> None: ...

class SetPinnedRequest(_message.Message):
    __slots__ = ("model", "pinned", "device_map")
    class DeviceMapEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    DEVICE_MAP_FIELD_NUMBER: _ClassVar[int]
    model: str
    pinned: bool
    device_map: _containers.ScalarMap[str, str]
    def __init__(self, model: _Optional[str] = ..., pinned: bool = ..., device_map: _Optional[_Mapping[str, str]] = ...) -> None: ...

class SetPinnedResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetStatusResponse(_message.Message):
    __slots__ = ("version", "pid", "uptime_s", "pool_bytes", "pool_used_bytes", "chunk_size", "pool_pinned", "sessions", "leases", "loads_running", "storage_path", "devices", "gpu_pool_bytes", "resident_bytes", "local_socket")
    class ResidentBytesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    UPTIME_S_FIELD_NUMBER: _ClassVar[int]
    POOL_BYTES_FIELD_NUMBER: _ClassVar[int]
    POOL_USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    CHUNK_SIZE_FIELD_NUMBER: _ClassVar[int]
    POOL_PINNED_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    LEASES_FIELD_NUMBER: _ClassVar[int]
    LOADS_RUNNING_FIELD_NUMBER: _ClassVar[int]
    STORAGE_PATH_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    GPU_POOL_BYTES_FIELD_NUMBER: _ClassVar[int]
    RESIDENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    LOCAL_SOCKET_FIELD_NUMBER: _ClassVar[int]
    version: str
    pid: int
    uptime_s: float
    pool_bytes: int
    pool_used_bytes: int
    chunk_size: int
    pool_pinned: bool
    sessions: int
    leases: int
    loads_running: int
    storage_path: str
    devices: _containers.RepeatedScalarFieldContainer[str]
    gpu_pool_bytes: int
    resident_bytes: _containers.ScalarMap[str, int]
    local_socket: str
    def __init__(self, version: _Optional[str] = ..., pid: _Optional[int] = ..., uptime_s: _Optional[float] = ..., pool_bytes: _Optional[int] = ..., pool_used_bytes: _Optional[int] = ..., chunk_size: _Optional[int] = ..., pool_pinned: bool = ..., sessions: _Optional[int] = ..., leases: _Optional[int] = ..., loads_running: _Optional[int] = ..., storage_path: _Optional[str] = ..., devices: _Optional[_Iterable[str]] = ..., gpu_pool_bytes: _Optional[int] = ..., resident_bytes: _Optional[_Mapping[str, int]] = ..., local_socket: _Optional[str] = ...) -> None: ...

class EstimateLoadRequest(_message.Message):
    __slots__ = ("question", "shared")
    QUESTION_FIELD_NUMBER: _ClassVar[int]
    SHARED_FIELD_NUMBER: _ClassVar[int]
    question: PlanLoadRequest
    shared: bool
    def __init__(self, question: _Optional[_Union[PlanLoadRequest, _Mapping]] = ..., shared: bool = ...) -> None: ...

class EstimateLoadResponse(_message.Message):
    __slots__ = ("seconds", "device_bytes", "host_bytes", "cached_bytes", "disk_bytes", "wait_s", "loads_ahead", "samples")
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    DEVICE_BYTES_FIELD_NUMBER: _ClassVar[int]
    HOST_BYTES_FIELD_NUMBER: _ClassVar[int]
    CACHED_BYTES_FIELD_NUMBER: _ClassVar[int]
    DISK_BYTES_FIELD_NUMBER: _ClassVar[int]
    WAIT_S_FIELD_NUMBER: _ClassVar[int]
    LOADS_AHEAD_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    seconds: float
    device_bytes: int
    host_bytes: int
    cached_bytes: int
    disk_bytes: int
    wait_s: float
    loads_ahead: int
    samples: int
    def __init__(self, seconds: _Optional[float] = ..., device_bytes: _Optional[int] = ..., host_bytes: _Optional[int] = ..., cached_bytes: _Optional[int] = ..., disk_bytes: _Optional[int] = ..., wait_s: _Optional[float] = ..., loads_ahead: _Optional[int] = ..., samples: _Optional[int] = ...) -> None: ...

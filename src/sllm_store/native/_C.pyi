"""Native I/O core of sllm_store. Every call that blocks runs without the GIL."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

class NativeError(OSError):
    """A system call or a driver call failed. errno is set; `filename` names the file, if any."""

class CudaError(RuntimeError):
    """A CUDA driver call failed. args = (message, code); code 2 is out of memory."""

class Cancelled(RuntimeError):
    """The Control given to a call was cancelled before the call finished."""

def crc32c(address: int, size: int) -> int:
    """CRC-32C (Castagnoli, RFC 3720) of memory."""

def crc32c_combine(first: int, second: int, second_size: int) -> int:
    """The CRC-32C of two pieces of memory one after the other, from theirs."""

@final
class Control:
    """Shared by a running call and those who watch it: progress, cancellation, waiting."""

    def __init__(self) -> None: ...
    def cancel(self) -> None: ...
    @property
    def cancelled(self) -> bool: ...
    @property
    def bytes_done(self) -> int:
        """Bytes that reached their final place (the device, or memory where there is no copy)."""
    def wait(self, above_bytes: int, timeout_s: float) -> int:
        """Return bytes_done once it exceeds above_bytes, or after timeout_s."""

@final
class File:
    """A data file open for reading, with a direct (O_DIRECT) descriptor when the file system allows."""

    def __init__(self, path: str) -> None: ...
    @property
    def path(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def direct_alignment(self) -> int:
        """Alignment that direct reads need of offset, size and memory; 0 where there are none."""
    def resident_bytes(self, offset: int, size: int) -> int:
        """How many bytes of a range the page cache holds (cachestat, else mincore)."""
    def evict(self) -> None:
        """Ask the kernel to drop the file's clean pages (posix_fadvise DONTNEED)."""
    def read_into(self, offset: int, address: int, size: int) -> None:
        """Plain buffered read of exactly size bytes; NativeError if the file is too short."""

@final
class Tuner:
    """Learns from the bytes that arrive how a disk is best asked for them.

    A setting is (threads, requests in flight over all threads, bytes of one). The search climbs:
    it compares windows of the best setting with windows of a neighbour (one number doubled or
    halved, or two in turn), and keeps what wins clearly.
    """

    def __init__(
        self,
        *,
        queued: bool,
        start: tuple[int, int, int],
        rate: float = 0.0,
        refused: Sequence[tuple[int, int, int, float]] = (),
        learns: bool = True,
    ) -> None:
        """queued: a thread keeps several requests in flight, else one, and depth is threads.
        start, rate and refused are what an earlier one had as best, rate and refused. Without
        `learns` the setting stays. ValueError for a setting that no search reaches."""
    @property
    def queued(self) -> bool: ...
    @property
    def setting(self) -> tuple[int, int, int]:
        """What to run now."""
    @property
    def best(self) -> tuple[int, int, int]: ...
    @property
    def rate(self) -> float:
        """Bytes per second of the best setting; 0 before it was measured."""
    @property
    def refused(self) -> list[tuple[int, int, int, float]]:
        """Neighbours of the best setting that were no better, and their share of its rate."""
    @property
    def settled(self) -> bool:
        """Whether all neighbours were refused. Even then one is tried again now and then."""
    @property
    def windows(self) -> int:
        """Windows measured by this object."""
    def begin(self, threads_max: int) -> None:
        """A transfer starts. While several run, nothing is learnt."""
    def end(self) -> None: ...
    def add(self, size: int, now_s: float) -> bool:
        """Bytes have come from the disk. Returns whether the setting has changed."""
    def interrupt(self) -> bool:
        """Something other than the disk held the reads up. Returns whether the setting has changed:
        one on trial is put off until the best one was measured again."""

def has_queues(mode: str) -> bool:
    """Whether reads from a disk in this mode are queued (io_uring) rather than made one by one."""

class TransferReport:
    """What a transfer did."""

    bytes_direct: int
    bytes_buffered: int
    bytes_copied: int
    @property
    def setting(self) -> tuple[int, int, int]:
        """How the disk was asked at the end: see Tuner."""
    read_s: float
    copy_s: float
    total_s: float

class LinkStock:
    """What transfers need of GPUs beside the memory they fill (streams, events, memory that bytes
    pass through), kept for the next ones: at most 256 MiB for each GPU's link."""

    def __init__(self) -> None: ...
    @property
    def idle(self) -> int:
        """Links whose needs are kept."""

class Reads:
    """The reads of transfers, parsed once."""

    def __init__(self, reads: Sequence[tuple[int, int, int, int, int]]) -> None: ...
    def __len__(self) -> int: ...

def are_resident(files: Sequence[File], ranges: Sequence[tuple[int, int, int]]) -> list[bool]:
    """Whether the page cache holds half of each range (file, offset, size) at least."""

def run_transfer(
    files: Sequence[File],
    steps: Sequence[tuple[int, int]],
    reads: Reads | Sequence[tuple[int, int, int, int, int]],
    copies: Sequence[tuple[int, int, int, int, int]],
    devices: Sequence[tuple[int, int] | tuple[int, int, Sequence[int]]],
    *,
    decodes: Sequence[tuple[int, int, int, int, int, int]] = (),
    mode: str,
    threads: int,
    control: Control,
    tuner: Tuner | None = None,
    stock: LinkStock | None = None,
    meanwhile: Callable[[], object] | None = None,
    watch: Callable[[], object] | None = None,
) -> TransferReport:
    """Move bytes from files through memory to devices; the work horse of every load.

    steps:   (buffer_address, after): a piece of host memory, or of device memory where the step
             has no reads (its copies then go from device to device); `after` is the index of an
             earlier step whose device copies must be complete before this step's buffer is
             overwritten, or -1.
    reads:   (step, file, file_offset, size, step_offset), sorted by step. A step without reads has
             its bytes already.
    copies:  (step, device, device_offset, size, step_offset), sorted by step.
    devices: (device ordinal, base address of the destination arena on it), or (ordinal, base, via):
             the GPUs in `via` lend their links, and pass on over peer access what comes through
             them; CudaError where one cannot reach the target. Ordinal -1 is memory of this
             process: the workers copy to it and decode into it.
    decodes: (step, device, device_offset, raw_size, stored_size, step_offset), sorted by step:
             coded segments in the step's buffer, decoded on the device into its arena. On a GPU,
             places in the buffer and in the arena are multiples of 16, and at most 128 MiB of its
             memory are used meanwhile. A corrupt segment raises NativeError (EBADMSG) naming its
             step, its place and, where the step reads it, the file.
    mode:    'auto' (per range: page cache when resident, else direct), 'buffered', 'direct'
             (threads), 'io_uring', 'cufile'. 'auto' falls back by itself; a forced mode that is not
             available raises NativeError(EOPNOTSUPP). With 'cufile', a step that only copies to
             GPUs has its bytes read straight into their memory: its buffer is neither read nor
             written, and what its copies take but no read brings is left as it is. Such bytes count
             as direct ones, not as copied. All else is read as with 'auto'.
    tuner:   of the disk with the files; without one a setting that suits most disks is kept.
    stock:   where links take from what they need of GPUs, and put it when all went well; without
             one it is made for this transfer alone.
    meanwhile, watch: called by the thread that called, while the transfer has another one:
             meanwhile once, then watch ten times a second. When one of them raises, or a signal's
             handler does, the transfer is cancelled, and that is raised when it has ended.
    Steps without reads that wait for nothing are sent first, and take no worker. The others start
    in order; `threads` (1 to 64) workers read, and share big steps. Each step is sent as soon as its
    reads are done: steps may overtake one another unless `after` says otherwise. bytes_done and
    bytes_copied count bytes as they arrive, decoded. Returns when every copy has completed.
    On the first error, or cancellation, waits for the operations in flight (no buffer is touched
    afterwards), then raises NativeError (a short read is errno EIO with a message naming file,
    offset and both sizes), CudaError or Cancelled.
    """

def checksum_ranges(
    file: File, ranges: Sequence[tuple[int, int]], *, mode: str, threads: int, control: Control
) -> list[int]:
    """CRC-32C of each (offset, size) of a file."""

SEGMENT_BYTES: int
"""What one segment of coded 16-bit floats holds at most, before coding."""

def encode_segments_into(
    pieces: Sequence[tuple[int, int, int]], *, threads: int, control: Control
) -> list[int]:
    """Code each (address, size, destination), of at most SEGMENT_BYTES, as a segment of 16-bit
    floats into the destination, which has room for size bytes. Returns the coded sizes, 0 for a
    piece that does not get smaller by a sixteenth; what its destination holds then means nothing.
    control.bytes_done counts sizes before coding."""

def decode_segment(address: int, stored_size: int, destination: int, raw_size: int) -> None:
    """Decode one segment; NativeError (EBADMSG) unless it is whole, and of raw_size bytes."""

def prepare_decoder(device: int) -> None:
    """Load the kernel that decodes into a GPU, which takes tenths of a second: now, rather than when
    it is first needed."""

def decode_segments_on_device(device: int, segments: Sequence[tuple[int, int, int, int]]) -> None:
    """Decode segments in device memory: (address, stored_size, destination, raw_size) each, with
    addresses that are multiples of 16. NativeError (EBADMSG) if one is corrupt; then nothing is
    known of any destination."""

def instruction_sets() -> list[str]:
    """The ways to multiply that this processor has, the fastest first: 'avx512', 'avx2' or
    'portable'. All of them give the same bits."""

def attend(
    query: tuple[int, int],
    cache: Sequence[tuple[int, int]],
    places: tuple[int, int],
    shape: tuple[int, int, int],
    out: tuple[int, int],
    threads: int,
) -> None:
    """Softmax attention of one token in float32: cache is keys and values, places are int64, shape
    is (heads, heads of the cache, width), a width of whole sixteens. ValueError for what does not
    fit. Memory is (address, size in bytes)."""

@final
class StoredRows:
    """A matrix in memory whose rows are stored as few bytes. It does not keep that memory.

    Memory is (address, size in bytes). ValueError for a size that does not fit.
    """

    @staticmethod
    def of(
        scheme: str, *, rows: int, columns: int, data: tuple[int, int], instructions: str = ""
    ) -> StoredRows:
        """scheme: GGUF's Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K or Q6_K; float16 or bfloat16.
        instructions: one of instruction_sets(); the fastest unless told."""
    @staticmethod
    def of_affine(
        *,
        rows: int,
        columns: int,
        group: int,
        scale_type: str,
        memories: Sequence[tuple[int, int]],
        instructions: str = "",
    ) -> StoredRows:
        """memories: the words, the scales and the biases, of scale_type float16, bfloat16 or
        float32; group is 64 or 128."""
    def multiply(self, x: tuple[int, int], tokens: int, out: tuple[int, int], threads: int) -> None:
        """Write x times the transpose, (tokens, rows) from (tokens, columns), both float32. A
        number depends on its row and its token alone, in every bit."""
    def decode(self, rows: tuple[int, int], out: tuple[int, int]) -> None:
        """Write some rows as float32; `rows` are their numbers, as int64."""

@final
class DecoderLayer:
    """A layer's attention and gated MLP over float32 states. It does not keep the weights' memory.

    Memory is (address, size in bytes). ValueError for a size that does not fit.
    """

    @staticmethod
    def of(
        matrices: Mapping[str, StoredRows],
        vectors: Mapping[str, tuple[int, int]],
        shape: Mapping[str, int],
        *,
        interleaved: bool,
        epsilon: float,
    ) -> DecoderLayer:
        """matrices: query, key, value, output, gate, up, down. vectors: attention_norm, mlp_norm;
        query_norm, key_norm and biases (query_bias, say) where there are some. shape: hidden,
        heads, kv_heads, width, rotated, window (0 for none)."""
    def begin(
        self,
        x: tuple[int, int],
        *,
        rotation: tuple[tuple[int, int], tuple[int, int]],
        cache: tuple[tuple[int, int], tuple[int, int]],
        written: tuple[int, int],
        query: tuple[int, int],
        threads: int,
    ) -> None:
        """Write rotated queries, and keys and values to the places `written` of the cache.
        rotation: cosines and sines, (tokens, rotated / 2)."""
    def attend(
        self,
        query: tuple[int, int],
        cache: tuple[tuple[int, int], tuple[int, int]],
        *,
        spans: Sequence[tuple[int, int, tuple[int, int]]],
        mixed: tuple[int, int],
        threads: int,
    ) -> None:
        """Write what spans attend to; a span is its first row, how many it has, and all places it
        sees, its own last."""
    def finish(self, x: tuple[int, int], mixed: tuple[int, int], threads: int) -> None:
        """Add what attention and MLP say to x."""

@final
class FileWriter:
    """Writes one new file: direct I/O where possible, several threads, explicit errors.

    The destination must not exist. write() may be called many times with disjoint ranges, in
    ascending order of offset; gaps are zeros.
    """

    def __init__(
        self, path: str, *, threads: int, direct: bool, tuner: Tuner | None = None
    ) -> None:
        """threads fill and sum blocks; how many go to the disk at once is the tuner's, which is
        that of the disk for writes. Without one a setting that suits most disks is kept."""
    def write(self, pieces: Sequence[tuple[int, int, int]], control: Control) -> list[int]:
        """pieces: (file_offset, address, size), ascending, disjoint. Returns each piece's CRC-32C.
        Raises NativeError (ENOSPC and so on) with the path, also for what an earlier call left to
        be written. The memory may be reused on return."""
    def finish(self, total_size: int) -> None:
        """Write what is buffered, wait for it, set the exact length, fsync and close."""
    def abort(self) -> None:
        """Close without more writing; the caller removes the file."""

@final
class HostBuffer:
    """Anonymous memory, page aligned, transparent huge pages where allowed, zeroed.
    With pinned=True it is registered with the driver (CudaError if there is none)."""

    def __init__(self, size: int, *, pinned: bool = False) -> None: ...
    @property
    def address(self) -> int: ...
    @property
    def size(self) -> int: ...
    def populate(self, threads: int) -> None:
        """Fault every page in, with several threads."""
    def __dlpack__(self, **kwargs: Any) -> Any: ...
    def __dlpack_device__(self) -> tuple[int, int]: ...

@final
class ReadQueue:
    """Reads that are asked for ahead and go on while whoever asked computes, without a thread:
    directly from the disk, or by the kernel's threads what the page cache has."""

    def __init__(self, files: Sequence[File], *, in_turns: bool) -> None:
        """in_turns: the disk has one request at a time. One that says what is done only once it
        has nothing more to do is better asked so. NativeError (EOPNOTSUPP) where the kernel has no
        io_uring with deadlines."""
    def begin(
        self, reads: Sequence[tuple[int, int, int, int]], buffer: HostBuffer, start: int = 0
    ) -> int:
        """Begin to read each (file, file_offset, size, place) to start + place in the buffer;
        returns a number to wait for. The buffer lives until then. What is behind the end of a read, up to the end of
        its page, may be written too."""
    def wait(self, number: int, timeout_s: float) -> bool:
        """Return whether all of a number's reads are done in time; NativeError if one failed. After
        True or an error the number is forgotten."""
    def drain(self) -> None:
        """Wait for all reads, and forget them."""

@final
class SharedPool:
    """A sealed-size memfd mapped shared: the host tier's memory. Huge pages where allowed."""

    def __init__(self, size: int) -> None: ...
    @property
    def address(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def pinned(self) -> bool: ...
    def read_only_fd(self) -> int:
        """A new descriptor of the same memory opened read-only (owned by the caller): a client
        that maps it privately gets copy-on-write and can never change the pool."""
    def populate(self, threads: int) -> None: ...
    def pin(self) -> None:
        """Register with the CUDA driver (CudaError if there is none). Idempotent."""

@final
class PoolMapping:
    """Chunks of a SharedPool of another process, mapped privately and contiguously."""

    def __init__(
        self, fd: int, chunk_size: int, chunks: Sequence[int], size: int, *, lease: int = -1
    ) -> None:
        """chunks: indices of chunk_size pieces of the fd, in order; size: bytes used in all.
        lease: a descriptor to duplicate, and to close once the last view is gone."""
    @property
    def address(self) -> int: ...
    @property
    def size(self) -> int: ...
    def __dlpack__(self, **kwargs: Any) -> Any: ...
    def __dlpack_device__(self) -> tuple[int, int]: ...

@final
class DeviceBuffer:
    """Device memory of its own (cuMemAlloc), exportable by CUDA IPC, freed with its last view."""

    def __init__(self, device: int, size: int) -> None: ...
    @property
    def device(self) -> int: ...
    @property
    def address(self) -> int: ...
    @property
    def size(self) -> int: ...
    def ipc_handle(self) -> bytes: ...
    def __dlpack__(self, **kwargs: Any) -> Any: ...
    def __dlpack_device__(self) -> tuple[int, int]: ...

@final
class DeviceMapping:
    """Another process's device memory, opened from its 64-byte CUDA IPC handle."""

    def __init__(self, device: int, handle: bytes, *, lease: int = -1) -> None:
        """lease: a descriptor to duplicate, and to close once the last view is gone, the device
        idle and the memory unmapped."""
    @property
    def device(self) -> int: ...
    @property
    def address(self) -> int: ...
    @property
    def size(self) -> int:
        """Size of the allocation behind the handle (cuMemGetAddressRange)."""
    def __dlpack__(self, **kwargs: Any) -> Any: ...
    def __dlpack_device__(self) -> tuple[int, int]: ...

def cuda_available() -> bool: ...
def cuda_unavailable_reason() -> str:
    """Empty when available; otherwise which library or call failed."""

def cufile_unavailable_reason() -> str:
    """Empty when cuFile can be used; otherwise why not. The first call opens it: that may take
    seconds, and makes a context on every device."""

def device_count() -> int: ...
def enable_peer_access(device: int, peer: int) -> bool:
    """Let copies by `device` reach the memory of `peer` directly, in this process, from now on.
    False where the machine does not offer it."""

def device_uuid(device: int) -> str:
    """'xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx', lower case, without 'GPU-'."""

def device_name(device: int) -> str: ...
def device_memory(device: int) -> tuple[int, int]:
    """(free, total) bytes."""

def copy_from_device(device: int, device_address: int, address: int, size: int) -> None:
    """Synchronous copy to host memory."""

def copy_to_device(device: int, address: int, device_address: int, size: int) -> None: ...
def probe(path: str) -> dict[str, Any]:
    """What this kernel and the file system of `path` (a directory) allow, for `doctor`:
    io_uring (bool) and io_uring_reason, direct_alignment (int), cachestat (bool),
    huge_pages (str), kernel (str), file_system (str)."""

// Runs the native core hard, without Python, for a sanitizer to watch. Exits with 0 when every
// byte was right. Arguments: a scratch directory, the number of rounds.
#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "codec/block_decoder.hpp"
#include "codec/codec.hpp"
#include "io/checksum.hpp"
#include "io/control.hpp"
#include "io/crc32c.hpp"
#include "io/errors.hpp"
#include "io/file.hpp"
#include "io/page_cache.hpp"
#include "io/probe.hpp"
#include "io/transfer.hpp"
#include "io/write_queue.hpp"
#include "io/writer.hpp"
#include "pool/host_memory.hpp"
#include "shim/cuda_device.hpp"
#include "shim/cuda_memory.hpp"
#include "stress_deliveries.hpp"
#include "stress_products.hpp"

namespace {

using namespace sllm;

void require(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "stress: %s\n", what);
  std::abort();
}

std::vector<std::byte> random_bytes(std::size_t size, unsigned seed) {
  std::mt19937_64 engine(seed);
  std::vector<std::byte> bytes(size + 8);
  for (std::size_t at = 0; at < size; at += 8) {
    const std::uint64_t word = engine();
    std::memcpy(bytes.data() + at, &word, sizeof(word));
  }
  bytes.resize(size);
  return bytes;
}

std::int64_t number(const std::byte* address) {
  return static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(address));
}

std::vector<io::ReadMode> available_modes(const std::string& directory) {
  const io::Probe probe = io::probe(directory);
  std::vector<io::ReadMode> modes{io::ReadMode::kAuto, io::ReadMode::kBuffered};
  if (probe.direct_alignment != 0) modes.push_back(io::ReadMode::kDirect);
  if (probe.io_uring) modes.push_back(io::ReadMode::kUring);
  return modes;
}

void check_checksums(const std::vector<std::byte>& bytes) {
  for (std::size_t offset = 0; offset < 9; ++offset) {
    for (std::size_t size : {0, 1, 7, 8, 255, 768, 4096, 24576, 24577, 100000}) {
      const std::uint32_t fast = io::crc32c(0, bytes.data() + offset, size);
      require(fast == io::crc32c_portable(0, bytes.data() + offset, size), "crc32c differs");
      const std::uint32_t head = io::crc32c(0, bytes.data() + offset, size / 3);
      const std::uint32_t tail = io::crc32c(0, bytes.data() + offset + size / 3, size - size / 3);
      require(io::crc32c_combine(head, tail, size - size / 3) == fast, "combine differs");
      require(io::crc32c(head, bytes.data() + offset + size / 3, size - size / 3) == fast,
              "a continued crc differs");
    }
  }
}

void write_file(const std::string& path, const std::vector<std::byte>& bytes) {
  ::unlink(path.c_str());
  io::Control control;
  io::FileWriter writer(path, 4, true, nullptr);
  const auto third = static_cast<std::int64_t>(bytes.size() / 3);
  const auto size = static_cast<std::int64_t>(bytes.size());
  const auto first = writer.write({{0, number(bytes.data()), third}}, control);
  require(first[0] == io::crc32c(0, bytes.data(), static_cast<std::size_t>(third)),
          "the writer's crc differs");
  writer.write({{third, number(bytes.data()) + third, 1},
                {third + 1, number(bytes.data()) + third + 1, size - third - 1}},
               control);
  writer.finish(size);
}

// A write that fails in the background is an error of what comes after it.
void fail_to_write(const std::string& path) {
  const Descriptor file(::open(path.c_str(), O_RDONLY));
  const auto refuse = [&](const std::byte*, std::uint64_t, std::uint64_t) {
    throw SystemError(EBADF, "cannot write", path);
  };
  const auto queue = io::WriteQueue::create(file.get(), 2, nullptr, refuse);
  if (queue == nullptr) return;  // no io_uring here
  bool failed = false;
  try {
    for (std::uint64_t i = 0; i < 100; ++i) {
      io::AlignedMemory slab = queue->take_slab();
      std::memset(slab.get(), 1, io::WriteQueue::kSlabSize);
      queue->push(std::move(slab), i * io::WriteQueue::kSlabSize);
    }
    queue->drain();
  } catch (const SystemError& error) {
    failed = error.code == EBADF;
  }
  require(failed, "a write that failed was not reported");
}

// Reads a file through a ring of buffers to both devices, in steps of odd sizes.
void load(const std::shared_ptr<const io::File>& file, const std::vector<std::byte>& expected,
          io::ReadMode mode, unsigned seed, bool cancel) {
  std::mt19937 engine(seed);
  constexpr std::int64_t kChunk = 700 << 10;
  constexpr std::int64_t kSlots = 3;
  const pool::HostBuffer ring(kSlots * kChunk, seed % 2 == 0);
  const auto size = static_cast<std::int64_t>(file->size());
  const cuda::DeviceBuffer arenas[] = {{0, file->size()}, {1, file->size()}};
  io::TransferRequest request;
  request.files = {file};
  request.mode = mode;
  request.threads = 1 + seed % 7;
  if (mode == io::ReadMode::kAuto || mode == io::ReadMode::kUring) {
    static const auto tuner =
        std::make_shared<io::Tuner>(io::has_queues(mode), io::IoSetting{1, 1, 128 << 10}, 0,
                                    std::vector<io::RefusedSetting>{}, true);
    request.tuner = tuner;
  }
  for (const auto& arena : arenas) {
    request.devices.push_back({arena.device(), static_cast<std::int64_t>(arena.address())});
  }
  for (std::int64_t offset = 0, step = 0; offset < size; ++step) {
    const std::int64_t length =
        std::min<std::int64_t>(size - offset, 1 + static_cast<std::int64_t>(engine() % kChunk));
    request.steps.push_back(
        {ring.address() + step % kSlots * kChunk, step >= kSlots ? step - kSlots : -1});
    request.reads.push_back({step, 0, offset, length, 0});
    request.copies.push_back({step, 0, offset, length, 0});
    request.copies.push_back({step, 1, offset, length, 0});
    offset += length;
  }
  io::Control control;
  std::jthread canceller;
  if (cancel) {
    canceller = std::jthread([&] {
      control.wait(engine() % file->size(), std::chrono::duration<double>(5));
      control.cancel();
    });
  }
  try {
    io::run_transfer(request, control);
  } catch (const CancelledError&) {
    require(cancel, "cancelled by nobody");
    return;
  }
  std::vector<std::byte> found(expected.size());
  for (const auto& arena : arenas) {
    cuda::copy_to_host(arena.device(), arena.address(), found.data(), found.size());
    require(found == expected, "the device holds other bytes");
  }
}

void check_ranges(const std::shared_ptr<const io::File>& file,
                  const std::vector<std::byte>& expected, io::ReadMode mode) {
  io::Control control;
  const auto half = static_cast<std::int64_t>(expected.size() / 2);
  const auto crcs = io::checksum_ranges(file, {{0, half}, {3, half}}, mode, 3, control);
  require(crcs[0] == io::crc32c(0, expected.data(), static_cast<std::size_t>(half)),
          "a range's crc differs");
  require(crcs[1] == io::crc32c(0, expected.data() + 3, static_cast<std::size_t>(half)),
          "an unaligned range's crc differs");
}

// Both ways to ask the page cache must agree on a file that nobody else uses.
void check_residency(const io::File& file) {
  for (const std::uint64_t offset : {0, 1, 4095, 4096, 1 << 20}) {
    for (const std::uint64_t size : {0, 1, 4096, 10000, 3 << 20}) {
      const std::int64_t fast = io::resident_by_cachestat(file.buffered_fd(), offset, size);
      const std::int64_t slow = io::resident_by_mincore(file.buffered_fd(), offset, size);
      require(fast < 0 || fast == slow, "cachestat and mincore differ");
    }
  }
}

void fail_in_the_middle(const std::string& path, io::ReadMode mode) {
  auto file = std::make_shared<const io::File>(path);
  const pool::HostBuffer memory(static_cast<std::int64_t>(file->size()), false);
  require(::truncate(path.c_str(), static_cast<off_t>(file->size() / 2 + 5)) == 0, "truncate");
  io::TransferRequest request;
  request.files = {file};
  request.mode = mode;
  request.threads = 4;
  request.steps = {{memory.address(), -1}};
  request.reads = {{0, 0, 0, static_cast<std::int64_t>(file->size()), 0}};
  io::Control control;
  try {
    io::run_transfer(request, control);
  } catch (const SystemError& error) {
    require(error.code == EIO, "another error");
    return;
  }
  require(false, "a truncated file was read");
}

void share_memory() {
  pool::SharedPool shared(16 << 20);
  shared.populate(3);
  shared.pin();
  std::memset(shared.address(), 0x5A, shared.size());
  const Descriptor fd(shared.read_only_fd());
  std::vector<std::jthread> clients;
  for (int i = 0; i < 4; ++i) {
    clients.emplace_back([&] {
      const pool::PoolMapping view(fd.get(), 1 << 20, {3, 4, 9}, 3 << 20);
      std::memset(view.address(), 0, view.size());
    });
  }
  clients.clear();
  require(shared.address()[3 << 20] == std::byte{0x5A}, "a client changed the pool");
}

// Words whose exponents take few values, as those of weights do.
std::vector<std::byte> random_weights(std::size_t size, unsigned seed) {
  std::mt19937 engine(seed);
  std::geometric_distribution<unsigned> exponent(0.5);
  std::vector<std::byte> bytes(size + 2);
  for (std::size_t at = 0; at < size; at += 2) {
    const unsigned word = engine() % 2 << 15 | (120 - exponent(engine)) << 7 | engine() % 128;
    const auto narrow = static_cast<std::uint16_t>(word);
    std::memcpy(bytes.data() + at, &narrow, sizeof(narrow));
  }
  bytes.resize(size);
  bytes.shrink_to_fit();  // so that its end is the memory's
  return bytes;
}

bool is_sound(const std::vector<std::byte>& stored, std::vector<std::byte>& raw,
              codec::DecodeGroups decode_groups) {
  try {
    codec::decode_segment_with(decode_groups, stored, raw);
  } catch (const SystemError& error) {
    require(error.code == EBADMSG, "another error of the codec");
    return false;
  }
  return true;
}

void code_segments(unsigned seed) {
  std::mt19937 engine(seed);
  std::vector<std::vector<std::byte>> raws;
  std::vector<std::vector<std::byte>> stored;
  std::vector<codec::EncodePiece> pieces;
  for (const std::size_t size : {0, 1, 9001, 65536, 100003}) {
    raws.push_back(random_weights(size, engine()));
    stored.emplace_back(size);
  }
  for (std::size_t i = 0; i < raws.size(); ++i) pieces.push_back({raws[i], stored[i].data()});
  io::Control control;
  const auto sizes = codec::encode_segments(pieces, 3, control);
  for (std::size_t i = 0; i < raws.size(); ++i) {
    if (sizes[i] == 0) continue;
    stored[i].resize(sizes[i]);
    stored[i].shrink_to_fit();
    std::vector<std::byte> fast(raws[i].size());
    std::vector<std::byte> plain(raws[i].size());
    for (int spoilt = 0; spoilt < 30; ++spoilt) {
      const bool sound = is_sound(stored[i], fast, codec::fastest_decode_groups());
      require(sound == is_sound(stored[i], plain, codec::decode_groups_portable) &&
                  (!sound || fast == plain),
              "the decoders differ");
      require(spoilt != 0 || (sound && fast == raws[i]), "a decoded segment differs");
      stored[i][engine() % stored[i].size()] ^= static_cast<std::byte>(1U << engine() % 8);
    }
  }
  require(sizes.back() != 0, "weights were not coded");
}

}  // namespace

int main(int argc, char** argv) {
  require(argc == 3, "usage: stress DIRECTORY ROUNDS");
  const std::string directory = argv[1];
  const int rounds = std::atoi(argv[2]);
  const auto bytes = random_bytes((5 << 20) + 4321, 1);
  check_checksums(bytes);
  const std::string path = directory + "/data";
  write_file(path, bytes);
  fail_to_write(path);
  const auto file = std::make_shared<const io::File>(path);
  const auto modes = available_modes(directory);
  check_residency(*file);
  std::vector<std::byte> content(bytes.size());
  file->read_exactly(0, content.data(), content.size());
  require(content == bytes, "a plain read differs");
  check_residency(*file);
  const auto stock = std::make_shared<lanes::LinkStock>();
  for (int round = 0; round < rounds; ++round) {
    std::vector<std::jthread> loads;
    for (std::size_t i = 0; i < modes.size(); ++i) {
      const auto seed = static_cast<unsigned>(round * 10) + static_cast<unsigned>(i);
      file->evict();
      loads.emplace_back([&, i, seed] { load(file, bytes, modes[i], seed, seed % 3 == 0); });
    }
    loads.clear();
    for (const io::ReadMode mode : modes) check_ranges(file, bytes, mode);
    share_memory();
    code_segments(static_cast<unsigned>(round));
    stress_products(static_cast<unsigned>(round));
    for (int i = 0; i < 3; ++i) {
      loads.emplace_back(
          [&, i] { stress_deliveries(directory, static_cast<unsigned>(round * 3 + i), stock); });
    }
    loads.clear();
  }
  for (const io::ReadMode mode : modes) {
    write_file(path + "-short", bytes);
    fail_in_the_middle(path + "-short", mode);
  }
  return 0;
}

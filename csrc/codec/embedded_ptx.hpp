// The PTX of decode_segments.cu, as text in the library.
#pragma once

namespace sllm::codec {

extern const char kDecodeSegmentsPtx[];

}  // namespace sllm::codec

#pragma once

// Bytes of any number in a saved state: how many there are, and then they.

#include "llama-io.h"

#include <algorithm>
#include <cstdint>
#include <vector>

inline void llama_triattn_write_bytes(llama_io_write_i & io, const std::vector<uint8_t> & data) {
    const uint64_t size = data.size();
    io.write(&size, sizeof(size));
    if (size > 0) {
        io.write(data.data(), size);
    }
}

inline std::vector<uint8_t> llama_triattn_read_bytes(llama_io_read_i & io) {
    std::vector<uint8_t> res;
    uint64_t size = 0;
    io.read(&size, sizeof(size));
    while (size > 0) {
        const size_t n = std::min<uint64_t>(size, 1 << 20); // no more memory than there are bytes, whatever a damaged state says
        res.resize(res.size() + n);
        io.read(res.data() + res.size() - n, n);
        size -= n;
    }
    return res;
}

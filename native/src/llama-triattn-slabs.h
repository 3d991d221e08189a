#pragma once

// A file of slabs of the store, so that another process has them too. Slabs are only ever added; how a slab lies in memory is how it
// lies in the file, so that opening is mapping.
//
//     header, 64 KiB:  magic | version | id | bytes of a slab | layout (how rows lie, and of which model)
//     slab by slab, each with a tail of 64 KiB:  its rows | magic | id of the file | number of the slab | rows of each stripe (0 to 16)
//
// A stripe is what a block of 16 tokens fills in a slab. Rows that a tail counts are never written again: a state that names
// them finds them as they were. Whoever adds to a file holds it alone. Nothing is synced here: that is for who writes the state.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

class llama_triattn_slab_file {
public:
    // Opens a file, or makes one where there is none and `make`. Throws std::runtime_error: it cannot be opened, another program adds to it, it is none, or
    // its rows lie otherwise.
    llama_triattn_slab_file(const std::string & path, const std::string & layout, size_t slab_size, uint32_t n_stripes, bool make);
    ~llama_triattn_slab_file();

    llama_triattn_slab_file(const llama_triattn_slab_file &) = delete;

    uint64_t id() const { return file_id; }

    // the file at the path is still this one
    bool is_at(const std::string & path) const;

    // Number of a new slab, all of whose rows are undefined; -1: the disk is full.
    int32_t add();

    // Bytes of a slab, and then how many rows of each stripe are there. False: the disk is full.
    bool write     (int32_t i_slab, size_t offset, const uint8_t * data, size_t size);
    bool write_tail(int32_t i_slab, const std::vector<uint8_t> & n_rows);

    // The slab in memory, and how many rows of each stripe it has. What is written there is not written to the file. nullptr: it is not whole.
    std::shared_ptr<uint8_t> map(int32_t i_slab, std::vector<uint8_t> & n_rows) const;

private:
    const size_t   slab_size;
    const uint32_t n_stripes;

    int      fd      = -1;
    uint64_t file_id = 0;
    int32_t  n_slabs = 0;

    uint64_t offset_of(int32_t i_slab) const;
};

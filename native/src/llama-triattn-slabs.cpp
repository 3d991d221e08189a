#include "llama-triattn-slabs.h"

#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <random>
#include <stdexcept>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static const uint64_t MAGIC_FILE = 0x424c534e54544952; // "RITTNSLB"
static const uint64_t MAGIC_TAIL = 0x4c4941544e545452; // "RTTNTAIL"
static const uint32_t VERSION    = 1;

static const size_t PAGE = 64 << 10; // pages of all systems divide it

struct header {
    uint64_t magic;
    uint32_t version;
    uint32_t n_layout;
    uint64_t id;
    uint64_t slab_size;
};

struct tail {
    uint64_t magic;
    uint64_t id;
    uint64_t i_slab;
};

// pwrite or pread until all is done
template <typename F, typename T>
static bool transfer(F fn, int fd, T * data, size_t size, uint64_t offset) {
    while (size > 0) {
        const ssize_t n = fn(fd, data, size, (off_t) offset);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            return false;
        }
        data   += n;
        offset += n;
        size   -= n;
    }
    return true;
}

static bool write_all(int fd, const void * data, size_t size, uint64_t offset) {
    return transfer(pwrite, fd, (const uint8_t *) data, size, offset);
}

static bool read_all(int fd, void * data, size_t size, uint64_t offset) {
    return transfer(pread, fd, (uint8_t *) data, size, offset);
}

static void require(bool ok, const std::string & path, const std::string & why) {
    if (!ok) {
        throw std::runtime_error(path + ": " + why);
    }
}

llama_triattn_slab_file::llama_triattn_slab_file(
        const std::string & path, const std::string & layout, size_t slab_size, uint32_t n_stripes, bool make) :
    slab_size(slab_size), n_stripes(n_stripes) {
    fd = open(path.c_str(), O_RDWR | O_CLOEXEC | (make ? O_CREAT : 0), 0600);
    require(fd >= 0, path, std::string("cannot be opened: ") + strerror(errno));
    try {
        require(flock(fd, LOCK_EX | LOCK_NB) == 0, path, "another program has it open");

        struct stat status;
        require(fstat(fd, &status) == 0 && S_ISREG(status.st_mode), path, "is no file");

        header h = {};
        const bool is_begun = read_all(fd, &h, sizeof(h), 0) && h.magic != 0;
        if (!is_begun && status.st_size <= (off_t) PAGE) { // new, or whoever made it was stopped at once
            std::random_device device;
            h = { MAGIC_FILE, VERSION, (uint32_t) layout.size(), (uint64_t) device() << 32 | device() | 1, slab_size };
            require(write_all(fd, layout.data(), layout.size(), sizeof(h)) && write_all(fd, &h, sizeof(h), 0) && ftruncate(fd, PAGE) == 0,
                    path, std::string("cannot be written: ") + strerror(errno));
            status.st_size = PAGE;
        } else {
            require(is_begun && h.magic == MAGIC_FILE && status.st_size >= (off_t) PAGE, path, "holds no rows of a cold tier");
            require(h.version == VERSION, path, "its version is not known here");
            std::string there(h.n_layout == layout.size() ? h.n_layout : 0, '\0');
            require(read_all(fd, there.data(), there.size(), sizeof(h)) && there == layout && h.slab_size == slab_size, path,
                    "its rows are of another model, or lie otherwise (cache types, or less memory for the cold tier)");
        }
        file_id = h.id;
        n_slabs = (int32_t) ((status.st_size - PAGE)/(offset_of(1) - offset_of(0))); // what is cut off is no slab
    } catch (...) {
        close(fd);
        throw;
    }
}

llama_triattn_slab_file::~llama_triattn_slab_file() {
    close(fd);
}

uint64_t llama_triattn_slab_file::offset_of(int32_t i_slab) const {
    return PAGE + (uint64_t) i_slab*((slab_size + PAGE - 1)/PAGE*PAGE + PAGE);
}

bool llama_triattn_slab_file::is_at(const std::string & path) const {
    struct stat here, there;
    return fstat(fd, &here) == 0 && stat(path.c_str(), &there) == 0 && here.st_dev == there.st_dev && here.st_ino == there.st_ino;
}

int32_t llama_triattn_slab_file::add() {
    if (ftruncate(fd, (off_t) offset_of(n_slabs + 1)) != 0 || !write_tail(n_slabs, std::vector<uint8_t>(n_stripes, 0))) {
        return -1;
    }
    return n_slabs++;
}

bool llama_triattn_slab_file::write(int32_t i_slab, size_t offset, const uint8_t * data, size_t size) {
    return write_all(fd, data, size, offset_of(i_slab) + offset);
}

bool llama_triattn_slab_file::write_tail(int32_t i_slab, const std::vector<uint8_t> & n_rows) {
    std::vector<uint8_t> data(sizeof(tail) + n_stripes);
    const tail t = { MAGIC_TAIL, file_id, (uint64_t) i_slab };
    memcpy(data.data(), &t, sizeof(t));
    memcpy(data.data() + sizeof(t), n_rows.data(), n_stripes);
    return write_all(fd, data.data(), data.size(), offset_of(i_slab + 1) - PAGE);
}

std::shared_ptr<uint8_t> llama_triattn_slab_file::map(int32_t i_slab, std::vector<uint8_t> & n_rows) const {
    if (i_slab < 0 || i_slab >= n_slabs) {
        return nullptr;
    }
    std::vector<uint8_t> data(sizeof(tail) + n_stripes);
    if (!read_all(fd, data.data(), data.size(), offset_of(i_slab + 1) - PAGE)) {
        return nullptr;
    }
    tail t;
    memcpy(&t, data.data(), sizeof(t));
    if (t.magic != MAGIC_TAIL || t.id != file_id || t.i_slab != (uint64_t) i_slab) {
        return nullptr;
    }
    n_rows.assign(data.begin() + sizeof(t), data.end());

    const size_t size = slab_size;
    void * res = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, fd, (off_t) offset_of(i_slab));
    if (res == MAP_FAILED) {
        return nullptr;
    }
    return { (uint8_t *) res, [size](uint8_t * p) { munmap(p, size); } };
}

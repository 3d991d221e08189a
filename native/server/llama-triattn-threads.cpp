#include "llama-triattn-threads.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <string>
#include <utility>

#ifdef __linux__
#    include <sched.h>
#    include <unistd.h>
#endif

static const double LOOK_S = 0.25; // a scheduler's tick of 10 ms is little of it

// a core of which others use more than the one is left to them, and is used again once they use less than the other
static const double LEAVE     = 0.5;
static const double COME_BACK = 0.35;

static double now_s() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

#ifdef __linux__

// Processor seconds that all programs have used on the cores of this process, how many cores these are, and its own seconds.
static bool used(double & all_s, double & own_s, int32_t & n_cores) {
    cpu_set_t allowed;
    timespec  own = {};
    FILE *    file = std::fopen("/proc/stat", "re");
    if (!file || sched_getaffinity(0, sizeof(allowed), &allowed) != 0 || clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &own) != 0) {
        if (file) {
            std::fclose(file);
        }
        return false;
    }
    n_cores = 0;
    uint64_t ticks = 0;
    char     line[512];
    // the lines of the processors come first
    while (std::fgets(line, sizeof(line), file) && std::string(line, 3) == "cpu") {
        int cpu;
        unsigned long long user, nice, system, idle, iowait, irq, softirq, steal;
        const int n = std::sscanf(line, "cpu%d %llu %llu %llu %llu %llu %llu %llu %llu",
            &cpu, &user, &nice, &system, &idle, &iowait, &irq, &softirq, &steal);
        if (n == 9 && cpu >= 0 && cpu < CPU_SETSIZE && CPU_ISSET(cpu, &allowed)) {
            ticks += user + nice + system + irq + softirq + steal;
            n_cores++;
        }
    }
    std::fclose(file);
    all_s = double(ticks)/double(sysconf(_SC_CLK_TCK));
    own_s = double(own.tv_sec) + 1e-9*double(own.tv_nsec);
    return n_cores > 0;
}

#else

static bool used(double &, double &, int32_t &) {
    return false;
}

#endif

void llama_triattn_threads::attach(std::vector<llama_context *> all, int32_t n_threads, int32_t n_threads_batch) {
    const char * wanted = std::getenv("TRIATTN_YIELD_CORES");
    contexts     = std::move(all);
    n_most       = wanted && std::string(wanted) == "0" ? 0 : n_threads;
    n_most_batch = n_threads_batch > 0 ? n_threads_batch : n_threads;
    n_now        = std::max(n_most, n_most_batch);
    at_s         = now_s();
    if (n_now < 2 || !used(all_s, own_s, n_cores)) {
        n_most = 0;
    }
}

int32_t llama_triattn_threads::fitting(int32_t n_now, int32_t n_most, int32_t n_cores, double others_s, double past_s) {
    const double free = n_cores - std::max(others_s, 0.0)/past_s;
    int32_t fits = int32_t(std::max(free + LEAVE, 0.0));
    if (fits > n_now) {
        fits = std::max(n_now, int32_t(std::max(free + COME_BACK, 0.0)));
    }
    return std::min(std::max(fits, 1), n_most);
}

void llama_triattn_threads::follow() {
    const double past_s = now_s() - at_s;
    if (n_most < 1 || past_s < LOOK_S) {
        return;
    }
    const double all_before_s = all_s;
    const double own_before_s = own_s;
    if (!used(all_s, own_s, n_cores)) {
        return;
    }
    at_s += past_s;
    const double  others_s = (all_s - all_before_s) - (own_s - own_before_s);
    const int32_t n        = fitting(n_now, std::max(n_most, n_most_batch), n_cores, others_s, past_s);
    if (n != n_now) {
        n_now = n;
        for (llama_context * ctx : contexts) {
            llama_set_n_threads(ctx, std::min(n, n_most), std::min(n, n_most_batch));
        }
    }
}

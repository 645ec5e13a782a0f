// CUDA's execution model on a CPU, so that the very kernel sources run, and are checked for races, without a GPU.
//
// Each CUDA thread of a block is a fiber (a stack of its own, see swapcontext): it runs until it waits at a barrier, then the
// next one does. So a block of 1024 threads costs no more than its switches, and a run repeats exactly. (One system thread
// per CUDA thread with std::barrier was tried: on a busy machine a launch of a few blocks took minutes.)
//   __syncthreads      waits for all threads of the block; one that has returned no longer counts, as on a GPU
//   __syncwarp, __shfl wait for all threads of the warp, so only full masks are emulated
//   __shared__         static storage, shared by the block's threads; dynamic shared memory is filled with NaN before each
//                      block, so that reading what was never written shows
//   atomics            std::atomic_ref; acquire and release, stronger than CUDA's, because ThreadSanitizer knows no
//                      fences: a missing __threadfence is not found here
// Threads that wait for each other for ever (a barrier in a branch that not all take) end the launch with an error.
//
// Under -fsanitize=thread every fiber is a thread to ThreadSanitizer, ordered with others by barriers and atomics alone: two
// accesses that no barrier orders are reported as a data race, whatever order they happened to run in.
//
// Not emulated: the memory model of a GPU, textures, cooperative groups, blocks side by side (so no race between blocks).
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#define EDGE_SFDA_HOST 1
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static
#define DYNAMIC_SHARED(T, name) T* name = reinterpret_cast<T*>(edge_sfda_host::shared)
#define EDGE_SFDA_KERNEL(name) static const edge_sfda_host::Registration registration_of_##name{#name, &name}

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};

inline dim3 threadIdx, blockIdx, blockDim, gridDim;  // of the fiber that runs; launches take turns
constexpr int warpSize = 32;

#if defined(__SANITIZE_THREAD__)
extern "C" void* __tsan_create_fiber(unsigned flags);
extern "C" void* __tsan_get_current_fiber();
extern "C" void __tsan_switch_to_fiber(void* fiber, unsigned flags);
extern "C" void __tsan_acquire(void* at);
extern "C" void __tsan_release(void* at);
// For what all fibers touch by turns without being ordered: the emulation itself.
#define EDGE_SFDA_UNSEEN __attribute__((no_sanitize("thread"), noinline))
#else
inline void* __tsan_create_fiber(unsigned) { return nullptr; }
inline void* __tsan_get_current_fiber() { return nullptr; }
inline void __tsan_switch_to_fiber(void*, unsigned) {}
inline void __tsan_acquire(void*) {}
inline void __tsan_release(void*) {}
#define EDGE_SFDA_UNSEEN
#endif

namespace edge_sfda_host {

constexpr int max_threads = 1024;
constexpr std::size_t stack_bytes = 128 * 1024;
constexpr std::size_t max_shared_bytes = 48 * 1024;
constexpr unsigned unordered = 1;  // switching to a fiber orders nothing for ThreadSanitizer

alignas(16) inline unsigned char shared[max_shared_bytes];

struct Barrier {
    int expected = 0, arrived = 0;
    unsigned generation = 0;
    char order[2] = {};  // what ThreadSanitizer orders by, in turn: a late reader must not see the next round's writers
};

struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    void* seen_as = nullptr;  // by ThreadSanitizer
    dim3 index;
    int warp = 0, lane = 0;
    unsigned exchanges = 0;
    bool done = false;
};

struct State {
    Fiber fiber[max_threads];
    Fiber* current = nullptr;
    ucontext_t scheduler;
    void* scheduler_seen_as = nullptr;
    Barrier block;
    Barrier warp[max_threads / warpSize];
    int lanes[max_threads / warpSize];
    std::uint64_t slot[max_threads / warpSize][2][warpSize];
    bool progress = false;
    char block_starts, block_ends;  // what ThreadSanitizer orders blocks by
};
inline State& state() {
    static State* all = new State;  // never freed: fibers may be known to ThreadSanitizer until the end
    return *all;
}

EDGE_SFDA_UNSEEN inline void to_scheduler() {
    State& s = state();
    __tsan_switch_to_fiber(s.scheduler_seen_as, unordered);
    swapcontext(&s.current->context, &s.scheduler);
}

EDGE_SFDA_UNSEEN inline void release_if_complete(Barrier& barrier) {
    if (barrier.arrived < barrier.expected || barrier.arrived == 0) return;
    barrier.arrived = 0;
    ++barrier.generation;
    state().progress = true;
}

EDGE_SFDA_UNSEEN inline void wait(Barrier& barrier) {
    const unsigned generation = barrier.generation;
    __tsan_release(&barrier.order[generation & 1]);
    ++barrier.arrived;
    release_if_complete(barrier);
    while (barrier.generation == generation) to_scheduler();
    __tsan_acquire(&barrier.order[generation & 1]);
}

EDGE_SFDA_UNSEEN inline void leave(Barrier& barrier) {
    --barrier.expected;
    release_if_complete(barrier);
}

// Exchanges one value within the warp: publish, wait, read. Slots are used in turn, so that publishing again need not wait
// until all have read.
EDGE_SFDA_UNSEEN inline std::uint64_t exchange(std::uint64_t value, int source) {
    State& s = state();
    Fiber& me = *s.current;
    std::uint64_t* slot = s.slot[me.warp][me.exchanges++ & 1];
    slot[me.lane] = value;
    wait(s.warp[me.warp]);
    return source >= 0 && source < s.lanes[me.warp] ? slot[source] : value;
}

template <typename T>
T from_lane(T value, int source) {
    static_assert(sizeof(T) <= sizeof(std::uint64_t) && std::is_trivially_copyable_v<T>);
    std::uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof(T));
    bits = exchange(bits, source);
    std::memcpy(&value, &bits, sizeof(T));
    return value;
}

EDGE_SFDA_UNSEEN inline int my_lane() { return state().current->lane; }
EDGE_SFDA_UNSEEN inline bool is_lane(int lane) { return lane < state().lanes[state().current->warp]; }

using Call = std::function<void()>;
struct Entry {
    std::vector<std::size_t> sizes;  // of the parameters
    std::function<Call(void**)> bind;
};
inline std::map<std::string, Entry>& kernels() {
    static std::map<std::string, Entry> all;
    return all;
}

template <typename T>
T load(const void* at) {
    std::remove_cv_t<T> value;
    std::memcpy(static_cast<void*>(&value), at, sizeof(value));
    return value;
}

template <typename... A, std::size_t... I>
Call call_of(void (*kernel)(A...), void** args, std::index_sequence<I...>) {
    return [kernel, args] { kernel(load<A>(args[I])...); };
}

struct Registration {
    template <typename... A>
    Registration(const char* name, void (*kernel)(A...)) {
        kernels()[name] = {{sizeof(A)...},
                           [kernel](void** args) { return call_of(kernel, args, std::index_sequence_for<A...>{}); }};
    }
};

// What a fiber does: every block of the launch, and between them back to the scheduler.
inline const Call* running = nullptr;
EDGE_SFDA_UNSEEN inline void fiber_main() {
    State& s = state();
    for (;;) {
        __tsan_acquire(&s.block_starts);
        (*running)();
        __tsan_release(&s.block_ends);
        Fiber& me = *s.current;
        leave(s.warp[me.warp]);
        leave(s.block);
        me.done = s.progress = true;
        to_scheduler();
    }
}

EDGE_SFDA_UNSEEN inline void resume(Fiber& fiber) {
    State& s = state();
    s.current = &fiber;
    threadIdx = fiber.index;
    __tsan_switch_to_fiber(fiber.seen_as, unordered);
    swapcontext(&s.scheduler, &fiber.context);
}

EDGE_SFDA_UNSEEN inline void prepare_fibers(int threads) {
    State& s = state();
    s.scheduler_seen_as = __tsan_get_current_fiber();
    for (int t = 0; t < threads; ++t) {
        Fiber& fiber = s.fiber[t];
        if (!fiber.stack) {
            fiber.stack = std::make_unique<char[]>(stack_bytes);
            fiber.seen_as = __tsan_create_fiber(0);
        }
        const auto u = static_cast<unsigned>(t);
        fiber.index = {u % blockDim.x, u / blockDim.x % blockDim.y, u / (blockDim.x * blockDim.y)};
        fiber.warp = t / warpSize;
        fiber.lane = t % warpSize;
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.get();
        fiber.context.uc_stack.ss_size = stack_bytes;
        fiber.context.uc_link = nullptr;
        makecontext(&fiber.context, fiber_main, 0);
    }
}

// Runs one block. Returns false where all its living threads wait for ever.
EDGE_SFDA_UNSEEN inline bool run_block(int threads) {
    State& s = state();
    std::memset(shared, 0xff, sizeof(shared));
    s.block.expected = threads;
    s.block.arrived = 0;
    for (int first = 0; first < threads; first += warpSize) {
        const int lanes = std::min(warpSize, threads - first);
        s.lanes[first / warpSize] = s.warp[first / warpSize].expected = lanes;
        s.warp[first / warpSize].arrived = 0;
    }
    for (int t = 0; t < threads; ++t) {
        s.fiber[t].done = false;
        s.fiber[t].exchanges = 0;
    }
    __tsan_release(&s.block_starts);
    for (int living = threads; living > 0;) {
        s.progress = false;
        living = 0;
        for (int t = 0; t < threads; ++t) {
            if (s.fiber[t].done) continue;
            resume(s.fiber[t]);
            living += !s.fiber[t].done;
        }
        if (living > 0 && !s.progress) return false;
    }
    __tsan_acquire(&s.block_ends);
    return true;
}

EDGE_SFDA_UNSEEN inline bool run(const Call& call) {
    const int threads = static_cast<int>(blockDim.x * blockDim.y * blockDim.z);
    const std::uint64_t blocks = std::uint64_t{gridDim.x} * gridDim.y * gridDim.z;
    running = &call;
    prepare_fibers(threads);
    for (std::uint64_t b = 0; b < blocks; ++b) {
        blockIdx = {static_cast<unsigned>(b % gridDim.x), static_cast<unsigned>(b / gridDim.x % gridDim.y),
                    static_cast<unsigned>(b / gridDim.x / gridDim.y)};
        if (!run_block(threads)) return false;
    }
    return true;
}

}  // namespace edge_sfda_host

// Runs a kernel by name; args[i] points at argument i, of sizes[i] bytes. Returns 0, or 1 with the reason in `message`.
extern "C" __attribute__((visibility("default"))) int edge_sfda_host_launch(
    const char* name, const unsigned* grid, const unsigned* block, std::size_t shared_bytes, void** args,
    const std::size_t* sizes, std::size_t count, char* message, std::size_t message_bytes) {
    static std::mutex turn;
    const auto found = edge_sfda_host::kernels().find(name);
    if (found == edge_sfda_host::kernels().end()) {
        std::snprintf(message, message_bytes, "no kernel %s: does EDGE_SFDA_KERNEL(%s) follow it?", name, name);
        return 1;
    }
    const auto& expected = found->second.sizes;
    for (std::size_t i = 0; i < std::max(count, expected.size()); ++i) {
        if (i < count && i < expected.size() && sizes[i] == expected[i]) continue;
        std::snprintf(message, message_bytes, "%s: argument %zu has %zu bytes, the kernel declares %zu (0: none)", name, i,
                      i < count ? sizes[i] : 0, i < expected.size() ? expected[i] : 0);
        return 1;
    }
    if (std::uint64_t{block[0]} * block[1] * block[2] > edge_sfda_host::max_threads ||
        shared_bytes > edge_sfda_host::max_shared_bytes) {
        std::snprintf(message, message_bytes, "%s: more than %d threads or %zu bytes of shared memory", name,
                      edge_sfda_host::max_threads, edge_sfda_host::max_shared_bytes);
        return 1;
    }
    const std::lock_guard<std::mutex> mine(turn);
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {block[0], block[1], block[2]};
    if (edge_sfda_host::run(found->second.bind(args))) return 0;
    std::snprintf(message, message_bytes, "%s: block (%u, %u, %u): its threads wait at barriers that not all of them reach",
                  name, blockIdx.x, blockIdx.y, blockIdx.z);
    return 1;
}

inline void __syncthreads() { edge_sfda_host::wait(edge_sfda_host::state().block); }
EDGE_SFDA_UNSEEN inline void __syncwarp(unsigned = 0xffffffffu) {
    edge_sfda_host::wait(edge_sfda_host::state().warp[edge_sfda_host::state().current->warp]);
}
inline void __threadfence() {}
inline void __threadfence_block() {}

template <typename T>
T __shfl_sync(unsigned, T value, int source, int width = warpSize) {
    const int lane = edge_sfda_host::my_lane();
    return edge_sfda_host::from_lane(value, lane / width * width + source % width);
}
template <typename T>
T __shfl_xor_sync(unsigned, T value, int mask, int width = warpSize) {
    const int lane = edge_sfda_host::my_lane(), source = lane ^ mask;
    return edge_sfda_host::from_lane(value, source / width == lane / width ? source : lane);
}
template <typename T>
T __shfl_down_sync(unsigned, T value, unsigned delta, int width = warpSize) {
    const int lane = edge_sfda_host::my_lane(), source = lane + static_cast<int>(delta);
    return edge_sfda_host::from_lane(value, source / width == lane / width ? source : lane);
}
template <typename T>
T __shfl_up_sync(unsigned, T value, unsigned delta, int width = warpSize) {
    const int lane = edge_sfda_host::my_lane(), source = lane - static_cast<int>(delta);
    return edge_sfda_host::from_lane(value, source >= lane / width * width ? source : lane);
}
inline unsigned __ballot_sync(unsigned, int predicate) {
    unsigned votes = 0;
    for (int lane = 0; lane < warpSize; ++lane) {
        const int vote = edge_sfda_host::from_lane(predicate != 0, lane);
        votes |= edge_sfda_host::is_lane(lane) && vote ? 1u << lane : 0u;
    }
    return votes;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, !predicate) == 0; }

template <typename T>
T atomicAdd(T* at, std::type_identity_t<T> value) {
    return std::atomic_ref<T>(*at).fetch_add(value, std::memory_order_acq_rel);
}
template <typename T>
T atomicExch(T* at, std::type_identity_t<T> value) {
    return std::atomic_ref<T>(*at).exchange(value, std::memory_order_acq_rel);
}
template <typename T>
T atomicCAS(T* at, std::type_identity_t<T> expected, std::type_identity_t<T> value) {
    std::atomic_ref<T>(*at).compare_exchange_strong(expected, value, std::memory_order_acq_rel);
    return expected;
}
template <typename T>
T atomicMax(T* at, std::type_identity_t<T> value) {
    T seen = std::atomic_ref<T>(*at).load(std::memory_order_acquire);
    while (seen < value && !std::atomic_ref<T>(*at).compare_exchange_weak(seen, value, std::memory_order_acq_rel)) {
    }
    return seen;
}

using std::max;
using std::min;
template <typename T>
T __ldg(const T* at) {
    return *at;
}
inline unsigned __float_as_uint(float f) {
    unsigned bits;
    std::memcpy(&bits, &f, sizeof(bits));
    return bits;
}
inline float __uint_as_float(unsigned bits) {
    float f;
    std::memcpy(&f, &bits, sizeof(f));
    return f;
}
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }

// CUDA's execution model on CPU threads, so that the very kernel sources run, and are checked for races, without a GPU.
//
// One thread per CUDA thread of a block; the same threads run all blocks of a launch, one block after another.
//   __syncthreads      std::barrier of the block; a thread that has returned no longer counts, as on a GPU
//   __syncwarp, __shfl std::barrier of the warp; every living lane must take part, so only full masks are emulated
//   __shared__         static storage, shared by the block's threads; dynamic shared memory is filled with NaN before each
//                      block, so that reading what was never written shows
//   atomics            std::atomic_ref; acquire and release, stronger than CUDA's, because ThreadSanitizer knows no
//                      fences: a missing __threadfence is not found here
// Under -fsanitize=thread all of this is visible to ThreadSanitizer: a missing barrier is reported as a data race.
//
// Not emulated: the memory model of a GPU, textures, cooperative groups, several blocks at a time.
#pragma once

#include <algorithm>
#include <atomic>
#include <barrier>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>
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
#define DYNAMIC_SHARED(T, name) T* name = reinterpret_cast<T*>(edge_sfda_host::here.block->shared.data())
#define EDGE_SFDA_KERNEL(name) static const edge_sfda_host::Registration registration_of_##name{#name, &name}

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};

inline thread_local dim3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;  // of the launch that runs; launches take turns
constexpr int warpSize = 32;

namespace edge_sfda_host {

struct alignas(16) Bytes16 {
    unsigned char byte[16];
};

struct Warp {
    explicit Warp(int lanes) : lanes(lanes), barrier(lanes) {}
    int lanes;
    std::barrier<> barrier;
    std::uint64_t slot[warpSize] = {};
};

struct Block {
    Block(int threads, std::size_t shared_bytes) : barrier(threads), shared(shared_bytes / 16 + 1) {
        for (int first = 0; first < threads; first += warpSize)
            warps.push_back(std::make_unique<Warp>(std::min<int>(warpSize, threads - first)));
        std::memset(static_cast<void*>(shared.data()), 0xff, shared.size() * 16);
    }
    std::barrier<> barrier;
    std::vector<std::unique_ptr<Warp>> warps;
    std::vector<Bytes16> shared;
};

struct Here {  // where this thread stands
    Block* block = nullptr;
    Warp* warp = nullptr;
    int lane = 0;
};
inline thread_local Here here;

// Exchanges one value within the warp: publish, wait, read, wait until all have read.
template <typename T>
T from_lane(T value, int source) {
    static_assert(sizeof(T) <= sizeof(std::uint64_t) && std::is_trivially_copyable_v<T>);
    Warp& warp = *here.warp;
    std::memcpy(&warp.slot[here.lane], &value, sizeof(T));
    warp.barrier.arrive_and_wait();
    if (source >= 0 && source < warp.lanes) std::memcpy(&value, &warp.slot[source], sizeof(T));
    warp.barrier.arrive_and_wait();
    return value;
}

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

inline void run(const Call& call, std::size_t shared_bytes) {
    const int threads = static_cast<int>(blockDim.x * blockDim.y * blockDim.z);
    const std::uint64_t blocks = std::uint64_t{gridDim.x} * gridDim.y * gridDim.z;
    std::optional<Block> block;
    const auto renew = [&]() noexcept { block.emplace(threads, shared_bytes); };
    std::barrier gate(threads, renew);
    const auto work = [&](int thread) {
        const auto t = static_cast<unsigned>(thread);
        threadIdx = {t % blockDim.x, t / blockDim.x % blockDim.y, t / (blockDim.x * blockDim.y)};
        for (std::uint64_t b = 0; b < blocks; ++b) {
            gate.arrive_and_wait();
            blockIdx = {static_cast<unsigned>(b % gridDim.x), static_cast<unsigned>(b / gridDim.x % gridDim.y),
                        static_cast<unsigned>(b / gridDim.x / gridDim.y)};
            here = {&*block, block->warps[t / warpSize].get(), static_cast<int>(t % warpSize)};
            call();
            here.warp->barrier.arrive_and_drop();
            here.block->barrier.arrive_and_drop();
        }
    };
    std::vector<std::thread> pool;
    for (int thread = 0; thread < threads; ++thread) pool.emplace_back(work, thread);
    for (auto& thread : pool) thread.join();
}

}  // namespace edge_sfda_host

// Runs a kernel by name; args[i] points at argument i, of sizes[i] bytes. Returns 0, or 1 with the reason in `message`.
extern "C" inline __attribute__((used)) int edge_sfda_host_launch(const char* name, const unsigned* grid,
                                                                  const unsigned* block, std::size_t shared_bytes,
                                                                  void** args, const std::size_t* sizes,
                                                                  std::size_t count, char* message,
                                                                  std::size_t message_bytes) {
    static std::atomic_flag busy;
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
    while (busy.test_and_set(std::memory_order_acquire)) std::this_thread::yield();
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {block[0], block[1], block[2]};
    edge_sfda_host::run(found->second.bind(args), shared_bytes);
    busy.clear(std::memory_order_release);
    return 0;
}

inline void __syncthreads() { edge_sfda_host::here.block->barrier.arrive_and_wait(); }
inline void __syncwarp(unsigned = 0xffffffffu) { edge_sfda_host::here.warp->barrier.arrive_and_wait(); }
inline void __threadfence() {}
inline void __threadfence_block() {}

template <typename T>
T __shfl_sync(unsigned, T value, int source, int width = warpSize) {
    const int lane = edge_sfda_host::here.lane;
    return edge_sfda_host::from_lane(value, lane / width * width + source % width);
}
template <typename T>
T __shfl_xor_sync(unsigned, T value, int mask, int width = warpSize) {
    const int lane = edge_sfda_host::here.lane, source = lane ^ mask;
    return edge_sfda_host::from_lane(value, source / width == lane / width ? source : lane);
}
template <typename T>
T __shfl_down_sync(unsigned, T value, unsigned delta, int width = warpSize) {
    const int lane = edge_sfda_host::here.lane, source = lane + static_cast<int>(delta);
    return edge_sfda_host::from_lane(value, source / width == lane / width ? source : lane);
}
template <typename T>
T __shfl_up_sync(unsigned, T value, unsigned delta, int width = warpSize) {
    const int lane = edge_sfda_host::here.lane, source = lane - static_cast<int>(delta);
    return edge_sfda_host::from_lane(value, source >= lane / width * width ? source : lane);
}
inline unsigned __ballot_sync(unsigned, int predicate) {
    unsigned votes = 0;
    for (int lane = 0; lane < edge_sfda_host::here.warp->lanes; ++lane)
        votes |= static_cast<unsigned>(edge_sfda_host::from_lane(predicate != 0, lane)) << lane;
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

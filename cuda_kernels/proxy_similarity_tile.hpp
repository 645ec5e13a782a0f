// What the proxy similarity kernels share: what a block keeps in shared memory, how a tile comes there, its cosines.
// See proxy_similarity.cu for the formulas.
#pragma once
#include "kernel.hpp"

namespace {

// These are in ops/proxy_similarity_fused.py as well.
constexpr int kThreads = 128;       // of forward and backward
constexpr int kTotalThreads = 256;  // of the two totals
constexpr int kMaxClasses = 256, kMaxChannels = 256, kMaxTile = 32;
constexpr int kGroup = 4;  // classes a thread takes at once

constexpr int kBlocks = 8;    // a multiprocessor shall hold, for 64 registers a thread; nvcc takes fewer and spills
constexpr int kSegment = 16;  // sums over channels are sums of sums of so many, for the rounding error
constexpr float kEps = 1e-12f;

struct Sizes {
    long long batch_stride, channel_stride, pixel_stride;  // of embeddings and their gradient, in elements
    int pixels;             // N = B * h * w; 64-bit division is a call, and calls spill
    int per_image;          // h * w
    int classes, channels;  // C, D
    int tile;               // pixels at a time: 8, 16 or 32
    int chunk;              // classes at a time, a multiple of kGroup
    int label_bytes;        // 8: int64, 1: uint8
    float kappa, scale;
};

struct alignas(16) Four {
    float x[kGroup];
};

__device__ int row(const Sizes& s) { return s.tile + 1; }  // one more than used: columns lie in different banks

// What a block keeps in shared memory. Host code reckons the same sum.
struct Shared {
    float* p;          // [D, chunk] unit proxies
    float* z;          // [D, tile + 1] unit embeddings
    float* s;          // [C, tile + 1] cosines, later their gradients
    float* part;       // [kThreads]
    float* inverse;    // [tile] 1 / |e|, 0 where there is no direction
    float* value;      // [3, tile]
    int* target;       // [tile] class, -1 where ignored
    long long* start;  // [tile] offset of the pixel's first channel
};

__device__ Shared shared_of(const Sizes& s, float* memory) {
    Shared m;
    m.start = reinterpret_cast<long long*>(memory);
    m.p = memory + 2 * kMaxTile;
    m.z = m.p + s.channels * s.chunk;
    m.s = m.z + s.channels * row(s);
    m.part = m.s + s.classes * row(s);
    m.inverse = m.part + kThreads;
    m.value = m.inverse + s.tile;
    m.target = reinterpret_cast<int*>(m.value + 3 * s.tile);
    return m;
}

// What brings a vector to unit length: 0 if it is too short or its square is infinite. NaN stays NaN.
__device__ float inverse_length(float square) {
    const float length = sqrtf(square);
    return length <= kEps ? 0.0f : 1.0f / length;
}

template <typename Term>
__device__ float segmented_sum(int count, Term term) {
    float sum = 0.0f;
    for (int i0 = 0; i0 < count; i0 += kSegment) {
        float segment = 0.0f;
        for (int i = i0; i < min(i0 + kSegment, count); ++i) segment += term(i);
        sum += segment;
    }
    return sum;
}

__device__ int class_of(const void* label, int n, const Sizes& s) {
    const long long y = s.label_bytes == 8 ? static_cast<const long long*>(label)[n]
                                           : static_cast<long long>(static_cast<const unsigned char*>(label)[n]);
    return y >= 0 && y < s.classes ? static_cast<int>(y) : -1;
}

// Brings classes first .. first + chunk of the proxies into shared memory, at unit length; zeros beyond the last class.
__device__ void load_proxies(const float* proxies, int first, const Sizes& s, const Shared& m) {
    const int t = threadIdx.x, lane = t % 32;
    __syncthreads();  // the chunk before may still be read
    for (int k = t / 32; k < s.chunk; k += kThreads / 32)
        for (int d = lane; d < s.channels; d += 32)
            m.p[d * s.chunk + k] = first + k < s.classes ? proxies[(first + k) * s.channels + d] : 0.0f;
    __syncthreads();
    for (int k = t; k < s.chunk; k += kThreads) {
        const float inverse = inverse_length(
            segmented_sum(s.channels, [&](int d) { return m.p[d * s.chunk + k] * m.p[d * s.chunk + k]; }));
        for (int d = 0; d < s.channels; ++d) m.p[d * s.chunk + k] *= inverse;
    }
    __syncthreads();
}

// Starts on tile `i`: where its pixels lie, and their classes. Returns how many there are.
__device__ int begin_tile(int i, const void* label, const Sizes& s, const Shared& m) {
    const int t = threadIdx.x, first = i * s.tile, count = min(s.tile, s.pixels - first);
    __syncthreads();  // the tile before may still be read
    if (t < s.tile) {
        const int n = first + t, image = min(n, s.pixels - 1) / s.per_image;
        m.start[t] = image * s.batch_stride + (n - image * s.per_image) * s.pixel_stride;
        m.target[t] = t < count ? class_of(label, n, s) : -1;
    }
    return count;
}

// Moves a tile between global and shared memory in the order in which the tensor lies. `visit(offset, d, pixel)`.
template <typename Visit>
__device__ void for_tile(const Sizes& s, int count, const Shared& m, Visit visit) {
    const int t = threadIdx.x;
    if (s.pixel_stride == 1) {  // neighbouring threads take neighbouring pixels
        const int pixel = t % s.tile;
        if (pixel < count)
            for (int d = t / s.tile; d < s.channels; d += kThreads / s.tile)
                visit(m.start[pixel] + d * s.channel_stride, d, pixel);
    } else {  // neighbouring threads take neighbouring channels
        for (int pixel = t / 32; pixel < count; pixel += kThreads / 32)
            for (int d = t % 32; d < s.channels; d += 32) visit(m.start[pixel] + d * s.channel_stride, d, pixel);
    }
}

// Reads a tile, at unit length; zeros for pixels beyond `count` and for those whose value[0] is zero if `skip`.
__device__ void load_tile(const SCALAR* embedding, int count, bool skip, const Sizes& s, const Shared& m) {
    const int t = threadIdx.x, pixel = t % s.tile, group = t / s.tile, groups = kThreads / s.tile;
    for (int i = t; i < s.channels * row(s); i += kThreads) m.z[i] = 0.0f;
    __syncthreads();
    for_tile(s, count, m, [&](long long at, int d, int i) {
        if (!skip || m.value[i] != 0.0f) m.z[d * row(s) + i] = to_float(embedding[at]);
    });
    __syncthreads();
    float square = 0.0f;
    for (int d = group; d < s.channels; d += groups) square += m.z[d * row(s) + pixel] * m.z[d * row(s) + pixel];
    m.part[t] = square;
    __syncthreads();
    square = 0.0f;
    for (int g = 0; g < groups; ++g) square += m.part[g * s.tile + pixel];
    const float inverse = inverse_length(square);
    for (int d = group; d < s.channels; d += groups) m.z[d * row(s) + pixel] *= inverse;
    if (group == 0) m.inverse[pixel] = inverse;
    __syncthreads();
}

// Fills m.s with the cosines of the tile. All proxies are in shared memory already if they fit.
__device__ void cosines(const float* proxies, const Sizes& s, const Shared& m) {
    const int pixel = threadIdx.x % s.tile, group = threadIdx.x / s.tile, groups = kThreads / s.tile;
    for (int first = 0; first < s.classes; first += s.chunk) {
        if (s.chunk < s.classes) load_proxies(proxies, first, s, m);
        for (int k = group * kGroup; k < s.chunk && first + k < s.classes; k += groups * kGroup) {
            Four sum = {};
            for (int d0 = 0; d0 < s.channels; d0 += kSegment) {
                Four segment = {};
                for (int d = d0; d < min(d0 + kSegment, s.channels); ++d) {
                    const float z = m.z[d * row(s) + pixel];
                    const Four p = *reinterpret_cast<const Four*>(&m.p[d * s.chunk + k]);
                    for (int j = 0; j < kGroup; ++j) segment.x[j] += z * p.x[j];
                }
                for (int j = 0; j < kGroup; ++j) sum.x[j] += segment.x[j];
            }
            for (int j = 0; j < kGroup; ++j)
                if (first + k + j < s.classes) m.s[(first + k + j) * row(s) + pixel] = sum.x[j];
        }
    }
    __syncthreads();
}

// Adds `count` numbers that lie `stride` apart, for each of `columns` columns, in an order that depends on sizes alone.
// Takes all threads of the block; result(column, sum) is called by one thread a column. `part` holds blockDim numbers.
template <typename T, typename Result>
__device__ void total(const T* numbers, int count, long long stride, int columns, T* part, Result result) {
    const int threads = blockDim.x, t = threadIdx.x, width = min(columns, threads), slices = threads / width;
    for (int first = 0; first < columns; first += width) {
        const int column = first + t % width, slice = t / width;
        T sum = 0;
        if (slice < slices && column < columns)
            for (int i = slice; i < count; i += slices) sum += numbers[i * stride + column];
        part[t] = sum;
        __syncthreads();
        if (t < width && column < columns) {
            sum = 0;
            for (int i = 0; i < slices; ++i) sum += part[i * width + t];
            result(column, sum);
        }
        __syncthreads();
    }
}

}  // namespace

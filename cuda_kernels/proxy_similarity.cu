// Proxy similarity: reliability of labels and the class-balanced metric loss from embeddings and proxies.
//
//   z_i = e_i / |e_i|      p_c = P_c / |P_c|      s_ic = z_i . p_c
//   r_i = softmax_c(kappa * s_i)[y_i]             nearest_i = argmax_c s_ic
//   loss = 1/M * sum_c T_c / W_c,   W_c = sum_{i: y_i = c} w_i,   T_c = sum_{i: y_i = c} w_i * (lse_i - scale * s_ic),
//          lse_i = logsumexp_c(scale * s_i),   M = number of classes with W_c != 0
//   ds_ic = g * scale * w_i / (W_{y_i} * M) * (exp(scale * s_ic - lse_i) - [c = y_i])
//   de_i = (sum_c ds_ic * p_c - z_i * sum_c ds_ic * s_ic) / |e_i|,      dP_c likewise over i
//
// Kernels, in the order of their launches:
//   proxy_similarity_forward         one block per tile of `tile` pixels, then every gridDim-th; one thread per pixel and
//                                    every (128 / tile)-th group of four classes; its sums of each class per block
//   proxy_similarity_forward_total   one block: adds the blocks' sums in fixed order, then the loss
//   proxy_similarity_backward        tiles as forward; also one thread per channel and four classes for the proxies
//   proxy_similarity_backward_total  one block per class: adds the blocks' sums in fixed order, then projects
//
// A tile of embeddings is read once, turned to unit length on its way into shared memory, and stays there: all cosines,
// and in the backward pass both gradients, are made from it. Proxies are turned to unit length in shared memory too, all
// of them where they fit, else `chunk` classes at a time. 48 KiB of shared memory at most, so no GPU needs an opt-in.
//
// Bytes per pixel, D channels of size S, 8 for an int64 label (1 for uint8), 4 for a weight where there is one:
//   forward   reads S * D + 8 + 4, writes 4 (reliability) + 4 (lse) + 8 (nearest, if asked for) + 4 * C (s, if asked for)
//   backward  reads S * D + 8 + 4 + 4 (lse), writes S * D
// Per block: reads 4 * C * D of proxies (once for all its tiles where they fit); writes 16 * C forward, 4 * C * D backward.
// Operations per pixel: forward 2 * C * D + 3 * D + about 60 * C (two exponentials each); backward 6 * C * D + 7 * D + 30 * C.
// At C = 19, D = 64, float32: 272 bytes and 3.8 kFLOP forward, 528 bytes and 8.3 kFLOP backward; 14 and 16 FLOP a byte.
//
// float, Half or BFloat16 embeddings (SCALAR) of any stride that puts channels or pixels next to each other; all else,
// and all accumulation, in float32. Offsets in 64 bits, pixels below 2^31. Labels that are no class are ignored, so none reads out of bounds.
// Deterministic: no atomics, every sum in an order that depends on the sizes alone.
// NaN: a pixel that is ignored or has no weight neither gives nor takes a gradient, whatever it holds; else NaN spreads as
// the formulas say. A vector not longer than 1e-12, or whose square leaves float32, has no direction: cosine, gradient 0.
#include "kernel.hpp"

namespace {

constexpr int kThreads = 128;       // of forward and backward; as in ops/proxy_similarity_fused.py
constexpr int kTotalThreads = 256;  // of the two totals
constexpr int kMaxClasses = 256, kMaxChannels = 256, kMaxTile = 32;
constexpr int kGroup = 4;     // classes a thread takes at once
constexpr int kSegment = 16;  // sums over channels are made of sums of so many: a quarter of the rounding error of one
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
    long long* start;  // [tile] offset of the pixel's first channel; see below
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
        float square = 0.0f;
        for (int d0 = 0; d0 < s.channels; d0 += kSegment) {
            float segment = 0.0f;
            for (int d = d0; d < min(d0 + kSegment, s.channels); ++d)
                segment += m.p[d * s.chunk + k] * m.p[d * s.chunk + k];
            square += segment;
        }
        const float inverse = inverse_length(square);
        for (int d = 0; d < s.channels; ++d) m.p[d * s.chunk + k] *= inverse;
    }
    __syncthreads();
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

// partial [gridDim, 3, C]: sums of reliability, of weight and of weight * cross-entropy; counts [gridDim, C] of pixels.
// Null: weight for ones; reliability, nearest, cosine, lse where they are not asked for.
extern "C" __global__ void __launch_bounds__(kThreads)
    proxy_similarity_forward(const SCALAR* embedding,                 // [B, D, h, w], strides in `s`
                             const float* proxies,                    // [C, D]
                             const void* label,                       // [N]
                             const float* weight,                     // [N]
                             Sizes s, float* reliability,             // [N]
                             long long* nearest,                      // [N]
                             float* cosine,                           // [C, N]
                             float* lse,                              // [N]
                             float* partial,                          // [gridDim, 3, C]
                             int* counts) {                           // [gridDim, C]
    DYNAMIC_SHARED(float, memory);
    const Shared m = shared_of(s, memory);
    const int t = threadIdx.x;
    constexpr int kOwn = kMaxClasses / kThreads;  // classes whose sums this thread keeps
    float sums[kOwn][3] = {};
    int seen[kOwn] = {};

    if (s.chunk >= s.classes) load_proxies(proxies, 0, s, m);
    const int tiles = (s.pixels - 1) / s.tile + 1;
    for (int i = blockIdx.x; i < tiles; i += gridDim.x) {
        const int first = i * s.tile, count = min(s.tile, s.pixels - first);
        __syncthreads();  // the tile before may still be read
        if (t < s.tile) {
            const int n = first + t, image = min(n, s.pixels - 1) / s.per_image;
            m.start[t] = image * s.batch_stride + (n - image * s.per_image) * s.pixel_stride;
            m.target[t] = t < count ? class_of(label, n, s) : -1;
        }
        load_tile(embedding, count, false, s, m);
        cosines(proxies, s, m);

        if (t < count) {
            const int n = first + t, target = m.target[t];
            float top = m.s[t];
            int at = 0;
            for (int c = 1; c < s.classes; ++c) {
                const float x = m.s[c * row(s) + t];
                if (x > top || (x != x && top == top)) top = x, at = c;  // the first NaN is the largest, as in torch
            }
            float sharp = 0.0f, scaled = 0.0f;
            for (int c = 0; c < s.classes; ++c) {
                const float below = m.s[c * row(s) + t] - top;
                sharp += expf(s.kappa * below);
                scaled += expf(s.scale * below);
            }
            const float own = target < 0 ? top : m.s[target * row(s) + t];
            const float r = target < 0 ? 0.0f : expf(s.kappa * (own - top)) / sharp;
            const float w = target < 0 ? 0.0f : weight == nullptr ? 1.0f : weight[n];
            const float log_sum = logf(scaled);
            if (reliability != nullptr) reliability[n] = r;
            if (nearest != nullptr) nearest[n] = at;
            if (lse != nullptr) lse[n] = s.scale * top + log_sum;
            m.value[t] = r;
            m.value[s.tile + t] = w;
            m.value[2 * s.tile + t] = w == 0.0f ? 0.0f : w * (log_sum - s.scale * (own - top));
        }
        if (cosine != nullptr && t % s.tile < count)
            for (int c = t / s.tile; c < s.classes; c += kThreads / s.tile)
                cosine[static_cast<long long>(c) * s.pixels + first + t % s.tile] = m.s[c * row(s) + t % s.tile];
        __syncthreads();

#pragma unroll
        for (int j = 0; j < kOwn; ++j) {
            float tile[3] = {};
            for (int i = 0; i < count; ++i)
                if (m.target[i] == t + j * kThreads) {
                    for (int q = 0; q < 3; ++q) tile[q] += m.value[q * s.tile + i];
                    ++seen[j];
                }
            for (int q = 0; q < 3; ++q) sums[j][q] += tile[q];
        }
    }
#pragma unroll
    for (int j = 0; j < kOwn; ++j) {
        const int c = t + j * kThreads;
        if (c >= s.classes) continue;
        const long long block = blockIdx.x;
        for (int q = 0; q < 3; ++q) partial[(block * 3 + q) * s.classes + c] = sums[j][q];
        counts[block * s.classes + c] = seen[j];
    }
}
EDGE_SFDA_KERNEL(proxy_similarity_forward);

extern "C" __global__ void __launch_bounds__(kTotalThreads)
    proxy_similarity_forward_total(const float* partial,      // [blocks, 3, C]
                                   const int* block_counts,   // [blocks, C]
                                   int blocks, int classes, float* loss, float* sums, float* mass,  // [], [C], [C]
                                   long long* counts) {                                             // [C]
    __shared__ float part[kTotalThreads];
    __shared__ int counted[kTotalThreads];
    __shared__ float all[3 * kMaxClasses];
    total(partial, blocks, 3 * classes, 3 * classes, part, [&](int column, float sum) { all[column] = sum; });
    total(block_counts, blocks, classes, classes, counted, [&](int c, int sum) {
        if (counts != nullptr) counts[c] = sum;
    });
    for (int c = threadIdx.x; c < classes; c += kTotalThreads) {
        if (sums != nullptr) sums[c] = all[c];
        if (mass != nullptr) mass[c] = all[classes + c];
    }
    if (threadIdx.x == 0) {
        float sum = 0.0f;
        int present = 0;
        for (int c = 0; c < classes; ++c)
            if (all[classes + c] != 0.0f) {
                sum += all[2 * classes + c] / all[classes + c];
                ++present;
            }
        *loss = sum / static_cast<float>(max(present, 1));
    }
}
EDGE_SFDA_KERNEL(proxy_similarity_forward_total);

extern "C" __global__ void __launch_bounds__(kThreads)
    proxy_similarity_backward(const float* grad,                              // [] of the loss
                              const SCALAR* embedding, const float* proxies,  // as forward
                              const void* label, const float* weight,
                              const float* lse,   // [N]
                              const float* mass,  // [C]
                              Sizes s,
                              SCALAR* grad_embedding,  // [B, D, h, w], strides in `s`
                              float* partial) {        // [gridDim, C, D]
    DYNAMIC_SHARED(float, memory);
    __shared__ float unit;  // the gradient of one pixel's cross-entropy, but for its weight and its class's
    const Shared m = shared_of(s, memory);
    const int t = threadIdx.x, pixel = t % s.tile, group = t / s.tile, groups = kThreads / s.tile;
    float* own_partial = partial + static_cast<long long>(blockIdx.x) * s.classes * s.channels;
    const bool resident = s.chunk >= s.classes;

    if (t == 0) {
        int present = 0;
        for (int c = 0; c < s.classes; ++c) present += mass[c] != 0.0f;
        unit = *grad * s.scale / static_cast<float>(max(present, 1));
    }
    for (int i = t; i < s.classes * s.channels; i += kThreads) own_partial[i] = 0.0f;
    if (resident) load_proxies(proxies, 0, s, m);
    const int tiles = (s.pixels - 1) / s.tile + 1;
    for (int i = blockIdx.x; i < tiles; i += gridDim.x) {
        const int first = i * s.tile, count = min(s.tile, s.pixels - first);
        __syncthreads();  // the tile before may still be read, and `unit` is written
        if (t < s.tile) {
            const int n = first + t, image = min(n, s.pixels - 1) / s.per_image;
            m.start[t] = image * s.batch_stride + (n - image * s.per_image) * s.pixel_stride;
            const int target = t < count ? class_of(label, n, s) : -1;
            const float w = target < 0 ? 0.0f : weight == nullptr ? 1.0f : weight[n];
            m.target[t] = target;
            m.value[t] = w == 0.0f ? 0.0f : unit / mass[target] * w;
            m.value[s.tile + t] = t < count ? lse[n] : 0.0f;
        }
        __syncthreads();
        load_tile(embedding, count, true, s, m);
        cosines(proxies, s, m);

        const float share = m.value[pixel];
        float radial = 0.0f;
        for (int c = group; c < s.classes; c += groups) {
            const float cos = m.s[c * row(s) + pixel];
            const float prob = expf(s.scale * cos - m.value[s.tile + pixel]);
            const float ds = share == 0.0f ? 0.0f : share * (prob - (c == m.target[pixel] ? 1.0f : 0.0f));
            radial += ds == 0.0f ? 0.0f : ds * cos;
            m.s[c * row(s) + pixel] = ds;
        }
        m.part[t] = radial;
        __syncthreads();
        radial = 0.0f;
        for (int g = 0; g < groups; ++g) radial += m.part[g * s.tile + pixel];

        for (int i = t; i < (s.classes + kGroup - 1) / kGroup * s.channels; i += kThreads) {
            const int c = i / s.channels * kGroup, d = i % s.channels;
            Four sum = {};
            for (int n = 0; n < count; ++n)
                for (int j = 0; j < kGroup; ++j)
                    sum.x[j] += m.s[min(c + j, s.classes - 1) * row(s) + n] * m.z[d * row(s) + n];
            for (int j = 0; j < kGroup; ++j)
                if (c + j < s.classes) own_partial[(c + j) * s.channels + d] += sum.x[j];
        }
        __syncthreads();

        for (int d = group; d < s.channels; d += groups) m.z[d * row(s) + pixel] *= -radial;
        for (int c0 = 0; c0 < s.classes; c0 += s.chunk) {
            if (!resident) load_proxies(proxies, c0, s, m);
            const int classes = min(s.chunk, s.classes - c0);
            for (int d = group; d < s.channels; d += groups) {
                float sum = 0.0f;
                for (int k = 0; k < classes; ++k) sum += m.s[(c0 + k) * row(s) + pixel] * m.p[d * s.chunk + k];
                m.z[d * row(s) + pixel] += sum;
            }
        }
        __syncthreads();
        for_tile(s, count, m, [&](long long at, int d, int i) {
            grad_embedding[at] = from_float<SCALAR>(m.z[d * row(s) + i] * m.inverse[i]);
        });
    }
}
EDGE_SFDA_KERNEL(proxy_similarity_backward);

extern "C" __global__ void __launch_bounds__(kTotalThreads)
    proxy_similarity_backward_total(const float* partial,  // [blocks, C, D]
                                    const float* proxies,  // [C, D]
                                    int blocks, int classes, int channels,
                                    float* grad_proxies) {  // [C, D]
    __shared__ float part[kTotalThreads];
    __shared__ float g[kMaxChannels], p[kMaxChannels];
    const int c = blockIdx.x;
    for (int d = threadIdx.x; d < channels; d += kTotalThreads) p[d] = proxies[c * channels + d];
    total(partial + c * channels, blocks, static_cast<long long>(classes) * channels, channels, part,
          [&](int d, float sum) { g[d] = sum; });
    float square = 0.0f, radial = 0.0f;  // the same in every thread: cheaper than to share them
    for (int d0 = 0; d0 < channels; d0 += kSegment) {
        float segment = 0.0f;
        for (int d = d0; d < min(d0 + kSegment, channels); ++d) segment += p[d] * p[d];
        square += segment;
    }
    const float inverse = inverse_length(square);
    for (int d0 = 0; d0 < channels; d0 += kSegment) {
        float segment = 0.0f;
        for (int d = d0; d < min(d0 + kSegment, channels); ++d) segment += g[d] * (p[d] * inverse);
        radial += segment;
    }
    for (int d = threadIdx.x; d < channels; d += kTotalThreads)
        grad_proxies[c * channels + d] = (g[d] - p[d] * inverse * radial) * inverse;
}
EDGE_SFDA_KERNEL(proxy_similarity_backward_total);

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
//   proxy_similarity_forward         one block per tile of `tile` pixels, then every gridDim-th; one thread per pixel
//                                    and every (128 / tile)-th group of four classes; its sums of each class per block
//   proxy_similarity_forward_total   one block: adds the blocks' sums in fixed order, then the loss
//   proxy_similarity_backward        tiles as forward; also one thread per channel and four classes for the proxies
//   proxy_similarity_backward_total  one block per class: adds the blocks' sums in fixed order, then projects
//
// A tile of embeddings is read once, turned to unit length in shared memory, and stays there: all cosines, and in the
// backward pass both gradients, are made from it. Proxies are turned to unit length in shared memory too, all of them
// where they fit, else `chunk` classes at a time. 48 KiB of shared memory at most, so no GPU needs an opt-in.
//
// Bytes per pixel, D channels of S bytes, 8 for an int64 label (1 for uint8), 4 for a weight where there is one:
//   forward   reads S * D + 8 + 4, writes 4 (reliability) + 4 (lse); if asked for, 8 (nearest) and 4 * C (cosine)
//   backward  reads S * D + 8 + 4 + 4 (lse), writes S * D
// Bytes per block: reads 4 * C * D of proxies, once for all its tiles where they fit; writes 16 * C forward,
// 4 * C * D backward, and reads and writes as much for each further tile, which caches hold.
// Operations per pixel: forward 2 * C * D + 3 * D + 60 * C (two exponentials), backward 6 * C * D + 7 * D + 30 * C.
// At C = 19, D = 64, float32: 276 bytes and 3.8 kFLOP forward, 528 bytes and 8.3 kFLOP backward: 14 and 16 FLOP a byte.
//
// Embeddings are float, Half or BFloat16 (SCALAR), channels or pixels next to each other. All else, and all
// accumulation, is in float32. Offsets in 64 bits, pixels below 2^31. Labels that are no class are ignored, so that
// none reads out of bounds.
// Deterministic: no atomics, and every sum in an order that depends on the sizes alone.
// NaN: a pixel that is ignored or has no weight neither gives nor takes a gradient, whatever it holds; else NaN spreads
// as the formulas say. A vector not longer than 1e-12, or whose square leaves float32, has no direction: its cosines
// and its gradient are 0.
#include "proxy_similarity_tile.hpp"

// partial [gridDim, 3, C]: sums of reliability, of weight and of weight * cross-entropy; counts [gridDim, C] of pixels.
// Null: weight for ones; reliability, nearest, cosine, lse where they are not asked for.
extern "C" __global__ void __launch_bounds__(kThreads, kBlocks)
    proxy_similarity_forward(const SCALAR* embedding,                       // [B, D, h, w], strides in `s`
                             const float* proxies,                          // [C, D]
                             const void* label, const float* weight,  // [N], [N]
                             Sizes s,                                       //
                             float* reliability, long long* nearest,  // [N], [N]
                             float* cosine, float* lse,                     // [C, N], [N]
                             float* partial, int* counts) {                 // [gridDim, 3, C], [gridDim, C]
    DYNAMIC_SHARED(float, memory);
    const Shared m = shared_of(s, memory);
    const int t = threadIdx.x;
    constexpr int kOwn = kMaxClasses / kThreads;  // classes whose sums this thread keeps
    float sums[kOwn][3] = {};
    int seen[kOwn] = {};

    if (s.chunk >= s.classes) load_proxies(proxies, 0, s, m);
    const int tiles = (s.pixels - 1) / s.tile + 1;
    for (int i = blockIdx.x; i < tiles; i += gridDim.x) {
        const int first = i * s.tile, count = begin_tile(i, label, s, m);
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
    proxy_similarity_forward_total(const float* partial, const int* block_counts,  // [blocks, 3, C], [blocks, C]
                                   int blocks, int classes,                        //
                                   float* loss, float* sums, float* mass,          // [], [C], [C]
                                   long long* counts) {                            // [C]
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
    if (threadIdx.x == 0 && loss != nullptr) {
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

extern "C" __global__ void __launch_bounds__(kThreads, kBlocks)
    proxy_similarity_backward(const float* grad,                              // [] of the loss
                              const SCALAR* embedding, const float* proxies,  // as forward
                              const void* label, const float* weight,         // as forward
                              const float* lse, const float* mass,            // [N], [C]
                              Sizes s,                                        //
                              SCALAR* grad_embedding,                         // [B, D, h, w], strides in `s`
                              float* partial) {                               // [gridDim, C, D]
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
        const int first = i * s.tile, count = begin_tile(i, label, s, m);
        if (t < s.tile) {
            const int n = first + t, target = m.target[t];
            const float w = target < 0 ? 0.0f : weight == nullptr ? 1.0f : weight[n];
            m.value[t] = w == 0.0f ? 0.0f : unit / mass[target] * w;
            m.value[s.tile + t] = t < count ? lse[n] : 0.0f;
        }
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
    proxy_similarity_backward_total(const float* partial,                   // [blocks, C, D]
                                    const float* proxies,                   // [C, D]
                                    int blocks, int classes, int channels,  //
                                    float* grad_proxies) {                  // [C, D]
    __shared__ float part[kTotalThreads];
    __shared__ float g[kMaxChannels], p[kMaxChannels];
    const int c = blockIdx.x;
    for (int d = threadIdx.x; d < channels; d += kTotalThreads) p[d] = proxies[c * channels + d];
    total(partial + c * channels, blocks, static_cast<long long>(classes) * channels, channels, part,
          [&](int d, float sum) { g[d] = sum; });
    // The same in every thread: cheaper than to share them.
    const float inverse = inverse_length(segmented_sum(channels, [&](int d) { return p[d] * p[d]; }));
    const float radial = segmented_sum(channels, [&](int d) { return g[d] * (p[d] * inverse); });
    for (int d = threadIdx.x; d < channels; d += kTotalThreads)
        grad_proxies[c * channels + d] = (g[d] - p[d] * inverse * radial) * inverse;
}
EDGE_SFDA_KERNEL(proxy_similarity_backward_total);

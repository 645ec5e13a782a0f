// Weighted cross-entropy of bilinearly upsampled logits, loss and gradient, without the full-size logits.
//
//   x_i    = bilinear_upsample(logits)_i, align_corners=False        [C] per pixel i of the label's size
//   loss   = (1/N) sum_i k_i (log sum_c exp(x_ic) - x_i,y_i),        k_i = w_i * c_{y_i}, N = pixels that are not ignored
//   g_ic   = k_i (softmax(x_i)_c - [c = y_i])                        its gradient goes to the four nodes around pixel i
//
// Kernels                                       one thread per                            bytes from and to memory
//   weighted_cross_entropy_sweep                column and run of up to 8 rows            see below
//   weighted_cross_entropy_finish               (one block) sums the tiles' losses        12 per tile
//   weighted_cross_entropy_gather               logit                                     4 to 9 in, 2 or 4 out
//   weighted_cross_entropy_same_size            pixel; no upsampling                      s*C + label + 4 in, 8 out
//   weighted_cross_entropy_same_size_backward   pixel                                     s*C + label + 12 in, s*C out
//   with s = 2 or 4 bytes of a logit, label = 1 or 8, and the sweep at stride t between logits and label:
//     in per pixel s*C/t^2 + label + 4/(weight's stride)^2, out per pixel about 1.6 * 4*C/t^2 (the tiles' partial gradients)
//     B=1, C=19, 512x1024, t=8, fp32, uint8 labels, weight at the logits' size: 0.6 + 0.5 + 0.03 MB in, 1.2 MB out.
//
// Arithmetic of the sweep per pixel and class, counted in what nvcc 13.0 makes for sm_90 at runs of 8 rows: the three loops
// over classes (maximum, sum, gradient) take 4.4 + 8.6 + 11.9 instructions, each an interpolation, its share of the
// column's, and an exponential in the last two; summing the tile takes about 5 more. A multiprocessor issues 128 lanes a
// clock, and 16 exponentials: 0.24 and 0.13 clocks, so it is bound by issuing instructions, neither by memory nor by the
// exponentials. At the size above, 10 M pixel-classes on 132 multiprocessors at 1.7 GHz make 11 us. Not measured.
//
// Why tiles and partial gradients. A node's gradient sums over all pixels between its neighbours. Scattering with float
// atomics gives another sum each time. Gathering per node recomputes each softmax up to four times. So each block owns a
// tile of whole *intervals* between rows of nodes, 32 columns wide, does each pixel once, sums in a fixed order, and writes
// the share of every node that it touches; a second kernel adds the up to four (or, for wide strides, more) shares of a
// node, in order, and applies 1/N and the upstream gradient, which the sweep cannot know. Deterministic; no float atomics.
// The class loop runs three times (maximum, sum, gradient): the logits of a tile are a few KB and stay in cache, whereas
// C values of 8 pixels would not fit into registers.
//
// Rows of one interval share both nodes, so a thread holds two accumulators for its whole run: the upper and lower node's
// share. Interval E of 0..h lies between nodes E-1 and E; at the border one of them is missing and its coefficient is 0.
// Interval and coefficient are exact integer arithmetic ((2d+1)*in + out over 2*out), so that `begin` and `tap` agree on
// every pixel and all machines on every bit of them. Sides up to 16384 keep this in 32 bits.
//
// Labels outside 0..C-1 that are not ignored: never used as an index; loss and gradient become NaN.
// Float32 accumulation; offsets of tensors in 64 bits.

#include "kernel.hpp"

constexpr int COLUMNS = 32; // per tile: one warp's lanes
constexpr int BATCH = 8;    // classes between two barriers
constexpr int PITCH = COLUMNS + 1;

struct Geometry {
    long long logits_stride[4];  // of [B, C, h, w], in elements
    long long grad_stride[4];    // of the gradient, [B, C, h, w]
    long long label_stride[3];   // of [B, H, W]
    long long weight_stride[3];  // of [B, weight_h, weight_w]
    long long ignore_id;
    int C, h, w, H, W, weight_h, weight_w;
    int label_bytes;  // 1: uint8, 8: int64
    int intervals;    // of rows per tile
    int runs;         // per interval
    int run;          // rows of a run, 1..8
    int nodes;        // columns of nodes that a tile may touch
};

struct Tap {
    int interval;  // 0..in, between nodes interval - 1 and interval
    float share;   // of node `interval`; the other one's is 1 - share
};

// Where pixel d of `out` pixels falls among `in` nodes.
__device__ __forceinline__ Tap tap(int d, int in, int out) {
    const unsigned position = static_cast<unsigned>(2 * d + 1) * in + out, unit = 2u * out;
    const int interval = static_cast<int>(position / unit);
    if (interval == 0) return {0, 1.0f};
    if (interval == in) return {in, 0.0f};
    return {interval, static_cast<float>(position % unit) / static_cast<float>(unit)};
}

// First pixel of an interval, 0..out; `interval` may be in + 1, the end of all.
__device__ __forceinline__ int begin(int interval, int in, int out) {
    if (interval <= 0) return 0;
    if (interval > in) return out;
    const int numerator = (2 * interval - 1) * out - in;
    return numerator <= 0 ? 0 : (numerator + 2 * in - 1) / (2 * in);
}

__device__ __forceinline__ long long read_label(const void* label, const Geometry& g, int b, int y, int x) {
    const long long at = b * g.label_stride[0] + y * g.label_stride[1] + x * g.label_stride[2];
    return g.label_bytes == 1 ? static_cast<const unsigned char*>(label)[at] : static_cast<const long long*>(label)[at];
}

__device__ __forceinline__ float lerp(float a, float b, float share) { return a + share * (b - a); }

// The weight of pixel (y, x), upsampled where it has another size.
__device__ float read_weight(const float* weight, const Geometry& g, int b, int y, int x) {
    const float* image = weight + b * g.weight_stride[0];
    if (g.weight_h == g.H && g.weight_w == g.W) return image[y * g.weight_stride[1] + x * g.weight_stride[2]];
    const Tap ty = tap(y, g.weight_h, g.H), tx = tap(x, g.weight_w, g.W);
    const long long top = max(ty.interval - 1, 0) * g.weight_stride[1];
    const long long bottom = min(ty.interval, g.weight_h - 1) * g.weight_stride[1];
    const long long left = max(tx.interval - 1, 0) * g.weight_stride[2];
    const long long right = min(tx.interval, g.weight_w - 1) * g.weight_stride[2];
    return lerp(lerp(image[top + left], image[top + right], tx.share),
                lerp(image[bottom + left], image[bottom + right], tx.share), ty.share);
}

struct Pixel {
    int label;     // a class; -1: ignored, or not a class
    float factor;  // weight * class weight; 0 where ignored, NaN where not a class
    bool valid;    // counts in N
    bool bad;      // valid, but not a class
};

__device__ __forceinline__ Pixel read_pixel(const void* label, const float* weight, const float* class_weight,
                                            const Geometry& g, int b, int y, int x) {
    const long long id = read_label(label, g, b, y, x);
    if (id == g.ignore_id) return {-1, 0.0f, false, false};
    if (id < 0 || id >= g.C) return {-1, infinity() - infinity(), true, true};
    const float factor = read_weight(weight, g, b, y, x);
    return {static_cast<int>(id), class_weight ? factor * class_weight[id] : factor, true, false};
}

struct Tally {
    float loss;
    int valid, bad;
};

// Adds the block's tallies in a fixed order and writes them as those of block `at` of `blocks`.
__device__ void write_tally(Tally tally, float* losses, int* counts, long long at, long long blocks) {
    __shared__ float loss[32];
    __shared__ int valid[32], bad[32];
    const unsigned thread = threadIdx.y * blockDim.x + threadIdx.x, warps = blockDim.x * blockDim.y / 32;
    for (int delta = 16; delta > 0; delta >>= 1) {
        tally.loss += __shfl_xor_sync(0xffffffffu, tally.loss, delta);
        tally.valid += __shfl_xor_sync(0xffffffffu, tally.valid, delta);
        tally.bad += __shfl_xor_sync(0xffffffffu, tally.bad, delta);
    }
    if (thread % 32 == 0) {
        loss[thread / 32] = tally.loss;
        valid[thread / 32] = tally.valid;
        bad[thread / 32] = tally.bad;
    }
    __syncthreads();
    if (thread != 0) return;
    for (unsigned warp = 1; warp < warps; ++warp) {
        tally.loss += loss[warp];
        tally.valid += valid[warp];
        tally.bad += bad[warp];
    }
    losses[at] = tally.loss;
    counts[at] = tally.valid;
    counts[blocks + at] = tally.bad;
}

// The four logits around a column's interval, of one class after the other. Offsets are 32-bit and in bytes, on top of an
// address that is the same for the whole warp: four 64-bit addresses a class would cost more than the interpolation.
struct Corners {
    const char* frame;  // its logits, class 0
    long long class_bytes;
    unsigned upper_left, upper_right, lower_left, lower_right;  // in a class's plane
    float share;                                                // of the right ones

    __device__ __forceinline__ void column(int c, float& upper, float& lower) const {
        const char* plane = frame + c * class_bytes;
        upper = lerp(read(plane, upper_left), read(plane, upper_right), share);
        lower = lerp(read(plane, lower_left), read(plane, lower_right), share);
    }
    static __device__ __forceinline__ float read(const char* plane, unsigned at) {
        return to_float(*reinterpret_cast<const SCALAR*>(plane + at));
    }
};

// What a thread knows of its run of rows in one interval and column. Rows beyond the run's end, and ignored pixels, are
// computed like the others and count 0: a test per pixel and class would cost more than it saves.
template <int RUN>
struct Run {
    Corners corners;
    int label[RUN];
    float share[RUN];     // of the lower node
    float factor[RUN];    // k_i
    float top[RUN];       // max_c x_ic
    float quotient[RUN];  // k_i / sum_c exp(x_ic - top)
};

// Reads a run's `rows` pixels from row `first` on, and returns their share of the loss.
template <int RUN>
__device__ __forceinline__ Tally load_run(Run<RUN>& r, const void* label, const float* weight, const float* class_weight,
                                          const Geometry& g, int b, int first, int rows, int x) {
    Tally tally{0.0f, 0, 0};
    float sum[RUN];
#pragma unroll
    for (int i = 0; i < RUN; ++i) {
        r.label[i] = -1;
        r.factor[i] = r.share[i] = sum[i] = 0.0f;
        r.top[i] = -infinity();
        if (i >= rows) continue;
        const Pixel pixel = read_pixel(label, weight, class_weight, g, b, first + i, x);
        r.label[i] = pixel.label;
        r.factor[i] = pixel.factor;
        r.share[i] = tap(first + i, g.h, g.H).share;
        tally.valid += pixel.valid;
        tally.bad += pixel.bad;
    }
    for (int c = 0; c < g.C; ++c) {
        float upper, lower;
        r.corners.column(c, upper, lower);
#pragma unroll
        for (int i = 0; i < RUN; ++i) r.top[i] = fmaxf(r.top[i], lerp(upper, lower, r.share[i]));
    }
    for (int c = 0; c < g.C; ++c) {
        float upper, lower;
        r.corners.column(c, upper, lower);
#pragma unroll
        for (int i = 0; i < RUN; ++i) sum[i] += __expf(lerp(upper, lower, r.share[i]) - r.top[i]);
    }
#pragma unroll
    for (int i = 0; i < RUN; ++i) {
        r.quotient[i] = r.factor[i] / sum[i];
        if (r.label[i] < 0) continue;
        float upper, lower;
        r.corners.column(r.label[i], upper, lower);
        tally.loss += r.factor[i] * (__logf(sum[i]) + (r.top[i] - lerp(upper, lower, r.share[i])));
    }
    return tally;
}

// Sums the gradient of classes first_class..+BATCH over the run's rows into the thread's own column of `staged`:
// staged[0][class][slot][column] is the upper node's share, staged[1] the lower node's.
template <int RUN>
__device__ __forceinline__ void stage_run(const Run<RUN>& r, const Geometry& g, int first_class, float* staged) {
    const int row = blockDim.y * PITCH, plane = BATCH * row, classes = min(BATCH, g.C - first_class);
    float* own = staged + threadIdx.y * PITCH + threadIdx.x;
    for (int j = 0; j < classes; ++j) {
        float upper, lower, all = 0.0f, below = 0.0f;
        r.corners.column(first_class + j, upper, lower);
#pragma unroll
        for (int i = 0; i < RUN; ++i) {
            const float grad = r.quotient[i] * __expf(lerp(upper, lower, r.share[i]) - r.top[i]);
            all += grad;
            below += grad * r.share[i];
        }
        own[j * row] = all - below;
        own[plane + j * row] = below;
    }
#pragma unroll
    for (int i = 0; i < RUN; ++i) {
        const int j = r.label[i] - first_class;
        if (r.label[i] < 0 || j < 0 || j >= classes) continue;
        own[j * row] -= r.factor[i] * (1.0f - r.share[i]);
        own[plane + j * row] -= r.factor[i] * r.share[i];
    }
}

// The tile's columns, in dynamic shared memory. Interval i of columns lies between nodes i and i + 1 of those it touches.
struct Columns {
    float* staged;  // [2, BATCH, slots, PITCH]
    float* cells;   // [nodes - 1, 4, BATCH, slots]
    float* share;   // [COLUMNS], of the right node
    int* first;     // [nodes]: where interval i begins; the last one is the end
};

// Sums what is staged over the columns of each interval, for its upper left, upper right, lower left and lower right node.
// Threads of a warp differ in slot and class, so that all read different banks and loop alike.
__device__ __forceinline__ void sum_cells(const Columns& columns, const Geometry& g, int thread) {
    const int slots = blockDim.y, shift = slots == 8 ? 3 : 2, threads = COLUMNS << shift;
    const float* lower_line = columns.staged + BATCH * slots * PITCH;
    for (int n = thread; n < (g.nodes - 1) * BATCH * slots; n += threads) {
        const int line = n % (BATCH * slots), interval = n / BATCH >> shift;  // line = class * slots + slot
        float upper = 0.0f, upper_right = 0.0f, lower = 0.0f, lower_right = 0.0f;
        for (int x = columns.first[interval]; x < columns.first[interval + 1]; ++x) {
            const float u = columns.staged[line * PITCH + x], l = lower_line[line * PITCH + x], share = columns.share[x];
            upper += u;
            upper_right += u * share;
            lower += l;
            lower_right += l * share;
        }
        float* cell = columns.cells + interval * 4 * BATCH * slots + line;
        cell[0] = upper - upper_right;
        cell[BATCH * slots] = upper_right;
        cell[2 * BATCH * slots] = lower - lower_right;
        cell[3 * BATCH * slots] = lower_right;
    }
}

// Node (row, column) of the tile: what the intervals above it (as their lower node) and below it, left and right, give.
__device__ __forceinline__ float sum_node(const Columns& columns, const Geometry& g, int j, int row, int column,
                                          int group) {
    const int slots = blockDim.y, plane = BATCH * slots;
    float sum = 0.0f;
    for (int lower = 0; lower < 2; ++lower) {
        const int interval = row - lower;
        if (interval < 0 || interval >= g.intervals) continue;
        const int from = max(interval * g.runs - group * slots, 0);
        const int to = min((interval + 1) * g.runs - group * slots, slots);
        for (int slot = from; slot < to; ++slot) {
            const float* cell = columns.cells + 2 * lower * plane + j * slots + slot;
            if (column < g.nodes - 1) sum += cell[column * 4 * plane];
            if (column > 0) sum += cell[(column - 1) * 4 * plane + plane];
        }
    }
    return sum;
}

// The sweep of one tile by runs of at most RUN rows. Returns the thread's share of the loss.
template <int RUN>
__device__ __forceinline__ Tally sweep_tile(const SCALAR* logits, const void* label, const float* weight,
                                            const float* class_weight, float* out, const Columns& columns, Tap column,
                                            const Geometry& g) {
    const int b = blockIdx.z, x = blockIdx.x * COLUMNS + threadIdx.x, slots = blockDim.y;
    const int thread = threadIdx.y * COLUMNS + threadIdx.x, tile_nodes = (g.intervals + 1) * g.nodes;
    // Nodes of a tile are summed by `lanes` threads, `together` classes at a time.
    const int lanes = min(tile_nodes, COLUMNS * slots), together = COLUMNS * slots / lanes;
    const unsigned left = min(max(column.interval - 1, 0), g.w - 1) * g.logits_stride[3] * sizeof(SCALAR);
    const unsigned right = min(column.interval, g.w - 1) * g.logits_stride[3] * sizeof(SCALAR);
    Tally tally{0.0f, 0, 0};
    for (int group = 0; group * slots < g.intervals * g.runs; ++group) {
        const int slot = group * slots + threadIdx.y, interval = blockIdx.y * g.intervals + slot / g.runs;
        const int from = begin(interval, g.h, g.H) + slot % g.runs * g.run;
        const bool live = slot < g.intervals * g.runs && interval <= g.h && x < g.W;
        const int rows = live ? min(begin(interval + 1, g.h, g.H) - from, g.run) : 0;
        const unsigned upper = min(max(interval - 1, 0), g.h - 1) * g.logits_stride[2] * sizeof(SCALAR);
        const unsigned lower = min(interval, g.h - 1) * g.logits_stride[2] * sizeof(SCALAR);
        Run<RUN> r;
        r.corners = {reinterpret_cast<const char*>(logits + b * g.logits_stride[0]),
                     g.logits_stride[1] * static_cast<long long>(sizeof(SCALAR)),
                     upper + left, upper + right, lower + left, lower + right, column.share};
        const Tally of_run = load_run(r, label, weight, class_weight, g, b, from, rows, x);
        tally.loss += of_run.loss;
        tally.valid += of_run.valid;
        tally.bad += of_run.bad;
        if (out == nullptr) continue;
        for (int first_class = 0; first_class < g.C; first_class += BATCH) {
            stage_run(r, g, first_class, columns.staged);
            __syncthreads();
            sum_cells(columns, g, thread);
            __syncthreads();
            // The next batch writes `staged` first, and `cells` after a barrier: no third one is needed here.
            const int end = min(BATCH, g.C - first_class);
            for (int at = thread % lanes; at < tile_nodes; at += lanes) {
                const int row = at / g.nodes, node_column = at % g.nodes;
                for (int j = thread / lanes; j < end && thread < lanes * together; j += together) {
                    const float sum = sum_node(columns, g, j, row, node_column, group);
                    float* to = out + static_cast<long long>(first_class + j) * tile_nodes + at;
                    *to = group == 0 ? sum : *to + sum;  // the same thread in every group
                }
            }
        }
    }
    return tally;
}

// Grid (ceil(W / 32), ceil((h + 1) / intervals), B), block (32, slots): a warp is one run of all the tile's columns.
extern "C" __global__ void weighted_cross_entropy_sweep(const SCALAR* logits,       // [B, C, h, w]
                                                        const void* label,          // [B, H, W]
                                                        const float* weight,        // [B, weight_h, weight_w]
                                                        const float* class_weight,  // [C] or null
                                                        float* losses,              // [blocks]
                                                        int* counts,                // [2, blocks]: valid, bad
                                                        float* partial,  // [blocks, C, intervals + 1, nodes] or null
                                                        Geometry g) {
    DYNAMIC_SHARED(float, shared);
    float* cells = shared + 2 * BATCH * blockDim.y * PITCH;
    float* share = cells + (g.nodes - 1) * 4 * BATCH * blockDim.y;
    const Columns columns{shared, cells, share, reinterpret_cast<int*>(share + COLUMNS)};
    const int left = blockIdx.x * COLUMNS, width = min(COLUMNS, g.W - left), leftmost = tap(left, g.w, g.W).interval;
    const Tap column = tap(left + min(static_cast<int>(threadIdx.x), width - 1), g.w, g.W);
    if (threadIdx.y == 0) columns.share[threadIdx.x] = column.share;
    for (int n = threadIdx.y * COLUMNS + threadIdx.x; n < g.nodes; n += COLUMNS * blockDim.y)
        columns.first[n] = min(max(begin(leftmost + n, g.w, g.W) - left, 0), width);
    // both are read after the barrier that follows the first staging

    const long long blocks = static_cast<long long>(gridDim.x) * gridDim.y * gridDim.z;
    const long long block = (static_cast<long long>(blockIdx.z) * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    float* out = partial == nullptr ? nullptr : partial + block * g.C * (g.intervals + 1) * g.nodes;
    Tally tally;
    if (g.run <= 2)
        tally = sweep_tile<2>(logits, label, weight, class_weight, out, columns, column, g);
    else if (g.run <= 4)
        tally = sweep_tile<4>(logits, label, weight, class_weight, out, columns, column, g);
    else
        tally = sweep_tile<8>(logits, label, weight, class_weight, out, columns, column, g);
    write_tally(tally, losses, counts, block, blocks);
}
EDGE_SFDA_KERNEL(weighted_cross_entropy_sweep);

// One block of 256 threads. loss = sum / N, scale = 1 / N; both NaN where a label was no class.
extern "C" __global__ void weighted_cross_entropy_finish(const float* losses,  // [blocks]
                                                         const int* counts,    // [2, blocks]
                                                         float* loss,          // scalar
                                                         float* scale,         // scalar
                                                         long long blocks) {
    __shared__ double loss_of[256];
    __shared__ long long valid_of[256], bad_of[256];
    const unsigned thread = threadIdx.x;
    double sum = 0.0;
    long long valid = 0, bad = 0;
    for (long long i = thread; i < blocks; i += 256) {
        sum += losses[i];
        valid += counts[i];
        bad += counts[blocks + i];
    }
    loss_of[thread] = sum;
    valid_of[thread] = valid;
    bad_of[thread] = bad;
    for (unsigned half = 128; half > 0; half >>= 1) {
        __syncthreads();
        if (thread < half) {
            loss_of[thread] += loss_of[thread + half];
            valid_of[thread] += valid_of[thread + half];
            bad_of[thread] += bad_of[thread + half];
        }
    }
    if (thread != 0) return;
    const double count = valid_of[0] > 0 ? static_cast<double>(valid_of[0]) : 1.0;
    const float poison = bad_of[0] > 0 ? infinity() - infinity() : 0.0f;
    *loss = static_cast<float>(loss_of[0] / count) + poison;
    *scale = static_cast<float>(1.0 / count) + poison;
}
EDGE_SFDA_KERNEL(weighted_cross_entropy_finish);

// Grid (ceil(h * w / 256), C, B), block 256: adds the tiles' shares of a node.
extern "C" __global__ void weighted_cross_entropy_gather(const float* partial,    // [B, tiles_y, tiles_x, C, rows, nodes]
                                                         const float* scale,      // scalar
                                                         const float* grad_loss,  // scalar
                                                         SCALAR* grad,            // [B, C, h, w]
                                                         int tiles_y, int tiles_x, Geometry g) {
    const int at = blockIdx.x * blockDim.x + threadIdx.x, c = blockIdx.y, b = blockIdx.z;
    if (at >= g.h * g.w) return;
    const int y = at / g.w, x = at % g.w, rows = g.intervals + 1;
    const int from = begin(x, g.w, g.W), to = begin(x + 2, g.w, g.W);  // the columns that touch node x
    float sum = 0.0f;
    for (int tile_y = y / g.intervals; tile_y <= (y + 1) / g.intervals; ++tile_y) {
        for (int tile_x = from / COLUMNS; tile_x * COLUMNS < to; ++tile_x) {
            const int row = y + 1 - tile_y * g.intervals;
            const int column = x + 1 - tap(tile_x * COLUMNS, g.w, g.W).interval;
            const long long tile = (static_cast<long long>(b) * tiles_y + tile_y) * tiles_x + tile_x;
            sum += partial[((tile * g.C + c) * rows + row) * g.nodes + column];
        }
    }
    grad[b * g.grad_stride[0] + c * g.grad_stride[1] + y * g.grad_stride[2] + x * g.grad_stride[3]] =
        from_float<SCALAR>(sum * *scale * *grad_loss);
}
EDGE_SFDA_KERNEL(weighted_cross_entropy_gather);

// Grid (ceil(W / 256), H, B), block 256. `top` and `sum` describe each pixel's softmax for the backward pass; a sum of the
// two would lose the digits of large logits.
extern "C" __global__ void weighted_cross_entropy_same_size(const SCALAR* logits,       // [B, C, H, W]
                                                            const void* label,          // [B, H, W]
                                                            const float* weight,        // [B, weight_h, weight_w]
                                                            const float* class_weight,  // [C] or null
                                                            float* losses,              // [blocks]
                                                            int* counts,                // [2, blocks]
                                                            float* top,                 // [B, H, W] or null
                                                            float* sum,                 // [B, H, W] or null
                                                            Geometry g) {
    const int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y, b = blockIdx.z;
    const long long blocks = static_cast<long long>(gridDim.x) * gridDim.y * gridDim.z;
    const long long block = (static_cast<long long>(b) * gridDim.y + y) * gridDim.x + blockIdx.x;
    Tally tally{0.0f, 0, 0};
    if (x < g.W) {
        const Pixel pixel = read_pixel(label, weight, class_weight, g, b, y, x);
        const SCALAR* at = logits + b * g.logits_stride[0] + y * g.logits_stride[2] + x * g.logits_stride[3];
        float largest = -infinity(), total = 0.0f;
        if (pixel.label >= 0) {
            // Twice through the classes: a block's logits are 1 KB a class and come from cache the second time.
            for (int c = 0; c < g.C; ++c) largest = fmaxf(largest, to_float(at[c * g.logits_stride[1]]));
            for (int c = 0; c < g.C; ++c) total += __expf(to_float(at[c * g.logits_stride[1]]) - largest);
            tally.loss = pixel.factor * (__logf(total) + (largest - to_float(at[pixel.label * g.logits_stride[1]])));
        }
        tally.valid = pixel.valid;
        tally.bad = pixel.bad;
        if (top != nullptr) {
            const long long i = (static_cast<long long>(b) * g.H + y) * g.W + x;
            top[i] = largest;
            sum[i] = total;
        }
    }
    write_tally(tally, losses, counts, block, blocks);
}
EDGE_SFDA_KERNEL(weighted_cross_entropy_same_size);

// Grid (ceil(W / 256), H, B), block 256.
extern "C" __global__ void weighted_cross_entropy_same_size_backward(const SCALAR* logits,       // [B, C, H, W]
                                                                     const void* label,          // [B, H, W]
                                                                     const float* weight,        // [B, weight_h, weight_w]
                                                                     const float* class_weight,  // [C] or null
                                                                     const float* top,           // [B, H, W]
                                                                     const float* sum,           // [B, H, W]
                                                                     const float* scale,         // scalar
                                                                     const float* grad_loss,     // scalar
                                                                     SCALAR* grad,               // [B, C, H, W]
                                                                     Geometry g) {
    const int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y, b = blockIdx.z;
    if (x >= g.W) return;
    const Pixel pixel = read_pixel(label, weight, class_weight, g, b, y, x);
    const long long i = (static_cast<long long>(b) * g.H + y) * g.W + x;
    const float factor = pixel.factor * *scale * *grad_loss, largest = top[i], share = factor / sum[i];
    const SCALAR* in = logits + b * g.logits_stride[0] + y * g.logits_stride[2] + x * g.logits_stride[3];
    SCALAR* out = grad + b * g.grad_stride[0] + y * g.grad_stride[2] + x * g.grad_stride[3];
    for (int c = 0; c < g.C; ++c) {
        float value = pixel.bad ? pixel.factor : 0.0f;
        if (pixel.label >= 0) value = share * __expf(to_float(in[c * g.logits_stride[1]]) - largest);
        if (pixel.label == c) value -= factor;
        out[c * g.grad_stride[1]] = from_float<SCALAR>(value);
    }
}
EDGE_SFDA_KERNEL(weighted_cross_entropy_same_size_backward);

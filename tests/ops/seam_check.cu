// Not an operator: exercises what the seam and the host emulation offer. out[block] = sum of the block's x, scaled.
#include "kernel.hpp"

struct Scale {
    int by;
    long long offset;
};

extern "C" __global__ void seam_sum(const SCALAR* x,  // [n]
                                    float* out,       // [blocks]
                                    long long n, Scale scale, int* blocks_done) {
    __shared__ float part[32];
    DYNAMIC_SHARED(float, value);
    const long long i = blockIdx.x * static_cast<long long>(blockDim.x) + threadIdx.x;
    value[threadIdx.x] = i < n ? to_float(x[i]) : 0.0f;
    SEAM_SYNC;  // left out by a test, to see that the race is found
    float sum = value[blockDim.x - 1 - threadIdx.x];
    for (int delta = 16; delta > 0; delta >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, delta);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x != 0) return;
    float total = 0.0f;
    for (unsigned warp = 0; warp < blockDim.x / 32; ++warp) total += part[warp];
    out[blockIdx.x] = total * scale.by + scale.offset;
    atomicAdd(blocks_done, 1);
}
EDGE_SFDA_KERNEL(seam_sum);

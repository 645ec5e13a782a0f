// What every kernel source includes first. No header of the CUDA toolkit is needed, so NVRTC alone can compile a kernel, and
// the same source compiles with g++, where `host_emulator.hpp` has been included before (it defines EDGE_SFDA_HOST).
//
//   SCALAR                         float, Half or BFloat16: the operator's input type, given as -DSCALAR=...
//   to_float(x), from_float<T>(f)  conversions; from_float rounds to nearest even, keeps NaN and saturates to infinity
//   DYNAMIC_SHARED(T, name)        T* name: the launch's dynamic shared memory
//   EDGE_SFDA_KERNEL(name)         after a kernel: makes it known to the host emulation, nothing on a GPU
#pragma once

struct Half {
    unsigned short bits;
};
struct BFloat16 {
    unsigned short bits;
};

#ifndef EDGE_SFDA_HOST

#define DYNAMIC_SHARED(T, name)                                      \
    extern __shared__ __align__(16) unsigned char dynamic_shared_[]; \
    T* name = reinterpret_cast<T*>(dynamic_shared_)
#define EDGE_SFDA_KERNEL(name) static_assert(true, "")

__device__ __forceinline__ float to_float(Half x) {
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(x.bits));
    return f;
}

__device__ __forceinline__ unsigned short half_bits(float f) {
    unsigned short h;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(f));
    return h;
}

#else

inline float to_float(Half x) {
    const unsigned sign = (x.bits & 0x8000u) << 16, exponent = (x.bits >> 10) & 31u, fraction = x.bits & 1023u;
    if (exponent == 0) {
        const float magnitude = static_cast<float>(fraction) * 0x1p-24f;
        return sign ? -magnitude : magnitude;
    }
    const unsigned wide = exponent == 31 ? 255u : exponent + 112u;
    return __uint_as_float(sign | wide << 23 | fraction << 13);
}

inline unsigned short half_bits(float f) {
    const unsigned bits = __float_as_uint(f), sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return static_cast<unsigned short>(sign | 0x7e00u);  // NaN
    if (magnitude >= 0x477ff000u) return static_cast<unsigned short>(sign | 0x7c00u);  // from 65520 on: infinity
    if (magnitude < 0x38800000u) {  // below 2^-14: the sum rounds to a multiple of 2^-24, the unit of subnormals
        const float sum = __uint_as_float(magnitude) + 0.5f;
        return static_cast<unsigned short>(sign | (__float_as_uint(sum) - 0x3f000000u));
    }
    const unsigned rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
    return static_cast<unsigned short>(sign | ((rounded >> 13) - (112u << 10)));
}

#endif

__device__ __forceinline__ float to_float(float x) { return x; }

__device__ __forceinline__ float to_float(BFloat16 x) { return __uint_as_float(static_cast<unsigned>(x.bits) << 16); }

template <typename T>
__device__ __forceinline__ T from_float(float f);

template <>
__device__ __forceinline__ float from_float<float>(float f) {
    return f;
}

template <>
__device__ __forceinline__ Half from_float<Half>(float f) {
    return Half{half_bits(f)};
}

template <>
__device__ __forceinline__ BFloat16 from_float<BFloat16>(float f) {
    // In integers, for sm_75 has no such instruction.
    const unsigned bits = __float_as_uint(f);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return BFloat16{static_cast<unsigned short>((bits >> 16) | 0x40u)};
    return BFloat16{static_cast<unsigned short>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

__device__ __forceinline__ float infinity() { return __uint_as_float(0x7f800000u); }

// Matrix instructions of one warp, and how to load their operands from shared memory. Included by device.cuh.
//
// Elements in a lane's registers, with g = lane / 4 and t = lane % 4 (PTX ISA, "Matrix fragments for mma.m16n8k16" and
// "... m16n8k8"); of two 16-bit elements in a register the first is in the lower half:
//   16x8x16   a: (row g, k 2t..2t+1), (g + 8, 2t..), (g, 2t + 8..), (g + 8, 2t + 8..)   b: (k 2t..2t+1, column g), (2t
//   + 8.., g) 16x8x8    a: (row g, k t), (g + 8, t), (g, t + 4), (g + 8, t + 4)                   b: (k t, column g), (t +
//   4, g) both      d: (row g, columns 2t and 2t + 1), (row g + 8, the same)
#pragma once

namespace segops::device {

// d += a b, with a [16, 16] and b [16, 8] of bfloat16.
__device__ __forceinline__ void mma_bf16_16x8x16(float (&d)[4], const uint32_t (&a)[4],
                                                 const uint32_t (&b)[2] SEGOPS_WHERE) {
#ifdef SEGOPS_SIMT
  simt::mma(d, a, b, simt::Matrix::bf16_16x8x16, where);
#else
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// d += a b, with a [16, 16] and b [16, 8] of float16.
__device__ __forceinline__ void mma_f16_16x8x16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2] SEGOPS_WHERE) {
#ifdef SEGOPS_SIMT
  simt::mma(d, a, b, simt::Matrix::f16_16x8x16, where);
#else
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// d += a b, with a [16, 8] and b [8, 8] of tf32: floats whose low 13 bits are not used.
__device__ __forceinline__ void mma_tf32_16x8x8(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2] SEGOPS_WHERE) {
#ifdef SEGOPS_SIMT
  simt::mma(d, a, b, simt::Matrix::tf32_16x8x8, where);
#else
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// Four 8 x 8 matrices of 16-bit elements. Lane 8 i + j gives the address of row j of matrix i: 16 bytes, aligned to 16.
// r[i] of a lane holds elements 2 t and 2 t + 1 of row g of matrix i.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void* shared_row SEGOPS_WHERE) {
#ifdef SEGOPS_SIMT
  simt::ldmatrix_x4(r, shared_row, false, where);
#else
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(shared_row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
#endif
}

// The same, each matrix transposed: r[i] holds elements g of rows 2 t and 2 t + 1.
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], const void* shared_row SEGOPS_WHERE) {
#ifdef SEGOPS_SIMT
  simt::ldmatrix_x4(r, shared_row, true, where);
#else
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(shared_row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
#endif
}

}  // namespace segops::device

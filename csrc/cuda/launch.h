// Launchers of the CUDA kernels as a binding sees them: no CUDA header and no torch.
//
// Pointers in the params are device pointers. Everything is queued on `stream` (a cudaStream_t); nothing waits for it.
#pragma once
#include "segops/confusion_matrix.h"
#include "segops/dice_bce_loss.h"
#include "segops/dice_ce_loss_coarse.h"
#include "segops/dilated_conv.h"
#include "segops/max_unpool.h"
#include "segops/upsample_argmax.h"
#include "segops/upsample_bilinear.h"
#include "segops/upsample_nearest.h"

namespace segops::cuda {

// Why a launch failed, or null.
using Failure = const char*;

// What the sums of a chunk leave room for in shared memory.
constexpr int64_t kDiceCeLossMostClasses = 4096;

// Device memory that the statistics of these inputs need besides their outputs.
int64_t dice_ce_loss_scratch_bytes(const DiceCeLossInputs& in);
Failure dice_ce_loss_statistics(const DiceCeLossStatistics& params, void* scratch, void* stream);
Failure dice_ce_loss_value(const DiceCeLossValue& params, void* stream);
Failure dice_ce_loss_backward(const DiceCeLossBackward& params, void* stream);

int64_t dice_ce_loss_coarse_scratch_bytes(const DiceCeLossCoarseStatistics& params);
Failure dice_ce_loss_coarse_statistics(const DiceCeLossCoarseStatistics& params, void* scratch, void* stream);
Failure dice_ce_loss_coarse_backward(const DiceCeLossCoarseBackward& params, void* stream);

// These need the layout, too, and where the tensors begin.
int64_t dice_bce_loss_scratch_bytes(const DiceBceLossStatistics& params);
Failure dice_bce_loss_statistics(const DiceBceLossStatistics& params, void* scratch, void* stream);
Failure dice_bce_loss_backward(const DiceBceLossBackward& params, void* stream);

int64_t dice_bce_loss_coarse_scratch_bytes(const DiceBceLossCoarseStatistics& params);
Failure dice_bce_loss_coarse_statistics(const DiceBceLossCoarseStatistics& params, void* scratch, void* stream);
Failure dice_bce_loss_coarse_backward(const DiceBceLossCoarseBackward& params, void* stream);

Failure upsample_bilinear2d(const UpsampleBilinear& params, void* stream);
Failure upsample_bilinear2d_backward(const UpsampleBilinearBackward& params, void* stream);
Failure upsample_cat(const UpsampleCat& params, void* stream);
Failure upsample_argmax(const UpsampleArgmax& params, void* stream);

Failure upsample_nearest2d(const UpsampleNearest& params, void* stream);
Failure upsample_nearest2d_backward(const UpsampleNearestBackward& params, void* stream);
Failure bed_of_nails2d(const BedOfNails& params, void* stream);

Failure max_pool2d(const MaxPool& params, void* stream);
Failure max_unpool2d(const MaxUnpool& params, void* stream);
Failure max_unpool2d_backward(const MaxUnpoolBackward& params, void* stream);
// Device memory that max_unpool2d_flat needs besides its output.
int64_t max_unpool2d_flat_scratch_bytes(const MaxUnpoolFlat& params);
Failure max_unpool2d_flat(const MaxUnpoolFlat& params, void* scratch, void* stream);
Failure max_unpool2d_flat_backward(const MaxUnpoolFlatBackward& params, void* stream);

// Device memory that confusion_matrix needs besides its outputs.
int64_t confusion_matrix_scratch_bytes(const ConfusionMatrix& params);
Failure confusion_matrix(const ConfusionMatrix& params, void* scratch, void* stream);

// Device memory that each needs besides its result: repacked weights, and partial sums.
int64_t dilated_conv2d_scratch_bytes(const DilatedConv& params);
Failure dilated_conv2d(const DilatedConv& params, void* scratch, void* stream);
int64_t dilated_conv2d_grad_input_scratch_bytes(const DilatedConvGradInput& params);
Failure dilated_conv2d_grad_input(const DilatedConvGradInput& params, void* scratch, void* stream);
int64_t dilated_conv2d_grad_weight_scratch_bytes(const DilatedConvGradWeight& params);
Failure dilated_conv2d_grad_weight(const DilatedConvGradWeight& params, void* scratch, void* stream);

// Adds a record of bad data to what the device has seen, one record for each on_bad from 1 on (csrc/torch/bad_data.h); and
// moves what it has seen to `out`.
Failure note_bad_data(const BadData* record, int64_t on_bad, void* stream);
Failure take_bad_data(BadData* out, int64_t on_bad, void* stream);

}  // namespace segops::cuda

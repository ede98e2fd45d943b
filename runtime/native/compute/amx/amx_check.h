// Does the AMX kernel compute what AVX512-VNNI does, on this processor and under this system?
#pragma once

#include "kernel_table.h"

namespace lfm {

// Whether two tables give the same bits for small products in every way that the AMX kernel has to configure its tiles.
// False too where there is no memory for them.
bool GiveSameProducts(const KernelTable& table, const KernelTable& reference);

}  // namespace lfm
